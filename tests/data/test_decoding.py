import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import png, records
from launch import entry
from tests import tiny
from unet.data import crops, decoding, input_pipeline

COMPILED = pytest.mark.skipif(not png.is_compiled(), reason='not compiled')
FILTERS = range(5)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def encode(image: np.ndarray, filters: list[int], piece: int = 1000) -> bytes:
    """A PNG whose rows take these filters in turn, in chunks of `piece` bytes."""
    height, width, channels = image.shape
    rows = np.zeros((height + 1, (width + 1) * channels), int)  # with a black border above and to the left
    rows[1:, channels:] = image.reshape(height, -1)
    above, corner = rows[:-1, channels:], rows[:-1, :-channels]
    here, left = rows[1:, channels:], rows[1:, :-channels]
    p = left + above - corner
    distances = np.abs(p - np.stack([left, above, corner]))
    paeth = np.choose(distances.argmin(0), [left, above, corner])  # the first of equals, in this order
    predicted = [np.zeros_like(here), left, above, (left + above) // 2, paeth]
    filtered = bytearray()
    for y in range(height):
        kind = filters[y % len(filters)]
        filtered += bytes([kind]) + ((here - predicted[kind])[y] & 255).astype(np.uint8).tobytes()
    content = zlib.compress(bytes(filtered))
    header = struct.pack('>IIBBBBB', width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = [chunk(b'IDAT', content[at : at + piece]) for at in range(0, len(content), piece)]
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + b''.join(parts) + chunk(b'IEND', b'')


def picture(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Patches and noise, so that runs of equal pixels and changes of all sizes occur."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 7), -(-width // 9), channels)).repeat(7, 0).repeat(9, 1)
    noise = rng.integers(0, 256, (height, width, channels)) * (rng.random((height, width, 1)) < 0.3)
    return ((patches[:height, :width] + noise) % 256).astype(np.uint8)


def windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    rng = np.random.default_rng(1)
    some = [(int(rng.integers(-5, height)), int(rng.integers(-5, width)), 9, 11) for _ in range(4)]
    return [(0, 0, height, width), (-3, -4, height + 5, width + 7), (height - 1, width - 1, 1, 1), *some]


def bordered(image: np.ndarray, window: tuple[int, int, int, int], fill: int) -> np.ndarray:
    wide = np.pad(image, [(20, 20), (20, 20), (0, 0)], constant_values=fill)
    top, left, height, width = window
    return wide[top + 20 : top + 20 + height, left + 20 : left + 20 + width]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('filters', [*([kind] for kind in FILTERS), [4, 4, 2, 4, 1, 3, 4, 4, 4, 0]])
def test_windows_of_a_png_are_those_of_the_whole_image(channels, filters):
    for size in [(1, 1), (2, 3), (5, 4), (23, 12), (40, 61)]:
        image = picture(*size, channels)
        encoded = encode(image, filters)
        decoded = np.asarray(Image.open(io.BytesIO(encoded))).reshape(image.shape)
        np.testing.assert_array_equal(decoded, image)  # the test's own encoder is right
        for window in windows(*size):
            found = decoding.read_window(encoded, window, channels=channels, fill=77)
            np.testing.assert_array_equal(found, bordered(image, window, 77), err_msg=f'{size} {window}')


@COMPILED
def test_large_pngs_of_pillow_are_read_as_tensorflow_reads_them(monkeypatch):
    image, label = tiny.scene((600, 800), 3)
    for array, channels in ((image, 3), (label[..., None], 1)):
        encoded = tiny.png(array.squeeze())
        expected = tf.io.decode_png(encoded, channels=channels).numpy()
        np.testing.assert_array_equal(
            decoding.read_window(encoded, (0, 0, 600, 800), channels=channels, fill=0), expected
        )
        window = (201, 303, 307, 205)
        compiled = decoding.read_window(encoded, window, channels=channels, fill=0)
        np.testing.assert_array_equal(compiled, expected[201:508, 303:508])
        with monkeypatch.context() as patch:
            patch.setattr(png, '_png', None)
            np.testing.assert_array_equal(decoding.read_window(encoded, window, channels=channels, fill=0), compiled)


@pytest.mark.parametrize('mode, options', [('P', {}), ('RGBA', {}), ('L', {}), ('RGB', {'interlaced': True})])
def test_other_kinds_of_png_are_read_as_tensorflow_reads_them(mode, options):
    image = Image.fromarray(picture(30, 40, 3)).convert(mode)
    encoded = content_of(image)
    if options:
        encoded = tf_interlaced(np.asarray(image))
    found = decoding.read_window(encoded, (5, 6, 20, 30), channels=3, fill=0)
    np.testing.assert_array_equal(found, tf.io.decode_png(encoded, channels=3)[5:25, 6:36])


def content_of(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, 'PNG')
    return content.getvalue()


def tf_interlaced(image: np.ndarray) -> bytes:
    """An interlaced PNG (Adam7), made of its seven passes."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b''.join(
        b'\0' + row.tobytes() for top, left, down, right in passes for row in image[top::down, left::right] if row.size
    )
    header = struct.pack('>IIBBBBB', image.shape[1], image.shape[0], 8, 2, 0, 0, 1)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


@pytest.mark.parametrize('progressive', [False, True])
@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0'])
def test_windows_of_a_jpeg_are_those_of_pillow_and_opencv(subsampling, progressive):
    """To their outermost columns, whose colours depend on the next ones where they are stored at half the width."""
    content = io.BytesIO()
    options = {'subsampling': subsampling, 'progressive': progressive}
    Image.fromarray(picture(64, 96, 3)).save(content, 'JPEG', quality=90, **options)
    encoded = content.getvalue()
    whole = np.asarray(Image.open(content))
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], whole)
    some = [(16, 8, 32, 40), (16, 16, 32, 16), (5, 17, 9, 1), (60, 95, 4, 1), (0, 0, 64, 1)]
    for window in [*some, *windows(64, 96)]:
        found = decoding.read_window(encoded, window, channels=3, fill=77)
        np.testing.assert_array_equal(found, bordered(whole, window, 77), err_msg=str(window))


@pytest.mark.parametrize(
    'size, target', [((20, 30), (41, 17)), ((64, 96), (32, 48)), ((9, 9), (9, 9)), ((1, 1), (3, 5))]
)
def test_resizing_is_that_of_tensorflow_to_one_grey_level(size, target):
    image = picture(*size, 3)
    for smooth, method in ((True, 'bilinear'), (False, 'nearest')):
        found = decoding.resize(image, target, smooth=smooth)
        expected = tf.image.resize(image, target, method).numpy().astype(float)
        assert np.abs(found - expected).max() <= (1 if smooth else 0)
        mirrored = decoding.resize(image, target, smooth=smooth, flip=True)
        np.testing.assert_array_equal(mirrored, found[:, ::-1])


@pytest.mark.parametrize('seed', range(20))
def test_labels_come_from_the_nearest_pixel_and_lie_on_the_image(seed):
    """Each pixel of a resized label is the one that holds its centre, and an image that shows its columns and rows is
    interpolated at that place, to a grey level and half a pixel."""
    rng = np.random.default_rng(seed)
    size, target = (tuple(rng.integers(1, 200, 2).tolist()) for _ in range(2))
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(size, target, strict=True))
    image = np.broadcast_to(np.arange(size[1], dtype=np.uint8)[:, None], (*size, 3))
    image = np.where(np.arange(3) == 0, np.arange(size[0], dtype=np.uint8)[:, None, None], image)
    label = decoding.resize(image[..., :1], target, smooth=False)
    np.testing.assert_array_equal(label[..., 0], np.broadcast_to(rows[:, None], target))
    smooth = decoding.resize(image, target, smooth=True).astype(int)
    assert np.abs(smooth[..., 0] - rows[:, None]).max() <= 1 and np.abs(smooth[..., 1] - columns).max() <= 1
    np.testing.assert_array_equal(decoding.resize(image[:, ::-1], target, smooth=True), smooth[:, ::-1])


@COMPILED
def test_examples_do_not_depend_on_the_compiled_part(tmp_path, monkeypatch):
    folder = tiny.write_folder(tmp_path, train=tiny.scenes(3, (48, 64)))
    split = records.read_split(folder, 'train')

    def batches():
        reader = input_pipeline.Reader(split)
        make = input_pipeline.ExampleMaker(
            reader,
            crops.Sampler(input_pipeline.image_sizes(split), seed=1, crop=(32, 40), scale=(0.5, 2.0)),
            flip=0.5,
            color=(0.1, 0.1, 0.1),
            dropout=0.5,
            dropout_channels=8,
        )
        dataset = input_pipeline.train_batches(
            reader,
            make,
            crop=(32, 40),
            dropout_channels=8,
            positions=lambda number: range(2 * number, 2 * number + 2),
            first=0,
            last=6,
        )
        return list(dataset.as_numpy_iterator())

    compiled = batches()
    monkeypatch.setattr(png, '_png', None)
    for expected, found in zip(compiled, batches(), strict=True):
        assert expected.keys() == found.keys() == {'image', 'label', 'color', 'dropout_mask'}
        for name in expected:
            np.testing.assert_array_equal(expected[name], found[name])


@pytest.mark.parametrize('kind', ['png', 'jpeg'])
def test_damaged_files_raise_a_plain_error(kind):
    image = picture(60, 90, 3)
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    whole = content.getvalue()
    cut = {'png': [20, 40, 60, len(whole) // 2, len(whole) - 300], 'jpeg': [2, 100]}[kind]
    for encoded in [b'', b'something else', *(whole[:size] for size in cut)]:
        with pytest.raises(ValueError):
            decoding.read_window(encoded, (0, 0, 60, 90), channels=3, fill=0)
    with pytest.raises(ValueError, match='90x60 instead of 80x60'):
        decoding.read_window(whole, (0, 0, 60, 80), channels=3, fill=0, size=(60, 80))
    if kind == 'png':
        for place in (80, len(whole) // 2):  # within the compressed pixels
            damaged = bytearray(whole)
            damaged[place : place + 40] = bytes(40)
            with pytest.raises(ValueError):
                decoding.read_window(bytes(damaged), (0, 0, 60, 90), channels=3, fill=0)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, 'png', lambda array: content_of(Image.fromarray(array))[:400])
    split = records.read_split(tiny.write_folder(tmp_path, train=tiny.scenes(2)), 'train')
    reader = input_pipeline.Reader(split)
    reason = 'too early' if png.is_compiled() else 'truncated'
    with pytest.raises(entry.UserError, match=rf'tfrecord-00000-of-00002.*train_000 .*{reason}') as raised:
        reader.decode_image(0, reader.read(0)[0], (0, 0, 40, 56))
    assert raised.value.status == entry.BAD_DATA
