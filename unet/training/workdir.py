"""The folder of a run: the names of its files, its config, and its last scores.

workdir.compare_config('runs/cityscapes', config)
workdir.write_config('runs/cityscapes', config)
workdir.last_scores('runs/cityscapes')['eval/miou']
"""

import contextlib
import json
import math
import os
import pathlib
import sys

from ml_collections import ConfigDict

from configs import default, validation
from data_prep import labels
from launch import entry, files
from unet.training import checkpoint

CONFIG = 'config.json'
METRICS_FILE = 'metrics.jsonl'
TENSORBOARD = 'tensorboard'
CHECKPOINTS = 'checkpoints'
BEST = 'best'


def check_writable(workdir: str) -> None:
    """Raises UserError BAD_USAGE if there is, and can be, no such folder that this process may write to."""
    folder = pathlib.Path(os.path.abspath(workdir))
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = 'may not be written to' if folder.is_dir() else 'is no folder'
        raise entry.UserError(entry.BAD_USAGE, f'--workdir={workdir}: {folder} {reason}. Pass another one.')


def may_change_on_resume(field: str) -> bool:
    """Says whether a config field may change when a run goes on: its length, its intervals, and how it is computed."""
    return (
        field in ('num_steps', 'checkpoint.keep', 'eval.batch', 'eval.pictures', 'data.cache', 'log.trackers')
        or field.endswith(('every_steps', '.steps'))
        or field.startswith('runtime.')
    )


def compare_config(workdir: str, config: ConfigDict, *, accept_change: bool = False) -> None:
    """Compares with the config.json that is there, and says what has changed, if anything has been learnt with it.

    Raises:
      UserError: IN_USE if the run was started with a config that means something else and `accept_change` is not set.
    """
    folder = pathlib.Path(workdir)
    if not checkpoint.list_newest_first(folder / CHECKPOINTS):
        return
    if not (folder / CONFIG).exists():
        print(f'{folder / CONFIG} is gone: this config is taken for the one that the run was started with', flush=True)
        return
    before, now = validation.flatten(read_config(workdir)), validation.flatten(config)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    diff = [f'  config.{name}: {before.get(name)!r} -> {now.get(name)!r}' for name in changed]
    meaning = [name for name in changed if not may_change_on_resume(name)]
    if meaning and not accept_change:
        raise entry.UserError(
            entry.IN_USE,
            f'{workdir} holds a run with another config:\n'
            + '\n'.join(diff)
            + '\nGo on with the old values, pass another --workdir, or change the run with --accept_config_change.',
        )
    if diff:
        print('The config has changed since the run was started:\n' + '\n'.join(diff), flush=True)


def check_labels(workdir: str, table: labels.Table, data_dir: str) -> None:
    """Checks that ids mean in records what they meant to a run, if anything has been learnt in it.

    Args:
      workdir: the folder of the run.
      table: the label table of the records.
      data_dir: their folder.

    Raises:
      UserError: BAD_DATA, naming the first id that does not.
    """
    path = pathlib.Path(workdir, labels.FILE)
    learnt = any(checkpoint.list_newest_first(path.parent / place) for place in (CHECKPOINTS, BEST))
    if not path.exists() or not learnt:
        return
    if found := labels.difference(labels.read(path), table):
        raise entry.UserError(
            entry.BAD_DATA,
            f'{path}: {found} as by the records in {data_dir}. Pass records with the labels that the run was trained '
            'on, or another --workdir.',
        )


def write_config(workdir: str, config: ConfigDict) -> None:
    """Writes the run's config.json."""
    files.write_atomically(pathlib.Path(workdir) / CONFIG, config.to_json(indent=2) + '\n')


def read_config(workdir: str) -> ConfigDict:
    """Reads the config of a run; one that an older version wrote is brought up to date, with a line on stderr.

    Raises:
      UserError: MISSING_INPUT if the folder holds none, BAD_DATA if it is damaged.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        raise entry.UserError(
            entry.MISSING_INPUT, f'{workdir}: no run here (it has no {CONFIG}). Pass the --workdir of unet.main.'
        )
    try:
        written = json.loads(path.read_bytes().decode('utf-8-sig'))
        if not isinstance(written, dict):
            raise ValueError('no JSON object')
        values, notes = validation.bring_up_to_date(validation.flatten(ConfigDict(written)), default.FIELDS)
        if wrong := validation.problems_of_types(values, default.FIELDS):
            raise ValueError('; '.join(wrong))
    except (ValueError, TypeError) as error:
        raise entry.UserError(
            entry.BAD_DATA,
            f'{path}: not the config of a run ({error}). Remove it and run unet.main with the same config again: it '
            'writes it anew.',
        ) from error
    for note in notes:
        print(f'{path}: {note}', file=sys.stderr, flush=True)
    return validation.nested(values)


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, float | None]]:
    """Returns the lines of metrics.jsonl in the order they were written, each with its 'step'.

    Lines that are damaged are left out: a run that was killed while it wrote, or a disk, leaves such.
    """
    path, lines = pathlib.Path(workdir) / METRICS_FILE, []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
            values = {name: value if value is None else float(value) for name, value in json.loads(text).items()}
            lines.append(values | {'step': int(values['step'])})
    return lines


def last_scores(workdir: str) -> dict[str, float]:
    """Returns the scores of the run's last evaluation, from metrics.jsonl; empty if there was none."""
    scores = {}
    for line in read_metrics(workdir):
        if 'eval/miou' in line:
            scores = {name: math.nan if value is None else value for name, value in line.items() if name != 'step'}
    return scores
