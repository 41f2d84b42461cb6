"""Masks of ids, palette indices and colours become label ids by what the label table says that files hold."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep import images, labels, masks
from launch import entry
from tests import tiny

CAMVID = labels.find('camvid11')
# In CamVid's own colours: Sky, Car, Truck_Bus; Void, Child, ParkingBlock. In the 11 classes: sky, car twice, and so on.
COLORS = np.array(
    [[[128, 128, 128], [64, 0, 128], [192, 128, 192]], [[0, 0, 0], [192, 128, 64], [64, 192, 128]]], np.uint8
)
IDS = [[0, 8, 8], [11, 9, 4]]


def encoded(image: Image.Image, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, 'PNG', **options)
    return content.getvalue()


def of_palette(indices: list, **options) -> bytes:
    image = Image.fromarray(np.array(indices, np.uint8)).convert('P')
    image.putpalette([7, 7, 7] * 256)
    return encoded(image, **options)


def read(file: bytes, masks_are: str | None, table: labels.Table) -> list:
    found = masks.to_label_ids(file, 'a.png', masks_are, table)
    return np.asarray(images.decode(found) if isinstance(found, bytes) else found).tolist()


def test_grey_ids_are_kept_as_they_are():
    file = tiny.png(np.array([[0, 7, 33]], np.uint8))
    for masks_are in (None, masks.IDS):
        assert masks.to_label_ids(file, 'a.png', masks_are, labels.CITYSCAPES) is file


@pytest.mark.parametrize('options', [{}, {'bits': 4}])
def test_palette_indices_are_ids_where_that_is_said(options):
    file = of_palette([[0, 7, 7], [11, 13, 8]], **options)
    assert read(file, masks.IDS, labels.CITYSCAPES) == [[0, 7, 7], [11, 13, 8]]
    with pytest.raises(ValueError, match='palette PNG.*Pass --masks_are=ids if its palette indices.*=colors if'):
        read(file, None, labels.CITYSCAPES)


def test_ids_of_a_dataset_become_those_of_the_table():
    table = labels.find('mapillary_to_cityscapes')
    # Road, lane marking, manhole; bicyclist, unlabeled, parking.
    vistas = [[13, 24, 41], [20, 65, 10]]
    for file in (tiny.png(np.array(vistas, np.uint8)), of_palette(vistas)):
        assert read(file, masks.IDS, table) == [[7, 7, 7], [25, 0, 9]]
    with pytest.raises(ValueError, match='ids that are not in the label table: 66, 200'):
        read(tiny.png(np.array([[13, 66, 200]], np.uint8)), None, table)
    for name, void in (('bdd100k', 19), ('voc', 21), ('idd', 26)):
        assert read(tiny.png(np.array([[3, 255]], np.uint8)), None, labels.find(name)) == [[3, void]]


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_colors_become_ids(mode):
    image = Image.fromarray(COLORS)
    file = encoded(image.quantize(8) if mode == 'P' else image.convert(mode))
    assert read(file, masks.COLORS, CAMVID) == IDS
    with pytest.raises(ValueError, match='--masks_are=colors'):
        read(file, None, CAMVID)


def test_black_and_white_masks_are_colours_too():
    table = (labels.Label(0, 'background', 0, (0, 0, 0)), labels.Label(1, 'thing', 1, (255, 255, 255)))
    assert read(tiny.png(np.array([[0, 255]], np.uint8)), masks.COLORS, table) == [[0, 1]]


def test_unknown_colors_are_named_with_their_counts():
    wrong = np.repeat(COLORS, 4, axis=0)
    wrong[0], wrong[1, 0] = (1, 2, 3), (250, 0, 9)
    with pytest.raises(
        ValueError, match=r'holds 2 colour\(s\).*table: 1 2 3 \(3 pixels\), 250 0 9 \(1 pixels\). Add them'
    ):
        read(tiny.png(wrong), masks.COLORS, CAMVID)
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match=r'holds 400 colour\(s\).*\.\.\.\. Was it resized with smoothing'):
        read(tiny.png(noise), masks.COLORS, CAMVID)
    noise = np.dstack([noise, noise[..., 0]])
    with pytest.raises(ValueError, match='transparent pixels'):
        read(tiny.png(noise), masks.COLORS, CAMVID)


@pytest.mark.parametrize(
    'name, clash',
    [
        ('cityscapes', 'pole and polegroup the same colour, 153 153 153'),
        ('idd', 'obs-str-bar-fallback and sky'),
        ('voc', ''),
    ],
)
def test_colors_that_stand_for_two_classes_are_refused(name, clash):
    """Those of ids that are ignored alike, such as Cityscapes's five in black, may be the same."""
    table = labels.find(name)
    if not clash:
        return masks.check_table(table, masks.COLORS)
    with pytest.raises(entry.UserError, match=clash) as failure:
        masks.check_table(table, masks.COLORS)
    assert failure.value.status == entry.BAD_DATA
    masks.check_table(table, masks.IDS)


def test_ignored_ids_of_one_color_are_the_first():
    table = tuple(label for label in labels.CITYSCAPES if label.name != 'polegroup')
    assert read(tiny.png(np.array([[[0, 0, 0], [153, 153, 153]]], np.uint8)), masks.COLORS, table) == [[0, 17]]
