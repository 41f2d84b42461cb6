import dataclasses
import errno
import os
import resource

import numpy as np
import pytest

from data_prep import records
from launch import entry
from tests import tiny
from unet.data import cache, crops, input_pipeline


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """Examples of two sizes."""
    pairs = tiny.scenes(5) + tiny.scenes(3, (48, 40))
    return records.read_split(tiny.write_folder(tmp_path_factory.mktemp('data'), train=pairs), 'train')


def iterate(split, last=12, **options):
    reader = input_pipeline.Reader(split)
    color = (0.1, 0.1, 0.1)
    resize = options.get('resize')
    sizes = np.broadcast_to(resize, (len(split), 2)) if resize else input_pipeline.image_sizes(split)
    sampler = crops.Sampler(sizes, seed=3, crop=(24, 32), scale=(0.5, 2.0))
    make = input_pipeline.ExampleMaker(reader, sampler, flip=0.5, color=color, **options)
    dataset = input_pipeline.train_batches(
        reader,
        make,
        crop=(24, 32),
        positions=lambda number: range(2 * number, 2 * number + 2),
        first=0,
        last=last,
    )
    return dataset.as_numpy_iterator()


@pytest.mark.parametrize('options', [{}, {'resize': (30, 44)}])
def test_a_cache_changes_no_example_and_reads_each_record_once(split, options, tmp_path, monkeypatch):
    """Over three epochs, in memory and on disk; on disk nothing is left, and there is no name to leave."""
    plain = list(iterate(split, **options))
    read, read_example = [], records.read_serialized
    monkeypatch.setattr(records, 'read_serialized', lambda *asked: (read.append(asked[1]), read_example(*asked))[1])
    for cache_dir in (None, tmp_path):
        read.clear()
        for number, (expected, found) in enumerate(
            zip(plain, iterate(split, cache=True, cache_dir=cache_dir, **options), strict=True)
        ):
            for name in expected:
                np.testing.assert_array_equal(expected[name], found[name])
            if number > 8:
                assert set(read) == set(range(8))
        # Two threads may ask for one example before it is there, at the border of two epochs.
        assert len(read) <= 8 + 2
        assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_hold_the_cache_is_told_at_once(split, tmp_path):
    huge = dataclasses.replace(split, height=np.full(8, 2_000_000, np.int32), width=np.full(8, 2_000_000, np.int32))
    with pytest.raises(
        entry.UserError, match=r'needs 128,000\.0 GB for 8 examples; .* GB are free\. Set TMPDIR'
    ) as raised:
        iterate(huge, cache=True, cache_dir=tmp_path)
    assert raised.value.status == entry.NO_STORAGE
    with pytest.raises(entry.UserError, match='nowhere: config.data.cache=disk .* No such file') as raised:
        iterate(split, cache=True, cache_dir=tmp_path / 'nowhere')
    assert raised.value.status == entry.NO_STORAGE


def test_a_limit_on_the_size_of_files_is_told_at_once(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(entry.UserError, match=os.strerror(errno.EFBIG)):
            cache.on_disk(None, np.full((3, 2), 1000), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_later_is_named(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    shapes = np.array([[3, 4]])
    load = cache.on_disk(
        lambda _: (np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4, 1), np.uint8)), shapes, str(tmp_path)
    )
    for call in (os.pwrite, os.preadv):
        monkeypatch.setattr(os, call.__name__, fails)
        with pytest.raises(OSError) as raised:
            load(0)
        found = entry.as_user_error(raised.value)
        assert found.status == entry.NO_STORAGE and str(found).startswith(f'{tmp_path}: ')
        monkeypatch.undo()
        load(0)
