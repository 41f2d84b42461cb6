"""Work on a machine that has less than most: no shared memory between processes, no locks on its file system."""

import errno
import fcntl
import multiprocessing.synchronize
import os

import pytest
from etils import epath

from data_prep import build, cityscapes_layout, executors, images, labels, shards, stage_tfrecords, verification
from launch import entry, files
from tests import trees


@pytest.fixture
def source(tmp_path):
    return trees.write_tree(tmp_path / 'source', {'train': ['a_1', 'a_2', 'b_1'], 'val': ['c_1']})


def no_shared_memory(*_, **__):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def build_in_pool(source, data_dir) -> None:
    settings = shards.Settings(str(source), str(data_dir), labels.CITYSCAPES, images.Encoding(), False)
    build.build(settings, lambda todo: executors.run_local(todo, settings, workers=2))


@pytest.mark.process
def test_without_shared_memory_threads_do_the_same_work(tmp_path, source, capfd, monkeypatch):
    build_in_pool(source, tmp_path / 'by processes')
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, '__init__', no_shared_memory)
    build_in_pool(source, tmp_path / 'by threads')
    assert capfd.readouterr().out.count('Note: /dev/shm: Function not implemented') == 1
    assert trees.contents(tmp_path / 'by processes') == trees.contents(tmp_path / 'by threads')
    verification.check(tmp_path / 'by threads', str(source), workers=2)


@pytest.mark.process
def test_without_shared_memory_a_failure_ends_the_other_threads(tmp_path, source, monkeypatch):
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, '__init__', no_shared_memory)
    monkeypatch.setattr(shards, 'stop', type(shards.stop)())
    settings = shards.Settings(str(source), str(tmp_path / 'none'), labels.CITYSCAPES, images.Encoding(), False)
    todo = sum(shards.plan(cityscapes_layout.scan(source).pairs, seed=1).values(), [])
    with pytest.raises(OSError) as raised:
        executors.run_local(todo, settings, workers=2)
    assert entry.as_user_error(raised.value) is not None and shards.stop.is_set()


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_work_goes_on_with_a_word(tmp_path, source, capfd, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', no_locks)
    trees.build_here(source, tmp_path / 'records')
    copied = stage_tfrecords.stage(epath.Path(tmp_path / 'records'), tmp_path / 'staged', [], leave_free=0, workers=1)
    assert copied == (4, 0, 0)
    assert capfd.readouterr().out.count('no locks on its file system') == 2


def test_a_lock_keeps_others_out(tmp_path):
    with open(tmp_path / 'lock', 'w') as ours, open(tmp_path / 'lock') as other:
        assert files.try_lock(ours) is True and files.try_lock(other) is False
    with open(tmp_path / 'lock') as other:
        assert files.try_lock(other, fcntl.LOCK_SH | fcntl.LOCK_NB) is True
