import os

import pytest

from launch import xla_cache


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    """What the tests leave in the environment is gone after them."""
    monkeypatch.setenv('TF_XLA_FLAGS', '')
    monkeypatch.delenv('TF_XLA_FLAGS')


def test_only_sealed_entries_are_kept(tmp_path, monkeypatch):
    """XLA ends the process over one that is cut off, as a host that loses power may leave it."""
    xla_cache.use(str(tmp_path))
    folder = os.environ['TF_XLA_FLAGS'].partition('=')[2]
    assert not os.listdir(tmp_path)  # a run that is refused leaves nothing
    os.makedirs(folder)
    for name in ('whole', 'cut'):
        with open(f'{folder}/{name}.pb', 'w') as entry:
            entry.write('compiled')
    xla_cache.seal(str(tmp_path))
    with open(f'{folder}/late.pb', 'w') as entry:
        entry.write('being writ')
    os.truncate(f'{folder}/cut.pb', 3)
    monkeypatch.delenv('TF_XLA_FLAGS')
    xla_cache.use(str(tmp_path))
    assert sorted(os.listdir(folder)) == ['sealed.json', 'whole.pb']
    assert os.environ['TF_XLA_FLAGS'].endswith(folder)
    with open(f'{folder}/cut.pb', 'w') as entry:
        entry.write('compiled anew')
    xla_cache.seal(str(tmp_path))
    monkeypatch.delenv('TF_XLA_FLAGS')
    xla_cache.use(str(tmp_path))
    assert sorted(os.listdir(folder)) == ['cut.pb', 'sealed.json', 'whole.pb']


def test_what_the_user_has_set_counts(tmp_path, monkeypatch):
    for flags in ('--tf_xla_persistent_cache_directory=/elsewhere', '--tf_xla_clustering_debug'):
        monkeypatch.setenv('TF_XLA_FLAGS', flags)
        xla_cache.use(str(tmp_path))
        assert os.environ['TF_XLA_FLAGS'].startswith(flags)
        assert os.environ['TF_XLA_FLAGS'].count('cache_directory') == 1


def test_a_workdir_that_cannot_be_written_to_has_no_cache(tmp_path):
    (tmp_path / 'file').touch()
    xla_cache.use(str(tmp_path / 'file'))
    assert 'TF_XLA_FLAGS' not in os.environ
