import concurrent.futures
import contextlib
import io
import random
import shutil
import sys

import numpy as np
import pytest
from etils import epath

from data_prep import executors, images, png, records, stage_tfrecords, verification
from launch import entry, record_folder
from tests import tiny, trees


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """`source`, and `records` of it."""
    folder = tmp_path_factory.mktemp('verify')
    trees.write_tree(folder / 'source', {'train': ['a_1', 'a_2', 'b_1', 'b_2'], 'val': ['c_1']})
    trees.build_here(folder / 'source', folder / 'records')
    return folder


def verify(*flags):
    return tiny.run([sys.executable, '-m', 'data_prep.verify_tfrecords', *flags])


def problems(data_dir, source=None) -> str:
    with pytest.raises(entry.UserError) as failure:
        verification.check(data_dir, source and str(source), 1)
    assert failure.value.status == entry.BAD_DATA
    return str(failure.value)


def test_whole_folder_passes(folder):
    done = verify(f'--data_dir={folder / "records"}', f'--cityscapes_dir={folder / "source"}')
    assert done.returncode == 0, done.stderr
    assert 'All 5 records are whole and equal to its manifest and' in done.stdout and 'seed 2019' in done.stdout


@pytest.mark.parametrize('encoding', [images.Encoding('jpeg', 90), images.Encoding('png', size=(12, 20))])
def test_encoded_folder_is_compared_with_an_encoding_of_its_source(folder, tmp_path, encoding):
    trees.build_here(folder / 'source', tmp_path / 'records', encoding=encoding)
    assert verification.check(tmp_path / 'records', str(folder / 'source'), 1)


def test_other_bytes_of_the_same_pixels_are_no_difference(folder, tmp_path, monkeypatch):
    """As another version of Pillow or zlib would write them."""
    trees.build_here(folder / 'source', tmp_path / 'records', encoding=images.Encoding('png', size=(12, 20)))
    one_thread = concurrent.futures.ThreadPoolExecutor(1)
    monkeypatch.setattr(executors, 'worker_pool', lambda workers: contextlib.nullcontext(one_thread))
    written = []

    def encode(image):
        content = io.BytesIO()
        image.save(content, 'PNG', compress_level=0)
        written.append(content.getvalue())
        return written[-1]

    monkeypatch.setattr(images, '_encode_png', encode)
    assert verification.check(tmp_path / 'records', str(folder / 'source'), 1)
    assert len(written) == 10


def test_what_is_stored_as_it_is_is_compared_and_not_decoded(folder, tmp_path, monkeypatch):
    one_thread = concurrent.futures.ThreadPoolExecutor(1)
    monkeypatch.setattr(executors, 'worker_pool', lambda workers: contextlib.nullcontext(one_thread))
    trees.build_here(folder / 'source', tmp_path / 'jpeg', encoding=images.Encoding('jpeg'))
    decoded = []
    decode = png.decode
    monkeypatch.setattr(png, 'decode', lambda encoded: decoded.append(encoded) or decode(encoded))
    assert verification.check(folder / 'records', str(folder / 'source'), 1)
    assert not decoded or not png.is_compiled()
    assert verification.check(tmp_path / 'jpeg', str(folder / 'source'), 1)
    assert len(decoded) >= 5
    monkeypatch.setattr(images, 'count_pixels', lambda label: np.bincount(np.asarray(label).ravel() ^ 1, minlength=256))
    assert 'the class histogram of train is not that of its labels' in problems(folder / 'records', folder / 'source')


@pytest.mark.parametrize('file', ['index-train.json', 'manifest.json', 'dataset_info.json'])
@pytest.mark.parametrize('content', ['', '{}', '[]', '7', 'null', '{"shards": [{}]}', '{"splits": 7}'])
def test_a_file_of_the_folder_that_is_something_else_is_named(folder, tmp_path, file, content):
    data_dir = shutil.copytree(folder / 'records', tmp_path / 'records')
    (data_dir / file).write_text(content)
    reads = [
        lambda: (records.read_split(data_dir, 'train'), records.class_pixels(data_dir, ('train',))),
        lambda: verification.check(data_dir, None, 1),
        lambda: stage_tfrecords.stage(epath.Path(data_dir), tmp_path / 'staged', [], leave_free=0, workers=1),
    ]
    for read in reads[:2] if file == 'index-train.json' else reads:  # which is copied as it is
        with pytest.raises(entry.UserError, match=file) as failure:
            read()
        assert failure.value.status in (entry.BAD_DATA, entry.MISSING_INPUT)


def test_every_flipped_byte_is_found(folder, tmp_path):
    """In any file of the folder; 50 places, each file at least once."""
    rng = random.Random(0)
    shutil.copytree(folder / 'records', tmp_path / 'records')
    files = sorted((tmp_path / 'records').iterdir())
    assert {'manifest.json', 'dataset_info.json', 'features.json', 'index-train.json', 'labels.json'} <= {
        path.name for path in files
    }
    for number in range(50):
        path = files[number % len(files)]
        whole = bytearray(path.read_bytes())
        at = rng.randrange(len(whole))
        flipped = whole.copy()
        flipped[at] ^= rng.randrange(1, 256)
        path.write_bytes(flipped)
        text = problems(tmp_path / 'records')
        assert path.name in text
        if path.name.startswith('cityscapes-'):
            assert 'image id' in text
        path.write_bytes(whole)
    verification.check(tmp_path / 'records', None, 1)


def test_missing_and_foreign_shards_are_found(folder, tmp_path):
    shutil.copytree(folder / 'records', tmp_path / 'records')
    shard = next((tmp_path / 'records').glob('cityscapes-train*00001-of*'))
    foreign = shard.with_name(shard.name.replace('train', 'test'))
    shard.rename(foreign)
    text = problems(tmp_path / 'records')
    assert f'{shard.name}: missing' in text and f'{foreign.name}: not in the manifest' in text


def test_differences_from_the_source_are_named(folder, tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(folder / 'source', source)
    trees.write_tree(source, {'train': ['z_1']})
    (source / 'leftImg8bit/train/a/a_2_leftImg8bit.png').unlink()
    (source / 'gtFine/train/a/a_2_gtFine_labelIds.png').unlink()
    for name, array in (
        ('leftImg8bit/train/a/a_1_leftImg8bit.png', tiny.scene(trees.SIZE, 77)[0]),
        ('gtFine/train/b/b_1_gtFine_labelIds.png', tiny.scene(trees.SIZE, 78)[1]),
    ):
        (source / name).write_bytes(tiny.png(array))
    text = problems(folder / 'records', source)
    assert 'image id z_1 is not in the records' in text and 'image id a_2: stored, but not in' in text
    assert 'image id a_1: its image differs from leftImg8bit/train/a/a_1_leftImg8bit.png' in text
    assert 'image id b_1: its label differs from gtFine/train/b/b_1_gtFine_labelIds.png' in text
    assert '4 problem(s)' in text


def test_folder_that_tfds_built_is_read_too(folder, tmp_path):
    for path in (folder / 'records').iterdir():
        if not path.name.startswith(('index', 'manifest', 'labels')):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert verification.check(tmp_path, str(folder / 'source'), 1) is None
    shard = max(tmp_path.glob('cityscapes-train*'))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert shard.name in problems(tmp_path)


def test_unfinished_and_missing_folders(folder, tmp_path):
    assert verify(f'--data_dir={tmp_path}').returncode == entry.MISSING_INPUT
    shutil.copytree(folder / 'records', tmp_path / 'records')
    (tmp_path / 'records' / record_folder.BUILDING).mkdir()
    (tmp_path / 'records' / record_folder.PLAN).touch()
    assert 'has not finished' in problems(tmp_path / 'records')
