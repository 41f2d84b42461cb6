import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from data_prep import build_tfrecords, labels, records, sources
from launch import entry
from tests import tiny


def write_tree(root: pathlib.Path, splits: dict[str, list[str]], size=(24, 40)) -> pathlib.Path:
    """A tree in the Cityscapes layout with a scene per stem; the city is what comes before the first '_'."""
    for split, stems in splits.items():
        for number, stem in enumerate(stems):
            image, label = tiny.scene(size, number)
            for kind, suffix, array in (('leftImg8bit', 'leftImg8bit', image), ('gtFine', 'gtFine_labelIds', label)):
                path = root / kind / split / stem.split('_')[0] / f'{stem}_{suffix}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tiny.png(array))
    return root


def build(source, data_dir, *flags) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        '-m',
        'data_prep.build_tfrecords',
        f'--cityscapes_dir={source}',
        f'--data_dir={data_dir}',
    ]
    return tiny.run(command + list(flags))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    stems = [f'{city}_{number:06d}_000019' for city in ('ulm', 'köln', 'bad berg') for number in range(8)]
    return write_tree(
        tmp_path_factory.mktemp('source'), {'train': stems, 'val': ['bonn_000000_000019', 'bonn_000001_000019']}
    )


@pytest.fixture(scope='module')
def built(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp('built') / 'records'
    done = build(source, folder, '--workers=2')
    assert done.returncode == 0, done.stderr
    return folder


def test_every_pair_is_stored_once_and_its_bytes_unchanged(source, built):
    split = records.read_split(built, 'train')
    assert len(split) == 24 and len(set(split.image_ids)) == 24
    for number, stem in enumerate(split.image_ids):
        city = stem.split('_')[0]
        example = records.read_example(split, number)
        image = source / f'leftImg8bit/train/{city}/{stem}_leftImg8bit.png'
        label = source / f'gtFine/train/{city}/{stem}_gtFine_labelIds.png'
        assert example['image_id'].decode() == stem
        assert example['image_left'] == image.read_bytes() and example['segmentation_label'] == label.read_bytes()
    assert {paths.split('_')[0] for paths in split.image_ids[:6]} != {'ulm'}  # cities are shuffled


def test_manifest_counts_what_is_there(built):
    manifest = records.read_manifest(built)
    pixels = manifest['splits']['train']['class_pixels']
    assert sum(pixels.values()) == 24 * 24 * 40 and pixels['7'] > 0
    for split in manifest['splits'].values():
        assert split['examples'] == sum(shard['examples'] for shard in split['shards'])
        for shard in split['shards']:
            assert (built / shard['file']).stat().st_size == shard['bytes']


def test_plain_tfds_opens_the_folder(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(built)
    assert builder.info.splits['train'].num_examples == 24
    (first, second) = builder.as_dataset('validation').as_numpy_iterator()
    assert first['image_left'].shape == (24, 40, 3) and second['segmentation_label'].shape == (24, 40, 1)
    assert len(builder.as_dataset('train[:25%]')) == 6


def test_tfds_folder_without_our_index_is_read_too(built, tmp_path):
    """As `tfds build cityscapes` leaves it: shards and TFDS's own metadata."""
    for path in built.iterdir():
        if not path.name.startswith(('index', 'manifest', 'labels')):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    ours, theirs = records.read_split(built, 'train'), records.read_split(tmp_path, 'train')
    assert ours.image_ids == theirs.image_ids and (ours.offset == theirs.offset).all()
    assert (theirs.height == 24).all() and (theirs.width == 40).all()
    assert records.read_label_table(tmp_path) == labels.CITYSCAPES


def test_pairs_are_made_by_name_not_by_position(tmp_path):
    """Sorted by file name, images come as a_h, a and labels as a, a_h: pairing by position would swap them."""
    source = write_tree(tmp_path, {'train': ['a', 'a_h']})
    images = sorted(path.name for path in (source / 'leftImg8bit/train/a').iterdir())
    masks = sorted(path.name for path in (source / 'gtFine/train/a').iterdir())
    assert [name.split('_left')[0] for name in images] != [name.split('_gt')[0] for name in masks]
    for pair in sources.find_pairs(source):
        assert pair.image.endswith(f'/{pair.image_id}_leftImg8bit.png')
        assert pair.label.endswith(f'/{pair.image_id}_gtFine_labelIds.png')


def test_records_do_not_depend_on_the_number_of_workers(source, built, tmp_path):
    assert build(source, tmp_path / 'one', '--workers=1').returncode == 0
    assert contents(tmp_path / 'one') == contents(built)


def test_killed_and_started_again_ends_the_same(source, built, tmp_path):
    folder = tmp_path / 'records'
    command = [sys.executable, '-m', 'data_prep.build_tfrecords', f'--cityscapes_dir={source}', f'--data_dir={folder}']
    for shards in (1, 4, 9):
        process = subprocess.Popen(command + ['--workers=1'], cwd=tiny.ROOT, start_new_session=True)
        while process.poll() is None and len(list(folder.glob('cityscapes-*'))) < shards:
            time.sleep(0.001)
        os.killpg(process.pid, 9)
        process.wait()
        if not (folder / 'manifest.json').exists():
            with pytest.raises(entry.Failure, match='not'):
                records.read_split(folder, 'train')
    assert build(source, folder).returncode == 0
    found = contents(folder)
    assert {name: found[name] for name in found if not name.endswith('.part')} == contents(built)


def test_finished_folder_is_left_alone(source, built):
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    again = build(source, built)
    assert again.returncode == 0 and 'complete' in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in built.iterdir()}


def test_other_sources_are_not_mixed_in(built, tmp_path):
    done = build(write_tree(tmp_path / 'other', {'train': ['x_000000_000019']}), built)
    assert done.returncode == entry.IN_USE and 'Pass another --data_dir' in done.stderr


def test_images_without_labels_are_stored_and_flagged(tmp_path):
    source = write_tree(tmp_path / 'source', {'test': ['x_1', 'x_2']})
    (source / 'gtFine/test/x/x_2_gtFine_labelIds.png').unlink()
    assert build(source, tmp_path / 'records').returncode == 0
    split = records.read_split(tmp_path / 'records', 'test')
    assert dict(zip(split.image_ids, split.labelled.tolist(), strict=True)) == {'x_1': True, 'x_2': False}


def palette_png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    picture = Image.fromarray(array).convert('P')
    picture.save(content, 'PNG')
    return content.getvalue()


IMAGE, LABEL = 'leftImg8bit/train/x/x_1_leftImg8bit.png', 'gtFine/train/x/x_1_gtFine_labelIds.png'


@pytest.mark.parametrize(
    'file, change, text',
    [
        (LABEL, None, 'no label file'),
        (IMAGE, None, 'no image'),
        (IMAGE, lambda content: content[:-40], 'truncated'),
        (IMAGE, lambda content: b'', 'not a readable image'),
        (IMAGE, lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:], 'checksum'),
        (IMAGE, lambda content: b'version https://git-lfs.github.com/spec/v1\n', 'not a readable image'),
        (IMAGE, lambda content: tiny.png(np.zeros((9, 9, 3), np.uint8)), 'is 9x9, its label file 40x24'),
        (LABEL, lambda content: tiny.png(np.full((24, 40), 255, np.uint8)), 'train ids'),
        (LABEL, lambda content: tiny.png(np.full((24, 40), 77, np.uint8)), '[77]'),
        (LABEL, lambda content: palette_png(np.zeros((24, 40), np.uint8)), 'mode P'),
        (LABEL, lambda content: tiny.png(np.zeros((24, 40), np.uint16)), 'mode I;16'),
        (LABEL, lambda content: content[:60], 'not a readable image'),
    ],
)
def test_bad_pairs_are_named_and_nothing_looks_finished(tmp_path, file, change, text):
    source = write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2']})
    if change is None:
        (source / file).unlink()
    else:
        (source / file).write_bytes(change((source / file).read_bytes()))
    with pytest.raises(entry.Failure) as failure:
        build_tfrecords.build(str(source), str(tmp_path / 'records'), 1)
    assert failure.value.status == entry.BAD_DATA and text in str(failure.value) and 'x_1' in str(failure.value)
    assert not (tmp_path / 'records' / records.MANIFEST).exists()


def test_wrong_folders_say_what_was_found(tmp_path):
    (tmp_path / 'wrong/images').mkdir(parents=True)
    done = build(tmp_path / 'wrong', tmp_path / 'records')
    assert done.returncode == entry.MISSING_INPUT and 'found: images' in done.stderr and 'leftImg8bit' in done.stderr
    assert not (tmp_path / 'records').exists()


def test_index_and_shards_must_agree(built, tmp_path):
    for path in built.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = next(tmp_path.glob('cityscapes-train*'))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(entry.Failure, match='the index says'):
        records.read_split(tmp_path, 'train')
    index = json.loads((built / 'index-train.json').read_text())
    assert [shard['file'] for shard in index['shards']] == sorted(shard['file'] for shard in index['shards'])
