"""What each section of a report shows, as plain values for its template.

    sections.summary(runs.read(['runs/cityscapes'], 'validation'))  # [{'title': 'mIoU', 'cells': ...}, ...]

Each function takes all runs of the report, which one or several are, and returns what the section of that name loops
over; how it looks is said in report.html.jinja.
"""

import collections
import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from configs import default, validation
from data_prep import labels, records
from launch import files
from unet.evaluation import metrics
from unet.reporting import charts
from unet.reporting.runs import Run, best_scores

_CURVES = (  # title, metrics (of several runs only the first is drawn), unit, floor of the axis
    ('Training loss', ('train/loss',), '', None),
    ('Scores', ('eval/miou', 'eval/miou_present', 'eval/accuracy'), '', 0.0),
    ('Learning rate', ('train/learning_rate',), '', 0.0),
    ('Gradient norm', ('train/gradient_norm',), '', 0.0),
    ('Training speed', ('time/images_per_second',), 'images/s', 0.0),
    ('Slowest worker', ('time/slowest_over_median',), 'times the median', 1.0),
)
_MOST_CONFUSIONS = 8  # pairs of classes named beside a confusion matrix
_MOST_SIZES = 3  # image sizes named per split


def summary(runs: list[Run]) -> list[dict]:
    """Returns the rows of the summary, without those that no run has a value for.

    Returns:
      Of each row its 'title' and its 'cells': per run the value as text, and whether it is the best of several.
    """

    def last(run: Run) -> float:
        return run.metrics[-1]['step'] if run.metrics else 0

    def median(run: Run, name: str) -> float | None:
        values = [line[name] for line in run.metrics if line.get(name) is not None]
        return statistics.median(values) if values else None

    def largest(run: Run, name: str) -> float | None:
        return max((line[name] for line in run.metrics if line.get(name) is not None), default=None)

    def hours(run: Run) -> float | None:
        total = before = 0
        for line in run.metrics:
            if line.get('time/images_per_second'):
                total += (line['step'] - before) * run.global_batch / line['time/images_per_second']
                before = line['step']
        return total / 3600 or None

    def counted(run: Run) -> float | None:
        return run.wall_time and run.wall_time[1]['training that counts']

    def score(name: str) -> Callable[[Run], float | None]:
        return lambda run: best_scores(run)[0].get(name)

    rows = [
        ('mIoU', score('eval/miou'), percent, max),
        ('mIoU of the classes present', score('eval/miou_present'), percent, max),
        ('mIoU of categories', score('eval/miou_categories'), percent, max),
        ('Pixel accuracy', score('eval/accuracy'), percent, max),
        ('Mean class accuracy', score('eval/class_accuracy'), percent, max),
        ('iIoU (instance-weighted)', score('eval/iiou'), percent, max),
        ('Boundary IoU', score('eval/boundary_iou'), percent, max),
        ('Scores from', lambda run: best_scores(run)[1] or None, str, None),
        ('Steps', lambda run: f'{last(run):,} of {run.num_steps:,}', str, None),
        ('Checkpoint', lambda run: run.checkpoint and '/'.join(pathlib.Path(run.checkpoint).parts[-2:]), str, None),
        ('Parameters', _parameters, '{:,}'.format, None),
        ('Training speed (median)', lambda run: median(run, 'time/images_per_second'), '{:.3g} images/s'.format, max),
        ('Evaluation speed', lambda run: median(run, 'time/eval_images_per_second'), '{:.3g} images/s'.format, max),
        ('Waiting for data', lambda run: median(run, 'time/waiting_for_data'), percent, min),
        ('Time spent on training steps', hours, _duration, None),
        ('Since the first start', lambda run: run.wall_time and run.wall_time[0] / 3600, _duration, None),
        ('Of it training that counts', counted, percent, max),
        ('Slowest worker', _slowest_worker, str, None),
        ('Host memory, peak', lambda run: largest(run, 'memory/host_peak_gib'), '{:.2f} GiB'.format, min),
        ('GPU memory, peak', lambda run: largest(run, 'memory/gpu_peak_gib'), '{:.2f} GiB'.format, min),
    ]
    table = []
    for title, value_of, shown, best_of in rows:
        values = [value_of(run) for run in runs]
        known = [value for value in values if value is not None]
        if known:
            best = best_of(known) if best_of and len(set(known)) > 1 else None
            cells = [('–' if v is None else shown(v), v is not None and v == best) for v in values]
            table.append({'title': title, 'cells': cells})
    return table


def _slowest_worker(run: Run) -> str | None:
    """The worker that was the slowest in most reports, how slow it was, and why."""
    compared = [line for line in run.metrics if line.get('time/slowest_rank') is not None]
    if not compared:
        return None
    rank, count = collections.Counter(line['time/slowest_rank'] for line in compared).most_common(1)[0]
    own = [line for line in compared if line['time/slowest_rank'] == rank]
    pace, data, computing = (
        statistics.median(line[f'time/slowest_{name}'] for line in own)
        for name in ('over_median', 'by_data', 'by_computing')
    )
    reason = 'waiting for data' if data > computing else 'computing'
    return f'rank {rank:.0f} in {count} of {len(compared)} reports: {pace:.2f} times the median, by {reason}'


def wall_time(runs: list[Run]) -> list[dict]:
    """Returns what the time since the first start went into.

    Returns:
      Of each run that kept a record its 'name' and its 'shares': of what, the fraction, and the time as text.
    """
    kept = [(run, run.wall_time[0] / 3600, run.wall_time[1]) for run in runs if run.wall_time]
    return [
        {'name': run.name, 'shares': [(what, share, _duration(share * hours)) for what, share in shares.items()]}
        for run, hours, shares in kept
    ]


def _parameters(run: Run) -> int | None:
    if run.checkpoint is None:
        return None
    with files.without_patterns(run.checkpoint) as readable:
        shapes = tf.train.list_variables(readable)
    return sum(math.prod(shape) for name, shape in shapes if name.startswith('model/'))


def curves(runs: list[Run]) -> list[dict]:
    """Returns the charts over steps, without those that no run has a value for.

    Returns:
      Of each chart its 'title', its 'svg', and as 'keys' the names of its lines if there are several.
    """
    drawn = []
    for title, names, unit, floor in _CURVES:
        series: dict[str, charts.Series] = {}
        for run in runs:
            shown = [run.best_metric] if len(runs) > 1 and len(names) > 1 else names
            for name in shown:
                points = [(line['step'], line[name]) for line in run.metrics if name in line]
                if points and any(value is not None for _, value in points):
                    label = run.name if len(runs) > 1 else name.partition('/')[2]
                    steps, values = zip(*points, strict=True)
                    series[label] = steps, values
            if len(runs) > 1 and len(names) > 1:
                title = f'Score: {run.best_metric}'
        if series:
            svg = charts.lines(series, unit=unit, floor=floor)
            drawn.append({'title': title, 'svg': svg, 'keys': list(series) if len(series) > 1 else []})
    return drawn


def classes(runs: list[Run]) -> list[dict]:
    """Returns the rows of the table of classes, one per scored class.

    Returns:
      Of each row its 'label', per run its IoU as 'ious', and the 'best' of several; with the confusion matrix of the
      first run also the class's 'share' of the pixels, its 'recall', its 'precision', and the class that it is mostly
      'taken_for'. Shares are fractions, None where they do not exist.
    """
    rows = []
    confusion = runs[0].confusion
    for label in labels.classes(runs[0].table):
        ious = [_iou(run, label.name) for run in runs]
        known = [iou for iou in ious if iou is not None]
        row = {'label': label, 'ious': ious, 'best': max(known) if len(set(known)) > 1 else None}
        if confusion is not None:
            scored = [other.id for other in labels.classes(runs[0].table)]
            true, predicted = confusion[label.id].sum(), confusion[scored, label.id].sum()
            hits = confusion[label.id, label.id]
            wrong = confusion[label.id].copy()
            wrong[label.id] = 0
            names = {other.id: other.name for other in runs[0].table}
            row |= {
                'share': true / max(confusion[scored].sum(), 1),
                'recall': hits / true if true else None,
                'precision': hits / predicted if predicted else None,
                'taken_for': f'{names[int(wrong.argmax())]} ({percent(wrong.max() / true, 1)})' if wrong.any() else '',
            }
        rows.append(row)
    return rows


def _iou(run: Run, name: str) -> float | None:
    if run.confusion is not None:
        value = metrics.class_iou(run.confusion, run.table).get(name, math.nan)
        return None if math.isnan(value) else value
    return best_scores(run)[0].get(f'eval/iou/{name}')


def confusion_matrix(confusion: np.ndarray, table: labels.Table) -> dict:
    """Returns a confusion matrix by share of each true class, of the ids that are scored or predicted for such.

    Args:
      confusion: int64 [n, n] in label ids, rows true ids, columns predicted ids.
      table: the label table.

    Returns:
      As 'rows' each true class that occurs with its shares, as 'columns' the predicted classes, and as 'pairs' the
      confusions that cost most: share of all scored pixels, true class, predicted class.
    """
    rows = [label for label in labels.classes(table) if confusion[label.id].any()]
    scored = [label.id for label in labels.classes(table)]
    columns = [label for label in table if label in rows or confusion[scored, label.id].any()]
    columns.sort(key=lambda label: label.train_id)
    shares = [[confusion[row.id, column.id] / confusion[row.id].sum() for column in columns] for row in rows]
    pairs = [
        (confusion[row.id, column.id] / confusion[scored].sum(), row, column)
        for row in rows
        for column in columns
        if row is not column
    ]
    pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: -pair[0])[:_MOST_CONFUSIONS]
    return {'rows': list(zip(rows, shares, strict=True)), 'columns': columns, 'pairs': pairs}


def dataset(data_dir: str, table: labels.Table) -> dict:
    """Returns the record folder that the runs learn from.

    Args:
      data_dir: the record folder.
      table: the label table.

    Returns:
      As 'splits' the size of each, and of those in the manifest, whose 'names' are told, as 'rows' each class's shares
      of the pixels as fractions, of which 'largest' is the largest.
    """
    manifest = records.read_manifest(data_dir)
    splits, shares = [], {}
    for name, size in records.split_sizes(data_dir).items():
        if not size:
            continue
        split = records.read_split(data_dir, name)
        sizes, counts = np.unique(np.stack([split.height, split.width], 1), axis=0, return_counts=True)
        common = sorted(zip(counts.tolist(), sizes.tolist(), strict=True), reverse=True)
        shown = ', '.join(
            f'{height}×{width}' + (f' ({n})' if len(common) > 1 else '') for n, (height, width) in common[:_MOST_SIZES]
        )
        splits.append(
            {
                'name': name,
                'images': size,
                'labelled': int(split.labelled.sum()),
                'sizes': shown + (f' and {len(common) - _MOST_SIZES} more' if len(common) > _MOST_SIZES else ''),
                'gigabytes': split.length.sum() / 1e9,
                'shards': len(split.paths),
            }
        )
        if manifest:
            shares[name] = manifest['splits'][name]['class_pixels']
    rows: list[dict[str, Any]] = []
    totals = {name: sum(pixels.values()) for name, pixels in shares.items()}
    for label in [*labels.classes(table), *(label for label in table if label.ignored)]:
        own = [shares[name].get(str(label.id), 0) / max(totals[name], 1) for name in shares]
        if any(own):
            rows.append({'label': label, 'shares': own})
    largest = max((share for row in rows for share in row['shares']), default=1.0)
    return {'splits': splits, 'names': list(shares), 'rows': rows, 'largest': largest}


def configs(runs: list[Run]) -> dict:
    """Returns what sets the configs apart: one run from the defaults, several from each other.

    Returns:
      As 'differing' the 'name' of each such field, its 'usual' value and its 'values' per run, and as 'whole' the name
      of each run with its config as JSON text.
    """
    usual = validation.flatten(default.get_config())
    own = [run.config_fields for run in runs]
    differing = []
    for name in dict.fromkeys(name for fields in own for name in fields):
        values = [fields.get(name, '–') for fields in own]
        apart = len({str(value) for value in values}) > 1 if len(runs) > 1 else values[0] != usual.get(name)
        if apart:
            differing.append({'name': name, 'usual': usual.get(name, '–'), 'values': values})
    return {'differing': differing, 'whole': [(run.name, run.config_json) for run in runs]}


def percent(share: float | None, digits: int = 2) -> str:
    """Returns a fraction in per cent, or a dash if there is none."""
    return '–' if share is None or math.isnan(share) else f'{100 * share:.{digits}f} %'


def _duration(hours: float) -> str:
    minutes = round(hours * 60)
    if minutes >= 60:
        return f'{minutes // 60} h {minutes % 60} min'
    return f'{minutes} min' if minutes >= 10 else f'{hours * 3600:.1f} s'
