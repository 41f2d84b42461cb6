"""The state of an unfinished build: what it is to become, what is finished, and which process works on it.

Until the dataset is complete its folder holds `building/`: `plan.json` (the flags that shape the records), `lock`, and
a note per shard (see `shards.write_shard`), which is there before the shard gets its final name. So at any moment a
shard that has its final name is whole and described, and everything else is done again. It is the plan that says that
the dataset is unfinished, since only a file is removed at one go everywhere: folders on remote storage are not.
"""

import contextlib
import json
from collections.abc import Iterator

from etils import epath

from data_prep import records, shards
from launch import entry, files, folders, record_folder

_LOCK = 'lock'
_OTHER_FOLDER = 'Pass another --data_dir, or remove that folder yourself.'


@contextlib.contextmanager
def locked(data_dir: epath.Path) -> Iterator[None]:
    """Keeps other builds out of a local folder.

    Raises:
      UserError: IN_USE if another process is building there.
    """
    folder = data_dir / record_folder.BUILDING
    folder.mkdir(parents=True, exist_ok=True)
    if files.is_remote(data_dir):
        yield
        return
    with (folder / _LOCK).open('wb') as lock:
        ours = files.try_lock(lock)
        if ours is None:
            print(f'Note: {data_dir}: no locks on its file system: make sure that no other build works there.')
        elif not ours:
            raise entry.UserError(entry.IN_USE, f'{data_dir}: another build is at work in this folder.')
        yield


def is_complete(data_dir: epath.Path, flags: dict, source: dict) -> bool:
    """Says whether the folder holds the finished dataset that was asked for; False if there is anything left to do.

    Raises:
      UserError: IN_USE if it holds something else, BAD_DATA if shards of the finished dataset are missing.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise entry.UserError(entry.BAD_USAGE, f'--data_dir={data_dir}: is a file; pass a folder')
    if not data_dir.exists() or (data_dir / record_folder.PLAN).exists():
        return False
    manifest = records.read_manifest(data_dir)
    if manifest is None:
        names = [path.name for path in data_dir.iterdir() if not folders.is_leftover(path.name)]
        if set(names) - {record_folder.BUILDING}:
            raise entry.UserError(
                entry.IN_USE, f'{data_dir} is not empty and holds no dataset of ours. {_OTHER_FOLDER}'
            )
        return False
    differences = _flag_differences(manifest['flags'], flags)
    if manifest['source'] != source:
        differences.append(
            f'its source had {manifest["source"]["images"]:,} images, now there are {source["images"]:,}'
            if manifest['source']['images'] != source['images']
            else 'names or sizes of the source files are not the same'
        )
    if differences:
        raise entry.UserError(
            entry.IN_USE, f'{data_dir} holds a finished dataset that differs: {"; ".join(differences)}. {_OTHER_FOLDER}'
        )
    for split in manifest['splits'].values():
        for shard in split['shards']:
            path = data_dir / shard['file']
            if not path.exists() or files.stat(path).length != shard['bytes']:
                raise entry.UserError(
                    entry.BAD_DATA,
                    f'{path}: missing or of another size than in the manifest; the finished dataset was changed later. '
                    f'{_OTHER_FOLDER}',
                )
    return True


def resume(
    data_dir: epath.Path, plan: dict[str, list[shards.Shard]], flags: dict, skip_bad: bool
) -> list[shards.Shard]:
    """Records the plan, or compares it with the one that is there, and returns the shards that are still to be made.

    Shards from which bad pairs were left out are made again unless `skip_bad` is asked for again.

    Raises:
      UserError: IN_USE if finished shards were made with other flags or from other files.
    """
    wanted = {shard.file: shard for split in plan.values() for shard in split}
    path = data_dir / record_folder.PLAN
    notes = {file: note for file, note in read_notes(data_dir).items() if skip_bad or not note['problems']}
    differences = _flag_differences(files.read_json(path)['flags'], flags) if path.exists() and notes else []
    differences += _source_differences(notes, wanted)
    if differences:
        raise entry.UserError(
            entry.IN_USE,
            f'{data_dir} holds an unfinished build that differs: {"; ".join(differences)}. Restore what it was, pass '
            'another --data_dir, or remove that folder yourself.',
        )
    files.write_atomically(path, json.dumps({'flags': flags}, indent=1) + '\n')
    for folder, pattern in ((data_dir, '.*.part'), (data_dir, '.*.tmp'), (data_dir / record_folder.BUILDING, '.*.tmp')):
        for leftover in files.matching(folder, pattern):
            leftover.unlink()
    return [shard for shard in wanted.values() if shard.file not in notes]


def read_notes(data_dir: epath.Path) -> dict[str, dict]:
    """Reads the notes of all shards that are finished, by file."""
    notes = {}
    for path in files.matching(data_dir / record_folder.BUILDING, '*.tfrecord-*.json'):
        note = files.read_json(path)
        shard = data_dir / note['file']
        if shard.exists() and files.stat(shard).length == note['bytes']:
            notes[note['file']] = note
    return notes


def read_note(data_dir: epath.Path, shard: shards.Shard) -> dict:
    return files.read_json(shards.note_path(data_dir, shard.file))


def close(data_dir: epath.Path) -> None:
    """Declares the dataset finished."""
    (data_dir / record_folder.PLAN).unlink()
    (data_dir / record_folder.BUILDING).rmtree()


def clear(data_dir: epath.Path) -> None:
    """Removes what a kill during `close` left."""
    if (data_dir / records.MANIFEST).exists() and not (data_dir / record_folder.PLAN).exists():
        (data_dir / record_folder.BUILDING).rmtree(missing_ok=True)


def _flag_differences(before: dict, now: dict) -> list[str]:
    return [
        f'{name} was {before.get(name)!r}, now {now.get(name)!r}'
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _source_differences(notes: dict[str, dict], wanted: dict[str, shards.Shard]) -> list[str]:
    """In what the files that finished shards were made of differ from those that they would be made of now."""
    before = {tuple(row) for note in notes.values() for row in note['sources']}
    now = {tuple(pair.listing) for shard in wanted.values() for pair in shard.pairs}
    gone = sorted(before - now)
    if gone:
        listed = ', '.join(name for _, name, _, _ in gone[:5]) + (', ...' if len(gone) > 5 else '')
        return [f'{len(gone)} pair(s) that it has stored are gone or of another size now ({listed})']
    kept = all(
        file in wanted and note['sources'] == [pair.listing for pair in wanted[file].pairs]
        for file, note in notes.items()
    )
    return [] if kept else ['there are more or fewer source files than before, so that its shards hold other pairs']
