"""Copies a record folder to the node's own disk, so that training does not read over the network.

    python -m data_prep.stage_tfrecords --data_dir=/shared/cityscapes --to=/nvme/cityscapes --splits=train,validation

Every shard is compared with the manifest's digest as it is copied, and has its name only once it is whole; damaged ones
are named once the others are copied, and the folder is no dataset then. Killed and started again, it copies what is
missing. --splits leaves the shards of other splits where they are, and so does a disk
that is too small for more: the folder then holds links to them, and is complete all the same. There are no links to
gs:// and the like: of these, other splits are left out, and a disk that is too small is an error.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from absl import flags
from etils import epath

from data_prep import places, records
from launch import entry, files, host

_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder to copy.')
_TO = flags.DEFINE_string('to', None, 'Folder for the copy, on a local disk; required.')
_SPLITS = flags.DEFINE_list('splits', [], 'Splits whose shards are copied; default all.')
_LEAVE_FREE = flags.DEFINE_float('leave_free_gb', 2.0, 'GB of the disk that stay free.', lower_bound=0)
_WORKERS = flags.DEFINE_integer('workers', 4, 'Shards copied at a time.', lower_bound=1)

_CHUNK = 1 << 22  # bytes read at a time


def main() -> None:
    host.ignore_broken_pipes()
    if _TO.value is None:
        raise entry.UserError(entry.BAD_USAGE, 'pass --to, a folder on a local disk')
    target = pathlib.Path(_TO.value).absolute()
    source = epath.Path(_DATA_DIR.value)
    source = source if files.is_remote(source) else epath.Path(os.path.abspath(source))
    copied, kept, linked = stage(source, target, _SPLITS.value, round(_LEAVE_FREE.value * 1e9), _WORKERS.value)
    print(
        f'{target}: {copied} shards copied from {source}, {kept} were there already'
        + (f', {linked} are links to it' if linked else ''),
        flush=True,
    )


def stage(source: epath.Path, target: pathlib.Path, splits: list[str], leave_free: int, workers: int) -> tuple:
    """Makes `target` a complete copy of the record folder `source`, with links for shards that are not copied.

    Args:
      source, target: folders.
      splits: splits whose shards are copied; empty for all.
      leave_free: bytes of the target's disk that stay free.
      workers: shards copied at a time.

    Returns:
      Number of shards copied now, of those that were there, and of those that are links.

    Raises:
      UserError: MISSING_INPUT if there is no such folder or split, BAD_DATA if shards are missing or differ from the
        manifest, NO_STORAGE if the disk of `target` is too small.
      OSError: if `target` cannot be written to.
    """
    if str(source) == str(target):
        raise entry.UserError(entry.BAD_USAGE, f'--to={target} is --data_dir itself')
    records.check_complete(source)
    sizes = records.split_sizes(source)
    if unknown := ', '.join(sorted(set(splits) - set(sizes))):
        raise entry.UserError(entry.MISSING_INPUT, f'{source}: no split {unknown}; it holds {", ".join(sizes)}')
    shards, digests = _shards(source, [name for name, size in sizes.items() if size])
    target.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        for leftover in files.matching(target, '.*.tmp'):
            leftover.unlink()
        wanted = {name for split, names in shards.items() if not splits or split in splits for name in names}
        originals, problems = {}, []
        for name in (name for names in shards.values() for name in names):
            try:
                originals[name] = files.stat(source / name)
            except FileNotFoundError:
                problems.append(f'{source / name}: missing. Copy it again, or build the folder again.')
        wanted &= originals.keys()
        there = {file for file in wanted if _is_copy(target / file, originals[file])}
        todo, linked = [], []
        free = shutil.disk_usage(target).free - leave_free
        for file, original in originals.items():
            if file in wanted and file not in there and original.length <= free:
                todo.append(file)
                free -= original.length
            elif not _is_copy(target / file, original):
                linked.append(file)
        left = len(wanted) - len(there) - len(todo)
        if files.is_remote(source):
            if left:
                raise entry.UserError(
                    entry.NO_STORAGE,
                    f'{target}: its disk has no room for {left} of {len(wanted)} shards. Pass fewer --splits, or train '
                    f'from {source} itself.',
                )
            linked = []
        outdated = [path for path in files.matching(target, '*.tfrecord-*') if path.name not in originals]
        if todo or linked or outdated:
            (target / records.DATASET_INFO).unlink(missing_ok=True)  # until all is there
        for path in outdated:
            path.unlink()
        for file in linked:
            _link(source / file, target / file)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            copies = [pool.submit(_copy, source / file, target / file, digests.get(file)) for file in todo]
            try:
                for copy in concurrent.futures.as_completed(copies):
                    if problem := copy.result():
                        problems.append(problem)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if problems:
            raise entry.UserError(entry.BAD_DATA, '\n'.join(sorted(problems)))
        # Last the files that make it a dataset, so that a folder without all of its shards is none.
        names = [path.name for kind in ('[!.]*.json', places.file_of('*')) for path in files.matching(source, kind)]
        for name in sorted(names, key=lambda name: name == records.DATASET_INFO):
            files.write_atomically(target / name, (source / name).read_bytes())
        if left:
            print(f'{target}: its disk has no room for {left} shards; they are read from {source}', flush=True)
    return len(todo), len(there), len(linked)


def _shards(source: epath.Path, splits: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Shard files by split; their digests, which a folder that TFDS built does not have."""
    manifest = records.read_manifest(source)
    if manifest is None:
        shards = {}
        for split in splits:
            shards[split] = [os.path.basename(path) for path in records.read_split(source, split).paths]
        return shards, {}
    listed = {name: split['shards'] for name, split in manifest['splits'].items()}
    digests = {shard['file']: shard['sha256'] for split in listed.values() for shard in split}
    return {name: [shard['file'] for shard in split] for name, split in listed.items()}, digests


def _is_copy(path: pathlib.Path, original: files.Stat) -> bool:
    """Whether a shard was copied before: it has its name only since it was compared with its digest, and the time of
    its source, so that a folder that was built anew is copied anew."""
    if path.is_symlink() or not path.exists():
        return False
    return files.stat(path) == original


def _link(source: epath.Path, target: pathlib.Path) -> None:
    if target.is_symlink() and os.readlink(target) == str(source):
        return
    target.unlink(missing_ok=True)
    target.symlink_to(source)


def _copy(source: epath.Path, target: pathlib.Path, digest: str | None) -> str:
    """Copies a shard, and returns what is wrong with it, '' if nothing; then the copy does not get its name."""
    temporary = target.parent / files.temporary_name(target.name)
    found = hashlib.sha256()
    with files.naming(target), source.open('rb') as reader, temporary.open('wb') as writer:
        while chunk := reader.read(_CHUNK):
            found.update(chunk)
            writer.write(chunk)
        files.sync(writer, target)
    if digest and found.hexdigest() != digest:
        temporary.unlink()
        return (
            f'{source}: its SHA-256 is {found.hexdigest()[:12]}…, {records.MANIFEST} says {digest[:12]}…. Run '
            'python -m data_prep.verify_tfrecords, then build the folder again or copy it again.'
        )
    modified = files.stat(source).mtime
    os.utime(temporary, (modified, modified))
    temporary.replace(target)
    return ''


@contextlib.contextmanager
def _alone(target: pathlib.Path) -> Iterator[None]:
    """Jobs that share a node take turns; the second finds the work done."""
    with (target / '.lock').open('w') as lock:
        ours = files.try_lock(lock)
        if ours is None:
            print(f'{target}: no locks on its file system: one job at a time must copy to it', flush=True)
        elif not ours:
            print(f'{target}: another process is copying to it; waiting', flush=True)
            files.try_lock(lock, fcntl.LOCK_EX)
        yield


if __name__ == '__main__':
    entry.run(main)
