"""data_prep.stage_tfrecords: a copy that can be trusted, with links where there is no room."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from data_prep import records
from tests import tiny, trees


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> pathlib.Path:
    """A record folder with a manifest."""
    folder = tmp_path_factory.mktemp('built')
    stems = {'train': [f'x_{n}' for n in range(6)], 'val': ['y_1', 'y_2'], 'test': ['z_1', 'z_2']}
    trees.build_here(trees.write_tree(folder / 'dataset', stems), folder / 'records')
    return folder / 'records'


def command(source, target, *flags) -> list[str]:
    program = [sys.executable, '-m', 'data_prep.stage_tfrecords', '--leave_free_gb=0']
    return [*program, f'--data_dir={source}', f'--to={target}', *flags]


def stage(source, target, *flags) -> subprocess.CompletedProcess:
    return tiny.run(command(source, target, *flags))


def same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Both folders hold the same examples, read the way training reads them."""
    for name, size in records.split_sizes(one).items():
        if not size:
            continue
        left, right = records.read_split(one, name), records.read_split(other, name)
        assert left.digest() == right.digest()
        assert [records.read_example(left, n) for n in range(size)] == [
            records.read_example(right, n) for n in range(size)
        ]


def shards(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    return sorted(folder.glob(f'*-{split}.tfrecord-*'))


def test_a_copy_holds_the_same_and_a_second_time_nothing_is_copied(built, tmp_path):
    done = stage(built, tmp_path / 'nvme/copy')
    assert done.returncode == 0, done.stderr
    same(built, tmp_path / 'nvme/copy')
    assert not any(path.is_symlink() for path in (tmp_path / 'nvme/copy').iterdir())
    count = len(list(built.glob('*.tfrecord-*')))
    assert f'{count} shards copied' in done.stdout
    again = stage(built, tmp_path / 'nvme/copy')
    assert again.returncode == 0 and f'0 shards copied from {built}, {count} were there already' in again.stdout


def test_other_splits_stay_where_they_are(built, tmp_path):
    assert stage(built, tmp_path, '--splits=train,validation').returncode == 0
    same(built, tmp_path)
    assert all(path.is_symlink() for path in shards(tmp_path, 'test'))
    assert not any(path.is_symlink() for path in [*shards(tmp_path, 'train'), *shards(tmp_path, 'validation')])
    unknown = stage(built, tmp_path, '--splits=train,val')
    assert unknown.returncode == 66 and 'no split val;' in unknown.stderr


def test_a_disk_that_is_too_small_gets_links(built, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    done = stage(built, tmp_path / 'copy', f'--leave_free_gb={free / 1e9 + 1}')
    assert done.returncode == 0 and 'no room for' in done.stdout
    same(built, tmp_path / 'copy')
    assert all(path.is_symlink() for path in shards(tmp_path / 'copy', 'train'))


def test_a_damaged_shard_never_gets_its_name(built, tmp_path):
    source = shutil.copytree(built, tmp_path / 'source')
    victim = shards(source, 'train')[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = stage(source, tmp_path / 'copy')
    assert done.returncode == 65 and victim.name in done.stderr and 'SHA-256' in done.stderr
    assert not (tmp_path / 'copy' / victim.name).exists()
    assert not (tmp_path / 'copy' / records.DATASET_INFO).exists()
    victim.write_bytes((built / victim.name).read_bytes())
    assert stage(source, tmp_path / 'copy').returncode == 0
    same(built, tmp_path / 'copy')


def test_what_is_damaged_or_missing_is_all_named_and_the_rest_is_copied(built, tmp_path):
    source = shutil.copytree(built, tmp_path / 'source')
    cut, gone, other = shards(source, 'train')[1], shards(source, 'train')[3], shards(source, 'validation')[0]
    cut.write_bytes(cut.read_bytes()[:-9])
    other.write_bytes(bytes(50))
    gone.unlink()
    done = stage(source, tmp_path / 'copy', '--workers=1')
    assert done.returncode == 65 and len(done.stderr.splitlines()) == 3
    assert all(file.name in done.stderr for file in (cut, gone, other)) and 'missing' in done.stderr
    there = {path.name for path in (tmp_path / 'copy').glob('[!.]*')}
    assert there == {path.name for path in source.glob('*.tfrecord-*')} - {cut.name, other.name}
    assert not list((tmp_path / 'copy').glob('.*.tmp'))
    for file in (cut, gone, other):
        file.write_bytes((built / file.name).read_bytes())
    assert '3 shards copied' in stage(source, tmp_path / 'copy').stdout
    same(built, tmp_path / 'copy')


def test_a_folder_that_is_built_anew_is_copied_anew(built, tmp_path):
    source = shutil.copytree(built, tmp_path / 'source')
    assert stage(source, tmp_path / 'copy').returncode == 0
    newer = shards(source, 'train')[0]
    os.utime(newer, (1e9, 1e9))
    for of_earlier_build in ('cityscapes-train.tfrecord-00000-of-00099', 'cityscapes-extra.tfrecord-00000-of-00001'):
        (tmp_path / 'copy' / of_earlier_build).symlink_to('/nowhere')
    done = stage(source, tmp_path / 'copy')
    assert '1 shards copied' in done.stdout
    records.check_complete(tmp_path / 'copy')
    assert {path.name for path in (tmp_path / 'copy').glob('*.tfrecord-*')} == {
        path.name for path in source.glob('*.tfrecord-*')
    }


def test_killed_while_it_copies_it_goes_on_and_two_take_turns(tmp_path):
    """A folder of TFDS's kind, without a manifest, large enough to be killed in."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
    label = np.full((1000, 1500), 7, np.uint8)
    source = tiny.write_folder(tmp_path / 'source', train=[(image, label)] * 6)
    target = tmp_path / 'copy'
    killed = subprocess.Popen(command(source, target, '--workers=1'), cwd=tiny.ROOT, stdout=subprocess.PIPE)
    while not list(target.glob('.*.tmp')):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert not (target / records.DATASET_INFO).exists()
    both = [subprocess.Popen(command(source, target), cwd=tiny.ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    said = [one.communicate()[0].decode() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum(int(text.partition(' shards copied')[0].split()[-1]) for text in said) <= 2
    same(source, target)
    assert not list(target.glob('.*.tmp'))


def test_mistakes_are_named(built, tmp_path):
    (tmp_path / 'file').write_text('')
    for status, said, target in ((64, 'stands where a folder should be', tmp_path / 'file/x'), (64, 'itself', built)):
        done = stage(built, target)
        assert done.returncode == status and said in done.stderr, done.stderr
    done = stage(tmp_path / 'nothing', tmp_path / 'x')
    assert done.returncode == 66 and 'no dataset here' in done.stderr
