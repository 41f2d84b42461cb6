"""Sends mutated image files through everything that reads one, and says what came of it as a line of JSON.

    python -m tests.read_mutations --first=0 --files=300
    python -m tests.read_mutations --first=1234 --files=1 --reader=/tmp/_png.so    # one again, by another compiled part

Each file goes through the converter (as image or as label), the trainer's reader of windows and that of unet.predict.
What they make of it is right if it is what Pillow makes of it, or, where Pillow refuses a file that is damaged below
the window, what a plain reader written after the standard makes of it; or if it is a ValueError of one line. All else
is a failure. tests/data/test_mutated_files.py runs this under AddressSanitizer.
"""

import collections
import contextlib
import importlib.util
import io
import json
import pathlib
import struct
import sys
import tempfile
import traceback
import warnings
import zlib
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from tests import mutations

_FIRST = flags.DEFINE_integer('first', 0, 'Number of the first file.')
_FILES = flags.DEFINE_integer('files', 300, 'How many files.')
_READER = flags.DEFINE_string('reader', None, 'Compiled part of data_prep.png to take instead of the installed one.')
_TENSORFLOW = flags.DEFINE_boolean('tensorflow', True, 'Read windows of JPEG files too, which TensorFlow does.')
_AT = flags.DEFINE_string('at', None, 'File that says which file is at work, for who finds this process dead.')

_MOST_PIXELS = 1 << 22  # of an image that is decoded as a whole

Outcomes = collections.Counter[str]


def main(_: list[str]) -> None:
    warnings.simplefilter('always')
    if _READER.value:
        spec = importlib.util.spec_from_file_location('data_prep._png', _READER.value)
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    from data_prep import png

    png._MOST_PIXELS = _MOST_PIXELS
    outcomes, failures, warned = collections.Counter(), [], []
    warnings.showwarning = lambda message, *_: warned.append(message)
    with tempfile.TemporaryDirectory() as folder, open(_AT.value, 'w') if _AT.value else contextlib.nullcontext() as at:
        for seed in range(_FIRST.value, _FIRST.value + _FILES.value):
            if at:
                at.seek(0)
                at.write(f'{seed:>9}')
                at.flush()
            try:
                outcomes += check(seed, pathlib.Path(folder), _TENSORFLOW.value)
            except Exception:
                failures.append(f'file {seed}: {traceback.format_exc()}')
            failures += [f'file {seed}: warns: {warning}' for warning in warned]
            warned.clear()
    print(json.dumps({'outcomes': outcomes, 'failures': failures}))


def check(seed: int, folder: pathlib.Path, with_tensorflow: bool) -> Outcomes:
    """Reads file number `seed` in every way and counts how often it was read or refused; raises whatever is wrong."""
    name, content = mutations.make(seed)
    from data_prep import orientation

    rng, outcomes = np.random.default_rng([seed, 1]), collections.Counter()
    (folder / name).unlink(missing_ok=True)  # a file that is written over is waited for by some file systems
    (folder / name).write_bytes(content)
    if name == 'a.label.png':
        _check_label(content, rng, outcomes)
    elif name in ('a.png', 'a.jpg') and (stored := _check_image(name, content, folder, rng, outcomes)) is not None:
        _check_windows(stored, rng, outcomes, with_tensorflow)
    _check_windows(content, rng, outcomes, with_tensorflow)
    seen, whole = _predicted(folder / name, outcomes), by_pillow(content)
    if seen is not None and whole is not None:
        upright = orientation.turn(whole, orientation.read(content))
        np.testing.assert_array_equal(seen, _converted(upright, 3))
    return outcomes


def _attempt(outcomes: Outcomes, reader: str, call, *arguments, **named) -> Any:
    """What the call returns; None if it refuses the file as it should."""
    try:
        result = call(*arguments, **named)
    except ValueError as error:
        text = str(error)
        assert text and '\n' not in text, f'{reader} refuses with {text!r}'
        outcomes[f'{reader}: refused'] += 1
        return None
    outcomes[f'{reader}: read'] += 1
    return result


def by_pillow(content: bytes) -> Image.Image | None:
    """The whole image as Pillow decodes it, None if it refuses it."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter('ignore')
        image = Image.open(io.BytesIO(content), formats=('PNG', 'JPEG'))
        if image.width * image.height <= _MOST_PIXELS:
            image.load()
            return image
    return None


def _predicted(file: pathlib.Path, outcomes: Outcomes) -> np.ndarray | None:
    from unet.data import media

    pixels = _attempt(outcomes, 'predict', media.read_image, file)
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) and pixels.size)
    return pixels


def _check_image(
    name: str, content: bytes, folder: pathlib.Path, rng: np.random.Generator, outcomes: Outcomes
) -> bytes | None:
    """What the converter stores is an upright image of the size that it says, of the pixels that unet.predict sees."""
    from data_prep import images, png

    size = tuple(rng.integers(1, 30, 2).tolist()) if rng.random() < 0.2 else None
    encoding = images.Encoding(str(rng.choice(['source', 'source', 'png', 'jpeg'])), size=size)
    stored = _attempt(outcomes, 'converter', images.encode_image, content, name, encoding)
    if stored is None:
        return None
    assert png.image_size(stored.encoded) == (stored.height, stored.width)
    images.encode_void((stored.height, stored.width), 0)  # as of a test image without labels
    kept = by_pillow(stored.encoded)
    if kept is None:  # a PNG that is stored as it is is not decoded
        assert stored.encoded == content and png.is_png(content)
        return stored.encoded
    assert kept.mode == 'RGB' and kept.size == (stored.width, stored.height)
    is_encoded_with_losses = stored.encoded != content and not png.is_png(stored.encoded)
    seen = _predicted(folder / name, outcomes)
    if seen is not None and encoding.size is None and not is_encoded_with_losses:
        np.testing.assert_array_equal(seen, np.asarray(kept))
    return stored.encoded


def _check_label(content: bytes, rng: np.random.Generator, outcomes: Outcomes) -> None:
    from data_prep import images, orientation, png

    whole = by_pillow(content)
    upright = orientation.turn(whole, orientation.read(content)) if whole else Image.new('L', (1, 1))
    image_size = (upright.height, upright.width)
    size = tuple(rng.integers(1, 30, 2).tolist()) if rng.random() < 0.2 else None
    made = _attempt(outcomes, 'labels', images.encode_label, content, 'a.png', image_size, set(range(256)), size)
    if made is None:
        return
    encoded, counts, ids = made
    label = by_pillow(encoded)
    assert size is not None or (np.asarray(label) == np.asarray(upright)).all()
    assert label.mode == 'L' and counts.sum() == label.width * label.height
    pixels = png.read_window(encoded, (0, 0, label.height, label.width), channels=1)[..., 0]
    np.testing.assert_array_equal(pixels, np.asarray(label))
    np.testing.assert_array_equal(pixels, ids)
    np.testing.assert_array_equal(counts, np.bincount(pixels.ravel(), minlength=256))


def _check_windows(content: bytes, rng: np.random.Generator, outcomes: Outcomes, with_tensorflow: bool) -> None:
    """Windows of any place and size, by every reader that there is for them."""
    from data_prep import png

    size = _attempt(outcomes, 'header', png.image_size, content)
    if size is None:
        return
    whole = by_pillow(content)
    for channels in (1, 3):
        height, width = (int(rng.integers(1, min(side, 1 << 20) + 1)) if side else 1 for side in size)
        top, left = (
            int(rng.integers(0, max(side - part, 0) + 1)) for side, part in zip(size, (height, width), strict=True)
        )
        if rng.random() < 0.3:
            top, left, height, width = 0, 0, *size
        window = (top, left, height, width)
        if height * width > _MOST_PIXELS:
            continue
        if png.is_png(content):
            found = _attempt(outcomes, 'trainer', png.read_window, content, window, channels=channels)
            _check_pixels(content, whole, window, channels, found)
        if with_tensorflow and (channels == 3 or png.is_png(content)):
            _check_bordered(content, whole, window, channels, outcomes)


def _check_pixels(content: bytes, whole, window, channels: int, found: np.ndarray | None) -> None:
    """The window of a PNG is that of Pillow or of the plain reader, and is refused only if the file is damaged."""
    top, left, height, width = window
    expected = None
    if whole is not None:
        expected = _converted(whole, channels)[top : top + height, left : left + width]
    elif _is_plain(content, channels):
        rows = plain_rows(content, channels, top + height)
        if len(rows) == top + height:
            expected = rows[top:, left : left + width]
    if found is not None:
        assert found.shape == (height, width, channels) and found.dtype == np.uint8
        assert expected is not None, 'pixels were read where there are none'
        np.testing.assert_array_equal(found, expected)
    else:
        assert whole is None or not _is_whole(content, channels), 'nothing is wrong with it'


def _is_whole(content: bytes, channels: int) -> bool:
    """Whether nothing is wrong with what Pillow reads: it fills up rows, and of several headers takes the last."""
    chunks = mutations.split(content)
    if sum(kind == b'IHDR' for kind, _ in chunks) != 1:
        return False
    if not _is_plain(content, channels):
        return True
    try:
        size = len(zlib.decompress(b''.join(data for kind, data in chunks if kind == b'IDAT')))
    except zlib.error:
        return False
    columns, rows = struct.unpack_from('>II', content, 16)
    return size >= rows * (columns * channels + 1)


def _is_plain(content: bytes, channels: int) -> bool:
    return content[24:29] == bytes([8, {1: 0, 3: 2}[channels], 0, 0, 0])


def _converted(image: Image.Image, channels: int) -> np.ndarray:
    """uint8 [h, w, channels]: grey or RGB, of 16 bits the upper ones."""
    if image.mode.startswith('I;16'):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], channels, -1)
    pixels = np.asarray(image.convert({1: 'L', 3: 'RGB'}[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def plain_rows(content: bytes, channels: int, most: int) -> np.ndarray:
    """uint8 [rows, columns, channels]: the first rows of a PNG as far as they can be read, byte by byte."""
    columns = int.from_bytes(content[16:20])
    packed, at, length = b'', 8, columns * channels
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] == b'IDAT':
            packed += content[at + 8 : at + 8 + size]
        at += 12 + size
    unpacker, data = zlib.decompressobj(-15), bytearray()
    try:
        for place in range(2, len(packed)):
            data += unpacker.decompress(packed[place : place + 1])
            if len(data) >= most * (length + 1):
                break
    except zlib.error:
        pass
    rows, above = [], [0] * min(length, len(data))
    for start in range(0, min(len(data) // (length + 1), most) * (length + 1), length + 1):
        row = list(data[start + 1 : start + 1 + length])
        for x in range(length):
            left, corner = (row[x - channels], above[x - channels]) if x >= channels else (0, 0)
            estimate = left + above[x] - corner
            nearest = min((left, above[x], corner), key=lambda value: abs(value - estimate))
            predicted = {0: 0, 1: left, 2: above[x], 3: (left + above[x]) // 2, 4: nearest}.get(data[start])
            if predicted is None:
                return np.array(rows, np.uint8).reshape(-1, columns, channels)
            row[x] = (row[x] + predicted) % 256
        rows.append(row)
        above = row
    return np.array(rows, np.uint8).reshape(-1, columns, channels)


def _check_bordered(content: bytes, whole, window, channels: int, outcomes: Outcomes) -> None:
    """The window with a border, as training reads it; of a JPEG it is that of Pillow."""
    from data_prep import png
    from unet.data import decoding

    reader = 'trainer' if png.is_png(content) else 'trainer, JPEG'
    top, left, height, width = window
    found = _attempt(outcomes, reader, decoding.read_window, content, window, channels=channels, fill=7)
    if found is None:
        return
    assert found.shape == (height, width, channels)
    wider = (top - 3, left - 2, height + 5, width + 4)
    around = _attempt(outcomes, reader, decoding.read_window, content, wider, channels=channels, fill=7)
    if not png.is_png(content):
        if b'\xff\xc2' in content:
            return  # what is missing of a progressive image, each decoder makes up from what lies around it
        if whole is not None and whole.mode in ('L', 'RGB'):
            np.testing.assert_array_equal(found, _converted(whole, channels)[top : top + height, left : left + width])
    if around is not None:
        np.testing.assert_array_equal(around[3 : 3 + height, 2 : 2 + width], found)


if __name__ == '__main__':
    app.run(main)
