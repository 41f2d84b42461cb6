"""Source and records may lie on remote storage. Both ways in which epath reaches it are tried on file systems that are
not this machine's disk: tf.io.gfile on TensorFlow's ram://, and fsspec on its in-memory one, which stands for gs://."""

import json
import sys

import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations import memory

from data_prep import build_state, cityscapes_layout, images, pair_list, records, shards, stage_tfrecords, verification
from launch import entry, record_folder
from tests import trees


class Bucket(memory.MemoryFileSystem):
    """Names its files as gcsfs does: gs://bucket/file is bucket/file."""

    protocol = ('gs', 'gcs')

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix('gs://').removeprefix('gcs://'))

    def glob(self, path: str, **options) -> list[str]:
        return [found.lstrip('/') for found in super().glob(path, **options)]

    def walk(self, path: str, **options):
        return ((folder.lstrip('/'), *inside) for folder, *inside in super().walk(path, **options))


@pytest.fixture(scope='module')
def local(tmp_path_factory):
    """`source`, and `records` of it."""
    folder = tmp_path_factory.mktemp('local')
    trees.write_tree(folder / 'source', {'train': ['köln_1', 'köln_2', 'bad berg_1'], 'val': ['c_1'], 'test': ['d_1']})
    (folder / 'source/gtFine/test/d/d_1_gtFine_labelIds.png').unlink()
    trees.build_here(folder / 'source', folder / 'records')
    return folder


@pytest.fixture(params=['gfile', 'fsspec'])
def bucket(request, monkeypatch):
    """A remote folder that is empty."""
    if request.param == 'gfile':
        monkeypatch.setattr(gpath, '_URI_SCHEMES', gpath._URI_SCHEMES | {'ram'})
        monkeypatch.setattr(gpath, '_URI_PREFIXES', (*gpath._URI_PREFIXES, 'ram://'))
        monkeypatch.setitem(gpath._URI_MAP_ROOT, 'ram://', '/ram/')
        monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'ram', backend.tf_backend)
        epath.register_path_cls(('ram://',))(gpath.PosixGPath)
        folder = epath.Path('ram://bucket')
    else:
        for scheme in ('gs', 'gcs'):
            monkeypatch.setitem(sys.modules['fsspec.registry']._registry, scheme, Bucket)
        monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
        folder = epath.Path('gs://bucket')
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    return folder


def upload(tree, folder: epath.Path) -> None:
    for path in sorted(tree.rglob('*')):
        if path.is_file():
            there = folder / path.relative_to(tree).as_posix()
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())


def rewrite(path: epath.Path, change) -> None:
    content = change(path.read_bytes())
    path.unlink()  # ram:// would append
    path.write_bytes(content)


def download(folder: epath.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_remote_records_are_the_same_bytes_and_are_read_back(local, bucket, capfd):
    upload(local / 'source', bucket / 'source')
    for number, path in enumerate(trees.zip_tree(local / 'source', local / 'zips').iterdir()):
        (bucket / 'zips').mkdir(exist_ok=True)
        (bucket / f'zips/{number}.zip').write_bytes(path.read_bytes())  # ram:// has no folders: gtFine is gtFine_t...
    for source in ('source', 'zips'):
        trees.build_here(bucket / source, bucket / f'records of {source}')
        assert download(bucket / f'records of {source}') == trees.contents(local / 'records')
    capfd.readouterr()
    trees.build_here(bucket / 'source', bucket / 'records of source')
    assert 'complete; nothing to do' in capfd.readouterr().out

    folder = bucket / 'records of source'
    there, here = records.read_split(folder, 'train+test'), records.read_split(local / 'records', 'train+test')
    assert there.image_ids == here.image_ids and there.labelled.tolist() == [True] * 3 + [False]
    assert [records.read_example(there, place) for place in range(4)] == [
        records.read_example(here, place) for place in range(4)
    ]


def test_remote_build_goes_on_where_it_stopped(local, bucket, monkeypatch):
    upload(local / 'source', bucket / 'source')
    write_shard, written = shards.write_shard, []

    def at_most_two(shard, settings):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.file)
        write_shard(shard, settings)

    monkeypatch.setattr(shards, 'write_shard', at_most_two)
    with pytest.raises(KeyboardInterrupt):
        trees.build_here(bucket / 'source', bucket / 'records')
    with pytest.raises(entry.UserError, match='has not finished'):
        records.check_complete(bucket / 'records')
    written.clear()
    monkeypatch.setattr(shards, 'write_shard', lambda shard, settings: written.append(write_shard(shard, settings)))
    trees.build_here(bucket / 'source', bucket / 'records')
    assert len(written) == 3
    assert download(bucket / 'records') == trees.contents(local / 'records')


def test_remote_records_are_verified_against_a_remote_source(local, bucket):
    """By the function that every worker of verify_tfrecords runs: these file systems are this process's own."""
    upload(local / 'source', bucket / 'source')
    trees.build_here(bucket / 'source', bucket / 'records')
    manifest = verification.read_intact_manifest(bucket / 'records')
    assert records.check_files(bucket / 'records', manifest) == []
    pairs, problems = verification.find_pairs(bucket / 'records', manifest, str(bucket / 'source'), [])
    assert len(pairs) == 5 and not problems
    split = records.read_split(bucket / 'records', 'validation')
    row = (0, int(split.length[0]), 24, 40, 1, 'c_1')
    (shard,) = manifest['splits']['validation']['shards']
    task = verification.Task(shard['file'], shard['bytes'], shard['sha256'], (row,), pairs)
    settings = shards.Settings(
        str(bucket / 'source'),
        str(bucket / 'records'),
        records.read_label_table(bucket / 'records'),
        images.Encoding(),
        False,
    )
    assert verification.verify_shard(task, settings).problems == []
    path = bucket / 'records' / shard['file']
    rewrite(path, lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:])
    assert 'c_1: its checksum differs' in verification.verify_shard(task, settings).problems[0]


def test_remote_pairs_are_found_by_patterns_and_lists(local, bucket):
    upload(local / 'source', bucket / 'source')

    def scan(root) -> list[cityscapes_layout.Pair]:
        of_images, of_masks = '{split}/{name}_leftImg8bit.png', '{split}/{name}_gtFine_labelIds.png'
        return pair_list.Patterns(f'{root}/leftImg8bit/{of_images}', f'{root}/gtFine/{of_masks}').scan().pairs

    pairs = scan(bucket / 'source')
    assert pairs == scan(local / 'source') and len(pairs) == 5
    rows = [f'{pair.image},{pair.label or ""},{pair.split}' for pair in pairs]
    (bucket / 'source/pairs.csv').write_text('\n'.join(['image,label,split', *rows]))
    assert pair_list.CsvFile(f'{bucket}/source/pairs.csv').scan().pairs == pairs


def test_remote_mistakes_are_named(local, bucket):
    with pytest.raises(entry.UserError, match='no such folder') as failure:
        cityscapes_layout.scan(bucket / 'nowhere')
    assert failure.value.status == entry.MISSING_INPUT and str(bucket) in str(failure.value)
    upload(local / 'source', bucket / 'source')
    image = 'leftImg8bit/val/c/c_1_leftImg8bit.png'
    rewrite(bucket / 'source' / image, lambda content: content[:-9])
    with pytest.raises(entry.UserError, match=f'{image}: truncated'):
        trees.build_here(bucket / 'source', bucket / 'records')
    plan = json.loads((bucket / 'records' / record_folder.PLAN).read_text())
    assert plan['flags']['image_format'] == 'source'
    assert not build_state.read_notes(bucket / 'records').keys() & {'cityscapes-validation.tfrecord-00000-of-00001'}


def test_records_are_staged_to_this_disk(local, bucket, tmp_path):
    upload(local / 'records', bucket)
    assert stage_tfrecords.stage(bucket, tmp_path / 'copy', ['train'], 0, 1) == (3, 0, 0)
    assert stage_tfrecords.stage(bucket, tmp_path / 'copy', ['train'], 0, 1) == (0, 3, 0)
    left, right = (records.read_split(folder, 'train') for folder in (local / 'records', tmp_path / 'copy'))
    assert [records.read_example(left, n) for n in range(3)] == [records.read_example(right, n) for n in range(3)]
    with pytest.raises(entry.UserError, match='no room for 3 of 3 shards') as failure:
        stage_tfrecords.stage(bucket, tmp_path / 'other', ['train'], 1 << 60, 1)
    assert failure.value.status == entry.NO_STORAGE
