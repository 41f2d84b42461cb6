"""The reader of PNG files by itself; tests/data/test_decoding.py reads windows of all kinds of files through it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep import png
from tests import tiny

COMPILED = pytest.mark.skipif(not png.is_compiled(), reason='not compiled')


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def grey_png(rows: bytes, width: int, height: int, interlaced: int = 0, pieces: int = 1) -> bytes:
    """A grey PNG of rows that are filtered already."""
    packed = zlib.compress(rows)
    cut = -(-len(packed) // pieces)
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, interlaced))
    data = b''.join(chunk(b'IDAT', packed[at : at + cut]) for at in range(0, len(packed), cut))
    return png.SIGNATURE + header + data + chunk(b'IEND', b'')


@COMPILED
def test_rows_that_are_not_what_they_should_be():
    out = np.zeros((3, 2, 1), np.uint8)
    png.unfilter(b'\x00\x07\x07' * 3, bytearray(2), 1, out, 0, 0, 2)
    assert (out == 7).all()
    for filtered, row, channels, room, skip, left, width in (
        (bytes(5), 2, 1, 6, 0, 0, 2),  # not whole rows
        (bytes(9), 2, 1, 5, 0, 0, 2),  # no room for them
        (bytes(9), 2, 1, 6, 0, 1, 2),  # beyond the right border
        (bytes(9), 2, 1, 6, 0, 2**63 - 1, 2),
        (bytes(9), 2, 1, 6, 0, 0, 2**63 - 1),
        (bytes(9), 2, 1, 6, -1, 0, 2),
        (bytes(9), 2, 1, 6, 0, -1, 2),
        (bytes(9), 2, 1, 6, 0, 0, 0),
        (bytes(9), 2, 2, 6, 0, 0, 1),
        (bytes(9), 0, 1, 6, 0, 0, 1),
        (bytes(9), 2, 3, 6, 0, 0, 1),
    ):
        with pytest.raises(ValueError, match='sizes do not fit'):
            png.unfilter(filtered, bytearray(row), channels, bytearray(room), skip, left, width)
    with pytest.raises(ValueError, match='unknown filter'):
        png.unfilter(b'\x00\x07\x07\x05\x07\x07', bytearray(2), 1, bytearray(4), 0, 0, 2)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_size_of_an_image_is_read_off_its_header(kind):
    """However much stands before it in the file."""
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = 'a long description ' * 3000
    Image.new('RGB', (31, 17)).save(content, kind, exif=exif, icc_profile=bytes(200_000))
    assert png.image_size(content.getvalue()) == (17, 31)
    for damaged in (b'', b'no image', content.getvalue()[:10], png.SIGNATURE + bytes(9)):
        with pytest.raises(ValueError):
            png.image_size(damaged)


@COMPILED
def test_header_of_an_enormous_image_is_not_believed():
    with pytest.raises(ValueError, match='cannot hold'):
        png.read_window(grey_png(bytes(9), 1 << 30, 1 << 30), (0, 0, 1 << 30, 1 << 30), channels=1)


def test_which_reader_is_in_use(monkeypatch):
    if png.is_compiled():
        assert png.describe_reader() == 'compiled'
    monkeypatch.setattr(png, 'unfilter', None)
    assert not png.is_compiled() and 'Pillow' in png.describe_reader()
    label = tiny.scene((24, 40), 0)[1]
    found = png.read_window(tiny.png(label), (3, 5, 10, 20), channels=1)
    np.testing.assert_array_equal(found[..., 0], label[3:13, 5:25])


def test_sixteen_bits_become_the_upper_eight():
    values = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    found = png.read_window(tiny.png(values), (1, 2, 5, 8), channels=3)
    np.testing.assert_array_equal(found, np.repeat((values >> 8).astype(np.uint8)[1:, 2:, None], 3, -1))
