"""Label files are read and counted; the counts are those of Pillow's pixels."""

import numpy as np
import pytest

from data_prep import images, png
from tests import tiny
from tests.data_prep.test_bad_data import with_rows
from tests.data_prep.test_png import grey_png

COMPILED = pytest.mark.skipif(not png.is_compiled(), reason='not compiled')


def random_rows(rng: np.random.Generator, width: int, height: int, zeros: float) -> bytes:
    """Any bytes are a valid image; each row begins with its filter, 0 to 4."""
    rows = rng.integers(0, 256, (height, width + 1), np.uint8) * (rng.random((height, width + 1)) >= zeros)
    rows[:, 0] = rng.integers(0, 5, height)
    return rows.astype(np.uint8).tobytes()


def by_pillow(encoded: bytes) -> list[int]:
    return np.bincount(np.asarray(images.decode(encoded)).ravel(), minlength=256).tolist()


def counts(encoded: bytes) -> list[int]:
    return images.count_pixels(images.read_label(encoded)).tolist()


@COMPILED
def test_counts_are_those_of_the_pixels(monkeypatch):
    """Of any filter in any row, and any mixture of zeros with other bytes."""
    rng = np.random.default_rng(0)
    sizes = [(width, zeros) for width in (1, 2, 7, 31, 32, 33, 100) for zeros in (0, 0.5, 0.95, 1)]
    files = [grey_png(random_rows(rng, width, 65, zeros), width, 65, pieces=2) for width, zeros in sizes]
    expected = [by_pillow(encoded) for encoded in files]
    monkeypatch.setattr(png, 'decode', None)
    assert [counts(encoded) for encoded in files] == expected


def test_labels_of_every_kind_are_read_and_damaged_ones_are_not():
    rng = np.random.default_rng(1)
    label = tiny.scene((24, 40), 0)[1]
    for encoded in (tiny.png(label), grey_png(random_rows(rng, 1, 1, 0), 1, 1, interlaced=1)):
        assert counts(encoded) == by_pillow(encoded)
    for rows in (b'\x05' + bytes(40), bytes(30)):
        with pytest.raises(ValueError, match='cannot be decoded'):
            images.read_label(grey_png(rows * 24, 40, 24))


@pytest.mark.parametrize('compiled', [pytest.param(True, marks=COMPILED), False])
def test_label_is_checked_alike_with_and_without_the_compiled_part(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(png, '_png', None)
    label = tiny.scene((24, 40), 0)[1]
    encoded = tiny.png(label)
    kept, counts, _ = images.encode_label(encoded, 'a.png', (24, 40), set(range(34)), None)
    assert kept == encoded and counts.tolist() == np.bincount(label.ravel(), minlength=256).tolist()
    with pytest.raises(ValueError, match='is 40x24, its image 20x12'):
        images.encode_label(encoded, 'a.png', (12, 20), set(range(34)), None)
    with pytest.raises(ValueError, match='not in the label table'):
        images.encode_label(encoded, 'a.png', (24, 40), {0}, None)


def test_header_of_an_enormous_image_is_not_believed():
    with pytest.raises(ValueError, match='cannot be decoded'):
        images.read_label(grey_png(bytes(9), 1 << 30, 1 << 30))
    image = with_rows(2**31 - 1)(tiny.png(tiny.scene((24, 40), 0)[0]))
    with pytest.raises(ValueError, match='cannot hold 40 columns and 2147483647 rows'):
        images.encode_image(image, 'a.png', images.Encoding())
