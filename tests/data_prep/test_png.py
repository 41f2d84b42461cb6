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
def test_what_does_not_fit_or_is_no_png():
    """In the compiled part itself, whatever its caller checks."""
    whole = grey_png(b'\x00\x07\x08' * 3, 2, 3)

    def read(columns=2, channels=1, top=0, left=0, room=6, height=3, width=2, encoded=whole):
        out = bytearray(room)
        png._png.read_window(encoded, columns, channels, top, left, out, height, width, *png._INFLATE)
        return bytes(out)

    assert read() == b'\x07\x08' * 3 and read(top=1, left=1, height=2, width=1, room=2) == b'\x08\x08'
    for wrong in (
        *({'room': 5}, {'room': 7}, {'columns': 0}, {'columns': 2**62}, {'channels': 2}, {'encoded': b''}),
        *({'left': 1}, {'left': -1}, {'left': 2**63 - 1}, {'top': -1}, {'top': 2**62}),
        *({'height': 0, 'room': 0}, {'width': 0, 'room': 0}, {'width': 2**63 - 1}, {'channels': 3}),
    ):
        with pytest.raises(ValueError, match='sizes do not fit'):
            read(**wrong)
    for rows, reason in ((b'\x00\x07\x07\x05\x07\x07', 'unknown filter'), (b'\x00\x07', 'end too early')):
        with pytest.raises(ValueError, match=reason):
            read(height=2, room=4, encoded=grey_png(rows, 2, 2))
    for end in range(8, len(whole) - 26):
        with pytest.raises(ValueError, match='end too early|damaged'):
            read(encoded=whole[:end])


@COMPILED
@pytest.mark.parametrize('pieces', [1, 3, 500])
def test_pixels_lie_in_any_number_of_chunks(pieces):
    """Empty ones and others between them among it."""
    values = np.random.default_rng(0).integers(0, 4, (300, 401)).astype(np.uint8)
    encoded = grey_png(b''.join(b'\x00' + row.tobytes() for row in values), 401, 300, pieces=pieces)
    first = encoded.index(b'IDAT') - 4
    encoded = encoded[:first] + chunk(b'IDAT', b'') + chunk(b'tEXt', b'a\0b') + encoded[first:]
    found = png.read_window(encoded, (7, 5, 290, 390), channels=1)
    np.testing.assert_array_equal(found[..., 0], values[7:297, 5:395])


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_size_of_an_image_is_read_off_its_header(kind):
    """However much stands before it in the file."""
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = 'a long description ' * 3000
    Image.new('RGB', (31, 17)).save(content, kind, exif=exif, icc_profile=bytes(200_000))
    assert png.image_size(content.getvalue()) == (17, 31)
    moved = grey_png(bytes(6), 2, 2).replace(png.SIGNATURE, png.SIGNATURE + chunk(b'tEXt', b'a\0' + bytes(20)))
    for damaged in (b'', b'no image', content.getvalue()[:10], png.SIGNATURE + bytes(9), moved, grey_png(b'', 0, 5)):
        with pytest.raises(ValueError):
            png.image_size(damaged)


@COMPILED
def test_header_of_an_enormous_image_is_not_believed():
    with pytest.raises(ValueError, match='cannot hold'):
        png.read_window(grey_png(bytes(9), 1 << 30, 1 << 30), (0, 0, 1 << 30, 1 << 30), channels=1)


def test_which_reader_is_in_use(monkeypatch):
    if png.is_compiled():
        assert png.describe_reader() == 'compiled'
    monkeypatch.setattr(png, '_png', None)
    assert not png.is_compiled() and 'Pillow' in png.describe_reader()
    label = tiny.scene((24, 40), 0)[1]
    found = png.read_window(tiny.png(label), (3, 5, 10, 20), channels=1)
    np.testing.assert_array_equal(found[..., 0], label[3:13, 5:25])


def test_sixteen_bits_become_the_upper_eight():
    values = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    found = png.read_window(tiny.png(values), (1, 2, 5, 8), channels=3)
    np.testing.assert_array_equal(found, np.repeat((values >> 8).astype(np.uint8)[1:, 2:, None], 3, -1))
