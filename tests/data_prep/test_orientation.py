"""What EXIF turns is stored and seen upright, in every place, whatever else is wrong with it."""

import contextlib
import io
import json
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from data_prep import images, orientation, records, verification
from launch import entry
from tests import tiny, trees
from unet.data import media, samples

IMAGE = 'leftImg8bit/train/x/x_{}_leftImg8bit.{}'
LABEL = 'gtFine/train/x/x_{}_gtFine_labelIds.png'
TURNED = range(2, 9)


def with_orientation(pixels: np.ndarray, kind: str, number: int, order: str = '>') -> bytes:
    """A file whose pixels lie so that the orientation brings them to what is given; grey or RGB."""
    way_back = {6: 8, 8: 6}.get(number, number)
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = number
    exif.endian = order
    lying = orientation.turn(Image.fromarray(pixels), way_back if way_back in TURNED else orientation.UPRIGHT)
    lying.save(content, kind, exif=exif, **({} if kind == 'PNG' else {'quality': 100, 'subsampling': 0}))
    return content.getvalue()


def seen(encoded: bytes) -> np.ndarray:
    """As Pillow's own function turns it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))


def damaged(kind: str, number: int, way: str) -> bytes:
    """A file with an orientation beside tags that no program should have written."""
    entries = {
        'XResolution is text': [(0x0112, 3, 1, number << 16), (0x011A, 2, 4, 0x37320000)],
        'ImageWidth is a fraction': [(0x0100, 11, 1, 0x42200000), (0x0112, 3, 1, number << 16)],
        'orientation is text': [(0x0112, 2, 2, 0x36000000)],
        'orientation is 9': [(0x0112, 3, 1, 9 << 16)],
        'a thousand entries': [(0x0112, 3, 1, number << 16)],
    }[way]
    count = 1000 if way == 'a thousand entries' else len(entries)
    block = b'MM\0*' + struct.pack('>IH', 8, count) + b''.join(struct.pack('>HHII', *tag) for tag in entries) + bytes(4)
    content = io.BytesIO()
    Image.fromarray(tiny.scene(trees.SIZE, 0)[0]).save(content, kind, exif=b'Exif\0\0' + block)
    return content.getvalue()


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_orientations_are_those_of_pillow(kind):
    """And those that a graph finds, byte by byte."""
    in_graph = tf.function(
        lambda file: orientation.read(tf.cast(tf.io.decode_raw(file, tf.uint8), tf.int32)),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    pixels = tiny.scene(trees.SIZE, 0)[0]
    for number in range(10):
        for order in '<>':
            content, exif = io.BytesIO(), Image.Exif()
            exif.endian = order
            exif[0x010E], exif[0x0112] = 'other things', number
            Image.fromarray(pixels).save(content, kind, exif=exif, icc_profile=bytes(100_000))
            encoded = content.getvalue()
            found = orientation.read(encoded)
            assert found == int(in_graph(encoded)) == (number if number in range(1, 9) else orientation.UPRIGHT)
            turned = orientation.turn(Image.open(io.BytesIO(encoded)), found)
            np.testing.assert_array_equal(np.asarray(turned), seen(encoded))
    for cut in range(0, 200):
        assert orientation.read(encoded[:cut]) == int(in_graph(encoded[:cut]))


@pytest.mark.process
@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_every_orientation_is_stored_and_predicted_upright(tmp_path, capfd, kind):
    """Beside labels that lie upright; and so the panels in TensorBoard and the report show them."""
    source = tmp_path / 'source'
    scenes = {number: tiny.scene(trees.SIZE, number) for number in range(1, 9)}
    for number, (image, label) in scenes.items():
        trees.write(source, IMAGE.format(number, kind.lower()), with_orientation(image, kind, number))
        trees.write(source, LABEL.format(number), tiny.png(label))
    trees.build_here(source, tmp_path / 'records')
    assert '7 file(s) turned upright by their EXIF orientation' in capfd.readouterr().out
    split = records.read_split(tmp_path / 'records', 'train')
    for number, (image, label) in scenes.items():
        file = source / IMAGE.format(number, kind.lower())
        place = split.image_ids.index(f'x_{number}')
        stored, stored_label = samples.read(split, place)
        encoded = records.read_example(split, place)['image_left']
        np.testing.assert_array_equal(stored, seen(file.read_bytes()))
        np.testing.assert_array_equal(stored_label, label)
        np.testing.assert_array_equal(media.read_image(file), stored)
        assert np.abs(stored.astype(int) - image).max() <= (0 if kind == 'PNG' else 8)
        assert orientation.read(encoded) == orientation.UPRIGHT
        assert (encoded == file.read_bytes()) == (number == orientation.UPRIGHT)
    manifest = verification.check(tmp_path / 'records', str(source), workers=1)
    assert manifest['splits']['train']['turned'] == 7


@pytest.mark.parametrize('image_format', ['source', 'png', 'jpeg'])
def test_turned_images_are_stored_without_loss_or_as_the_build_is_told(image_format):
    image, _ = tiny.scene(trees.SIZE, 0)
    encoded = with_orientation(image, 'JPEG', 6)
    stored = images.encode_image(encoded, 'a.jpg', images.Encoding(image_format))
    assert stored.orientation == 6 and (stored.height, stored.width) == stored.source_size == trees.SIZE
    kept = Image.open(io.BytesIO(stored.encoded))
    assert kept.format == ('JPEG' if image_format == 'jpeg' else 'PNG')
    difference = np.abs(np.asarray(kept).astype(int) - seen(encoded))
    assert difference.max() <= (8 if image_format == 'jpeg' else 0)
    smaller = images.encode_image(encoded, 'a.jpg', images.Encoding(image_format, size=(12, 20)))
    assert (smaller.height, smaller.width) == (12, 20) and smaller.source_size == trees.SIZE


def test_a_label_is_turned_by_its_own_orientation(tmp_path, capfd):
    source = tmp_path / 'source'
    scenes = {number: tiny.scene(trees.SIZE, number) for number in (*TURNED, 9)}
    for number, (image, label) in scenes.items():
        trees.write(source, IMAGE.format(number, 'png'), tiny.png(image))
        trees.write(source, LABEL.format(number), with_orientation(label, 'PNG', number))
    trees.build_here(source, tmp_path / 'records')
    split = records.read_split(tmp_path / 'records', 'train')
    for number, (_, label) in scenes.items():
        np.testing.assert_array_equal(samples.read(split, split.image_ids.index(f'x_{number}'))[1], label)
    assert f'7 file(s) turned upright by their EXIF orientation, the first: {LABEL[:16]}' in capfd.readouterr().out
    assert json.loads((tmp_path / 'records/manifest.json').read_text())['splits']['train']['turned'] == 7


def test_a_label_drawn_on_the_pixels_as_they_lie_is_refused_with_both_sizes_and_the_orientation(tmp_path):
    source = tmp_path / 'source'
    image, _ = tiny.scene(trees.SIZE, 0)
    trees.write(source, IMAGE.format(1, 'jpg'), with_orientation(image, 'JPEG', 6))
    trees.write(source, LABEL.format(1), tiny.png(tiny.scene(trees.SIZE[::-1], 0)[1]))
    with pytest.raises(entry.UserError, match='is 24x40, its image 40x24, turned by its EXIF orientation 6') as failure:
        trees.build_here(source, tmp_path / 'records')
    assert failure.value.status == entry.BAD_DATA and 'exiftool' in str(failure.value)
    trees.write(source, IMAGE.format(1, 'png'), tiny.png(image))
    (source / IMAGE.format(1, 'jpg')).unlink()
    with pytest.raises(entry.UserError, match='is 24x40, its image 40x24. Was only one'):
        trees.build_here(source, tmp_path / 'records')


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')  # Pillow's, as programs ignore it
@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize(
    'way, expected',
    [
        ('XResolution is text', 6),
        ('ImageWidth is a fraction', 6),
        ('a thousand entries', 6),
        ('orientation is text', 1),
        ('orientation is 9', 1),
    ],
)
def test_damage_to_other_tags_does_no_harm(tmp_path, kind, way, expected):
    encoded = damaged(kind, 6, way)
    name = f'a.{kind.lower()}'
    (tmp_path / name).write_bytes(encoded)
    stored = images.encode_image(encoded, name, images.Encoding())
    assert stored.orientation == expected
    with contextlib.closing(Image.open(io.BytesIO(encoded))) as lying:
        upright = np.asarray(orientation.turn(lying, expected))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored.encoded))), upright)
    np.testing.assert_array_equal(media.read_image(tmp_path / name), upright)


@pytest.mark.process
def test_records_that_hold_what_is_turned_are_not_to_be_trusted(tmp_path, monkeypatch):
    """Of an older build, or made by others: training sees the pixels as they lie."""
    monkeypatch.setattr(tiny, 'png', lambda pixels: with_orientation(pixels, 'PNG', 3))
    folder = tiny.write_folder(tmp_path / 'records', train=tiny.scenes(2))
    with pytest.raises(entry.UserError, match='train_000: image_left is not upright by its EXIF') as failure:
        verification.check(folder, None, workers=1)
    assert failure.value.status == entry.BAD_DATA
