"""What makes a folder a finished dataset.

Training, the launchers and the builder all ask here, so that they agree. This module does not import TensorFlow, since
launchers do not.
"""

import shlex

from etils import epath

from launch import entry, files

DATASET_INFO = 'dataset_info.json'  # TFDS's own metadata
BUILDING = 'building'  # folder for what a build needs to go on
PLAN = 'building/plan.json'  # the first file written and the last removed: the dataset is unfinished while it is there


def check_complete(data_dir: epath.PathLike) -> epath.Path:
    """Returns the folder as a path, once it is sure to hold a finished dataset.

    The plan of a build decides. Its folder alone says nothing: a build that is killed while it begins or ends may leave
    one without a plan.

    Raises:
      UserError: MISSING_INPUT if there is no dataset, BAD_DATA if its build has not finished.
      PermissionError: if the folder may not be read.
    """
    data_dir = epath.Path(data_dir)
    if (data_dir / PLAN).exists():
        raise entry.UserError(
            entry.BAD_DATA,
            f'{data_dir}: its build has not finished. Run the same python -m data_prep.build_tfrecords again: it goes '
            'on where it stopped.',
        )
    try:
        files.stat(data_dir / DATASET_INFO)  # a folder that may not be read is another matter
    except (FileNotFoundError, NotADirectoryError):
        there = 'has no ' + DATASET_INFO if data_dir.exists() else 'is not there'
        raise entry.UserError(
            entry.MISSING_INPUT,
            f'{data_dir}: no dataset here (the folder {there}). Pass --data_dir, or make it with '
            f'python -m data_prep.build_tfrecords --cityscapes_dir=... {shlex.quote(f"--data_dir={data_dir}")}',
        ) from None
    return data_dir


def shard_lengths(data_dir: epath.PathLike) -> dict[str, list[int]]:
    """Returns the number of examples in each shard of each split, by TFDS's metadata.

    Raises:
      UserError: MISSING_INPUT if there is no dataset, BAD_DATA if it is unfinished or its metadata cannot be read.
    """
    path = check_complete(data_dir) / DATASET_INFO
    info = files.read_json(path)
    try:
        return {split['name']: [int(length) for length in split['shardLengths']] for split in info['splits']}
    except (KeyError, TypeError, ValueError) as error:
        raise entry.UserError(
            entry.BAD_DATA, f'{path}: is not as TFDS writes it ({error!r}). Build the folder again.'
        ) from error
