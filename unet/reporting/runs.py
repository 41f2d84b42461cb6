"""What the workdirs of runs say about them, read for a report.

    for run in runs.read(['runs/a', 'runs/b'], split='validation'):
        scores, source = runs.best_scores(run)      # {'eval/miou': 0.71, ...}, 'step 12,000'

The configs of the runs are read here alone; what follows takes the values that `Run` names.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from configs import validation
from data_prep import labels
from launch import entry, files
from unet.training import checkpoint, wall_time, workdir

_EVALUATION = ('checkpoint', 'images', 'scores', 'scores_of_images', 'confusion')


@dataclasses.dataclass
class Run:
    """A run as its workdir tells of it.

    Attributes:
      name: what the report calls it.
      folder: its workdir.
      num_steps, global_batch, best_metric: of its config.
      config_fields: every field of its config by its dotted name.
      config_json: the same as JSON text.
      table: its label table.
      metrics: the lines of metrics.jsonl in the order they were written, each with its 'step'.
      wall_time: what `wall_time.shares` says of it.
      evaluation: what unet.evaluate wrote about the split, if it is about `checkpoint`; else None.
      checkpoint: path of the best checkpoint, of the latest if there is no best yet; None if there is none.
      confusion: int64 [n, n] in label ids, of the images that were predicted; None before any were.
      confusion_of: which images these are, for people.
      image_scores: image id -> mIoU; None before any were predicted.
    """

    name: str
    folder: pathlib.Path
    num_steps: int
    global_batch: int
    best_metric: str
    config_fields: Mapping[str, object]
    config_json: str
    table: labels.Table
    metrics: list[dict[str, float | None]]
    wall_time: tuple[float, dict[str, float]] | None
    evaluation: dict | None
    checkpoint: str | None
    confusion: np.ndarray | None = None
    confusion_of: str = ''
    image_scores: dict[str, float] | None = None


def read(workdirs: Sequence[str], split: str) -> list[Run]:
    """Reads the runs of some workdirs.

    Args:
      workdirs: folders of runs.
      split: the split whose evaluation is read.

    Raises:
      UserError: MISSING_INPUT if a folder holds no run, BAD_DATA if one is damaged.
    """
    return [_read(folder, name, split) for folder, name in zip(workdirs, _names(workdirs), strict=True)]


def _names(workdirs: Sequence[str]) -> list[str]:
    """The folders' own names, with as many of those above them as it takes to tell them apart."""
    parts = [pathlib.Path(folder).resolve().parts for folder in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(own[-depth:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _read(folder: str, name: str, split: str) -> Run:
    config = workdir.read_config(folder)
    root = pathlib.Path(folder)
    path = None
    for place in (workdir.BEST, workdir.CHECKPOINTS):
        steps = checkpoint.list_newest_first(root / place)
        path = path or (str(root / place / f'ckpt-{steps[0]}') if steps else None)
    return Run(
        name=name,
        folder=root,
        num_steps=config.num_steps,
        global_batch=config.global_batch,
        best_metric=config.eval.best_metric,
        config_fields=validation.flatten(config),
        config_json=json.dumps(config.to_dict(), indent=2),
        table=labels.read(root / labels.FILE),
        metrics=workdir.read_metrics(root),
        wall_time=wall_time.shares(root),
        evaluation=read_evaluation(root / f'evaluate-{split}.json', path),
        checkpoint=path,
    )


def read_evaluation(file: pathlib.Path, path: str | None) -> dict | None:
    """Returns the result of unet.evaluate, if it is of that checkpoint and not of one that had its name before.

    An evaluation that older code wrote does not say which checkpoint it is of; it must be younger than that.

    Raises:
      UserError: BAD_DATA if the file holds something else.
    """
    if path is None or not file.exists():
        return None
    result = files.read_json(file, remedy='Run unet.evaluate again.')
    if missing := [name for name in _EVALUATION if not isinstance(result, dict) or name not in result]:
        raise entry.UserError(entry.BAD_DATA, f'{file}: has no {missing[0]}. Run unet.evaluate again.')
    if 'checkpoint_sha256' in result:
        return result if result['checkpoint_sha256'] == checkpoint.digest(path) else None
    same = pathlib.Path(result['checkpoint']).parts[-2:] == pathlib.Path(path).parts[-2:]
    return result if same and file.stat().st_mtime >= os.path.getmtime(path + '.index') else None


def best_scores(run: Run) -> tuple[dict[str, float | None], str]:
    """Returns the run's best scores and where they are from: unet.evaluate, or the best evaluation during training."""
    if run.evaluation:
        return run.evaluation['scores'], f'unet.evaluate on {run.evaluation["images"]} images'
    evaluated = [line for line in run.metrics if line.get(run.best_metric) is not None]
    if not evaluated:
        return {}, ''
    best = max(evaluated, key=lambda line: line[run.best_metric])
    return best, f'step {best["step"]:,}'
