"""TFDS's own cityscapes builder makes a folder that is read and verified as it stands; its examples equal ours."""

import pathlib

import numpy as np
import pytest

from data_prep import records, verification
from tests import tiny, trees

SIZE = (1024, 2048)  # the only one that the builder takes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """`source`, its `zips`, and the builder's folder as its value."""
    tfds = pytest.importorskip('tensorflow_datasets')
    folder = tmp_path_factory.mktemp('tfds')
    for split, cities in {'train': ('ulm', 'bonn'), 'val': ('lindau',), 'test': ('bonn',)}.items():
        for number, city in enumerate(cities):
            label = np.kron(tiny.scene((64, 128), number)[1], np.ones((16, 16), np.uint8))
            stem = f'{split}/{city}/{city}_00000{number}_000019'
            trees.write(folder / 'source', f'gtFine/{stem}_gtFine_labelIds.png', tiny.png(label))
            image = np.repeat(label[..., None] * 5, 3, axis=-1)
            image[..., 1] += ord(split[1])  # so that no two images are alike
            trees.write(folder / 'source', f'leftImg8bit/{stem}_leftImg8bit.png', tiny.png(image))
    trees.zip_tree(folder / 'source', folder / 'zips')
    builder = tfds.builder('cityscapes/semantic_segmentation', data_dir=folder / 'tfds')
    config = tfds.download.DownloadConfig(manual_dir=folder / 'zips')
    builder.download_and_prepare(download_dir=folder / 'downloads', download_config=config)
    return folder, pathlib.Path(builder.data_dir)


def test_folder_is_read_and_its_index_made(folder):
    folder, built = folder
    trees.build_here(folder / 'zips', folder / 'records')
    for name in ('train', 'validation'):
        theirs, ours = records.read_split(built, name), records.read_split(folder / 'records', name)
        assert sorted(theirs.image_ids) == sorted(ours.image_ids)
        assert (theirs.height == 1024).all() and (theirs.width == 2048).all()
        for number, image_id in enumerate(theirs.image_ids):
            assert records.read_example(theirs, number) == records.read_example(ours, ours.image_ids.index(image_id))
    assert (built / records.index_file('train')).exists()


def test_folder_is_verified_against_its_source(folder):
    folder, built = folder
    assert verification.check(built, str(folder / 'source'), 1) is None
