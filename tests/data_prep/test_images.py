"""Label files are counted without being decoded; the counts are those of Pillow's pixels."""

import struct
import zlib

import numpy as np
import pytest

from data_prep import images
from tests import tiny

COMPILED = pytest.mark.skipif(images._png is None, reason='not compiled')


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(rows: bytes, width: int, height: int, interlaced: int = 0, pieces: int = 1) -> bytes:
    """A grey PNG of rows that are filtered already."""
    packed = zlib.compress(rows)
    cut = -(-len(packed) // pieces)
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, interlaced))
    data = b''.join(chunk(b'IDAT', packed[at : at + cut]) for at in range(0, len(packed), cut))
    return b'\x89PNG\r\n\x1a\n' + header + data + chunk(b'IEND', b'')


def random_rows(rng: np.random.Generator, width: int, height: int, zeros: float) -> bytes:
    """Any bytes are a valid image; each row begins with its filter, 0 to 4."""
    rows = rng.integers(0, 256, (height, width + 1), np.uint8) * (rng.random((height, width + 1)) >= zeros)
    rows[:, 0] = rng.integers(0, 5, height)
    return rows.astype(np.uint8).tobytes()


def by_pillow(encoded: bytes) -> list[int]:
    return np.bincount(np.asarray(images.decode(encoded)).ravel(), minlength=256).tolist()


@COMPILED
def test_counts_are_those_of_the_pixels(monkeypatch):
    """Of any filter in any row, and any mixture of zeros with other bytes."""
    rng = np.random.default_rng(0)
    sizes = [(width, zeros) for width in (1, 2, 7, 31, 32, 33, 100) for zeros in (0, 0.5, 0.95, 1)]
    files = [png(random_rows(rng, width, 64, zeros), width, 64, pieces=2) for width, zeros in sizes]
    expected = [by_pillow(encoded) for encoded in files]
    monkeypatch.setattr(images, 'decode', None)
    assert [images.count_label_pixels(encoded).tolist() for encoded in files] == expected


@COMPILED
def test_rows_that_are_not_what_they_should_be():
    count = images._png.count_pixels
    assert np.frombuffer(count(b'\x00\x07\x07' * 3, 2, 3), np.int64)[7] == 6
    for rows, width, height in (
        (b'', 2, 1),
        (bytes(5), 2, 2),
        (bytes(6), 2, 3),
        (bytes(4), -2, -4),
        (bytes(3), 0, 3),
        (bytes(3), 2**63 - 1, 1),
    ):
        with pytest.raises(ValueError, match='rows of'):
            count(rows, width, height)
    with pytest.raises(ValueError, match='unknown filter'):
        count(b'\x00\x07\x07\x05\x07\x07', 2, 2)


def test_what_is_not_counted_directly_is_decoded():
    rng = np.random.default_rng(1)
    label = tiny.scene((24, 40), 0)[1]
    for encoded in (tiny.png(label), png(random_rows(rng, 1, 1, 0), 1, 1, interlaced=1)):
        assert images.count_label_pixels(encoded).tolist() == by_pillow(encoded)
    for rows in (b'\x05' + bytes(40), bytes(30)):
        with pytest.raises(ValueError, match='cannot be decoded'):
            images.count_label_pixels(png(rows * 24, 40, 24))


@pytest.mark.parametrize('compiled', [pytest.param(True, marks=COMPILED), False])
def test_label_is_checked_alike_with_and_without_the_compiled_part(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(images, '_png', None)
    label = tiny.scene((24, 40), 0)[1]
    encoded = tiny.png(label)
    kept, counts = images.encode_label(encoded, 'a.png', (24, 40), set(range(34)), None)
    assert kept == encoded and counts.tolist() == np.bincount(label.ravel(), minlength=256).tolist()
    with pytest.raises(ValueError, match='is 40x24, its image 20x12'):
        images.encode_label(encoded, 'a.png', (12, 20), set(range(34)), None)
    with pytest.raises(ValueError, match='not in the label table'):
        images.encode_label(encoded, 'a.png', (24, 40), {0}, None)


def test_header_of_an_enormous_image_is_not_believed():
    with pytest.raises(ValueError, match='cannot be decoded'):
        images.count_label_pixels(png(bytes(9), 1 << 30, 1 << 30))
