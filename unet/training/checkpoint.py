"""Checkpoints that are either whole or not there.

    checkpoint.save('run/checkpoints', tf.train.Checkpoint(model=..., state=...), step=1000, keep=2)
    path = checkpoint.restore('run/checkpoints', tf.train.Checkpoint(model=..., state=...))

A checkpoint is written under a temporary name, flushed to disk and renamed; the file `checkpoint`, which
`tf.train.latest_checkpoint` reads, is replaced last.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil

import tensorflow as tf
from absl import logging

from launch import entry, files

_UNFINISHED = '.unfinished'
_NAME = re.compile(r'ckpt-(0|[1-9]\d*)\.index')  # others that a user may have put there are left alone


def save(directory: str, checkpoint: tf.train.Checkpoint, *, step: int, keep: int) -> str:
    """Writes `ckpt-<step>` and removes all but the newest `keep`. Returns its path."""
    folder = pathlib.Path(directory)
    unfinished = folder / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    name = f'ckpt-{step}'
    try:
        checkpoint.write(str(unfinished / name))
    except tf.errors.OpError as error:  # a full disk has several names there
        shutil.rmtree(unfinished, ignore_errors=True)
        raise entry.UserError(
            entry.NO_STORAGE,
            f'{folder}: the checkpoint of step {step} could not be written ({entry.reason_of(error)}). '
            'Those before it are whole: free some space and run the same command again.',
        ) from error
    for file in sorted(unfinished.iterdir()):  # the data before the index that makes it a checkpoint
        _flush(file)
        os.replace(file, folder / file.name)
    unfinished.rmdir()
    kept = list_newest_first(folder)
    kept = kept[kept.index(step) :][:keep]  # newer ones can only be damaged, or this run would have gone on from them
    listing = ''.join(f'all_model_checkpoint_paths: "ckpt-{number}"\n' for number in reversed(kept))
    files.write_atomically(folder / 'checkpoint', f'model_checkpoint_path: "{name}"\n{listing}')
    _flush(folder)
    for number in set(list_newest_first(folder)) - set(kept):
        for file in folder.glob(f'ckpt-{number}.*'):
            file.unlink()
    return str(folder / name)


def list_newest_first(directory: str | pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, the newest first; none if there is no such folder.

    Raises:
      OSError: if it may not be read, which must not be taken for a run that has not begun.
    """
    try:
        names = map(_NAME.fullmatch, os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        if os.path.exists(directory):
            raise
        return []
    return sorted((int(name[1]) for name in names if name), reverse=True)


def digest(path: str) -> str:
    """Returns the SHA-256 of a checkpoint's index, which holds the checksum of each of its tensors."""
    return hashlib.sha256(pathlib.Path(f'{path}.index').read_bytes()).hexdigest()


def restore(directory: str, checkpoint: tf.train.Checkpoint) -> str | None:
    """Restores the newest checkpoint that is whole, saying so if it is not the newest one.

    Returns:
      Its path; None if the folder has no checkpoint.

    Raises:
      UserError: BAD_DATA if there are checkpoints and none can be read.
    """
    steps = list_newest_first(directory)
    for step in steps:
        path = os.path.join(directory, f'ckpt-{step}')
        try:
            restore_path(path, checkpoint)
            return path
        except entry.UserError as error:
            if step == steps[-1]:
                raise entry.UserError(
                    entry.BAD_DATA,
                    f'{directory}: none of its {len(steps)} checkpoints can be restored; the last try: {error} '
                    'To begin anew, pass another --workdir; --config.init_from=... takes over weights of another run.',
                ) from error
            logging.warning('%s Trying the one before.', error)
    return None


def restore_path(path: str, checkpoint: tf.train.Checkpoint) -> None:
    """Restores one checkpoint.

    Raises:
      UserError: MISSING_INPUT if it is not there, BAD_DATA if it is damaged or of another model.
      PermissionError: if it may not be read, which TensorFlow takes for missing.
    """
    if not os.path.exists(path + '.index'):
        raise entry.UserError(
            entry.MISSING_INPUT, f'{path}: no such checkpoint. Pass best, latest, or the path of one (without .index).'
        )
    for file in (f'{path}.index', f'{path}.data-00000-of-00001'):
        with contextlib.suppress(FileNotFoundError), open(file, 'rb'):
            pass
    try:
        with files.without_patterns(path) as readable:
            status = checkpoint.read(readable).expect_partial()  # what is not asked for, e.g. slots, is left alone
        status.assert_existing_objects_matched()
    except (tf.errors.OpError, ValueError, AssertionError, IndexError, RuntimeError) as error:
        reason = entry.reason_of(error)
        if isinstance(error, ValueError | AssertionError):
            reason = (
                'it is of another model: config.model or the number of classes is not what it was trained with; '
                f'{reason.partition(" value=")[0][:200]}'
            )
        raise entry.UserError(entry.BAD_DATA, f'{path}: cannot be restored ({reason}).') from error


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
