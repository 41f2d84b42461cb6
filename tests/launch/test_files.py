"""Files of owners whose user id has no name, as in many containers and on shared filesystems."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest
import tensorflow as tf
from etils import epath

from data_prep import records, stage_tfrecords
from launch import entry, files
from tests import tiny
from unet.training import checkpoint

NAMELESS = 4242
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason='only root gives files and processes another owner')


@pytest.fixture
def folder(tmp_path):
    return tiny.write_folder(tmp_path / 'records', train=tiny.scenes(4), validation=tiny.scenes(2, seed=1))


@pytest.fixture
def open_to_all():
    """A folder that other users reach too, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield pathlib.Path(path)


def give_away(folder: pathlib.Path) -> None:
    for path in (folder, *folder.rglob('*')):
        os.chown(path, NAMELESS, NAMELESS)


def test_size_and_time_are_those_of_the_system(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'12345')
    os.utime(path, (7, 7.9))
    assert files.stat(path) == (5, 7)
    with pytest.raises(FileNotFoundError):
        files.stat(tmp_path / 'none')


@AS_ROOT
def test_records_of_an_owner_without_a_name_are_read_and_staged(tmp_path, folder):
    give_away(folder)
    split = records.read_split(folder, 'train')
    assert len(split) == 4 and records.read_example(split, 3)['image_id'] == b'train_003'
    target = tmp_path / 'staged'
    assert stage_tfrecords.stage(epath.Path(folder), target, [], leave_free=0, workers=1) == (4, 0, 0)
    assert stage_tfrecords.stage(epath.Path(folder), target, [], leave_free=0, workers=1) == (0, 4, 0)


def as_nameless(command: list[str]) -> subprocess.CompletedProcess:
    as_user = ['setpriv', f'--reuid={NAMELESS}', f'--regid={NAMELESS}', '--clear-groups']
    as_user += ['--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search']  # Python may lie in root's home
    environ = os.environ | {'HOME': '/nowhere'}
    return subprocess.run([*as_user, *command], cwd=tiny.ROOT, env=environ, capture_output=True, text=True)


@AS_ROOT
def test_what_may_not_be_read_is_not_taken_for_missing(open_to_all, folder):
    """A run that has begun would begin anew, and records would be said not to be there."""
    folder, run = shutil.copytree(folder, open_to_all / 'records'), open_to_all / 'run'
    contents = tf.train.Checkpoint(value=tf.Variable(1.0))
    path = checkpoint.save(str(run), contents, step=1, keep=1)
    cases = [
        (run, lambda: checkpoint.list_newest_first(run)),
        (pathlib.Path(f'{path}.index'), lambda: checkpoint.restore(str(run), contents)),
        (pathlib.Path(f'{path}.data-00000-of-00001'), lambda: checkpoint.restore(str(run), contents)),
        (folder, lambda: records.read_split(folder, 'train')),
        (folder / records.DATASET_INFO, lambda: records.read_split(folder, 'train')),
        (folder / records.index_file('train'), lambda: records.read_split(folder, 'train')),
    ]
    for closed, read in cases:
        read()
        mode = closed.stat().st_mode
        closed.chmod(0)
        os.seteuid(NAMELESS)
        try:
            with pytest.raises(PermissionError) as raised:
                read()
        finally:
            os.seteuid(0)
        found = entry.as_user_error(raised.value)
        assert found.status == entry.BAD_USAGE and str(closed) in str(found)
        closed.chmod(mode)


@AS_ROOT
@pytest.mark.skipif(not shutil.which('setpriv'), reason='setpriv (util-linux) starts a process of another user')
def test_a_user_without_a_name_or_a_home_trains(open_to_all, folder):
    """As the user of the project's image does: a number, whose home may not be written to."""
    home = open_to_all / 'home'
    home.mkdir()
    records_folder = shutil.copytree(folder, open_to_all / 'records')
    give_away(home)
    give_away(records_folder)
    done = as_nameless(tiny.train_command(home / 'run', records_folder, num_steps=2))
    assert done.returncode == entry.OK, done.stderr
    assert (home / 'run/report.html').stat().st_uid == NAMELESS
