"""One self-contained HTML page about a run, or about several side by side.

    page.write(['runs/cityscapes'], 'runs/cityscapes/report.html', data_dir='data/cityscapes')

What a workdir holds is shown; images, and which of them go best and worst, are predicted anew, unless unet.evaluate has
scored them all with the same checkpoint. The page needs neither network nor script.
"""

import base64
import dataclasses
import datetime
import io
import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Sequence

import jinja2
import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from configs import default, validation
from data_prep import labels, records
from launch import entry, files
from unet.evaluation import metrics
from unet.models import build as model_build
from unet.reporting import charts, gallery
from unet.training import checkpoint, workdir

FILE = 'report.html'
_CURVES = (  # title, metrics (of several runs only the first is drawn), unit, floor of the axis
    ('Training loss', ('train/loss',), '', None),
    ('Scores', ('eval/miou', 'eval/miou_present', 'eval/accuracy'), '', 0.0),
    ('Learning rate', ('train/learning_rate',), '', 0.0),
    ('Gradient norm', ('train/gradient_norm',), '', 0.0),
    ('Training speed', ('time/images_per_second',), 'images/s', 0.0),
)


@dataclasses.dataclass
class Run:
    """What a workdir says: its name and folder, config, label table, lines of metrics, the evaluation of the split by
    unet.evaluate if it is of the checkpoint shown, that checkpoint, and what was found by predicting."""

    name: str
    folder: pathlib.Path
    config: object
    table: labels.Table
    lines: list[dict]
    evaluation: dict | None
    checkpoint: str | None
    confusion: np.ndarray | None = None
    confusion_of: str = ''
    image_scores: dict[str, float] | None = None


def write_after(
    run: str,
    data_dir: str,
    split: str,
    count: int,
    stop: Callable[[], bool] = lambda: False,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Writes `report.html` into a workdir at the end of its training or evaluation.

    What keeps it from being written is a warning: the work it is about is done and saved.

    Args:
      run: the workdir.
      data_dir, split, count: see `write`.
      stop: whether to give up, since the program is asked to stop.
      tick: called after each image.
    """
    output = os.path.join(run, FILE)

    def tick_unless_stopped() -> None:
        if stop():
            raise entry.UserError(entry.STOPPED, f'stopped on request; python -m unet.report --workdir={run} writes it')
        tick()

    try:
        write([run], output, data_dir=data_dir, split=split, count=count, tick=tick_unless_stopped)
    except (entry.UserError, OSError, tf.errors.ResourceExhaustedError) as error:
        logging.warning('%s: not written: %s', output, error)
    else:
        print(f'Report: {output}', flush=True)


def write(
    workdirs: Sequence[str],
    output: str,
    *,
    data_dir: str | None,
    split: str = 'validation',
    images: int = 100,
    count: int = 4,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Writes the page.

    Args:
      workdirs: of the runs, one or several.
      output: the HTML file.
      data_dir: their record folder; None: the page is without images and data summary.
      split: whose images are shown.
      images: so many images, evenly over the split, are looked at to find those that go best and worst, where
        unet.evaluate has not scored all of them.
      count: images shown of either kind; 0: none, and none are looked at.
      tick: called after each image.

    Raises:
      UserError: MISSING_INPUT if a workdir holds no run, or BAD_DATA if its files are damaged.
    """
    names = _names(workdirs)
    runs = [_read(folder, name, split) for folder, name in zip(workdirs, names, strict=True)]
    data = records.read_split(data_dir, split) if data_dir else None
    best, worst = _look(runs, data, images, count, tick)
    page = _environment().get_template('report.html.jinja')
    content = page.render(
        runs=runs,
        several=len(runs) > 1,
        written=datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z'),
        summary=_summary(runs),
        curves=_curves(runs),
        classes=_classes(runs),
        matrices=[(run, _matrix(run.confusion, run.table)) for run in runs if run.confusion is not None],
        galleries=[('Worst images', worst), ('Best images', best)],
        legend=labels.classes(runs[0].table),
        split=split,
        data=_data_summary(data_dir, runs[0].table) if data_dir else None,
        data_dir=data_dir,
        configs=_configs(runs),
    )
    files.write_atomically(output, content)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'percent': _percent, 'picture': _picture}
    return environment


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
    lines = []
    if (root / workdir.METRICS).exists():
        for text in (root / workdir.METRICS).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:  # the last line of a run that was killed while it wrote
                break
    path = None
    for place in (workdir.BEST, workdir.CHECKPOINTS):
        steps = checkpoint.list_newest_first(root / place)
        path = path or (str(root / place / f'ckpt-{steps[0]}') if steps else None)
    return Run(
        name=name,
        folder=root,
        config=config,
        table=labels.read(root / labels.FILE),
        lines=lines,
        evaluation=_evaluation(root / f'evaluate-{split}.json', path),
        checkpoint=path,
    )


def _evaluation(file: pathlib.Path, path: str | None) -> dict | None:
    """The result of unet.evaluate, if it is of that checkpoint and not of one that had its name before."""
    if path is None or not file.exists():
        return None
    result = files.read_json(file)
    same = pathlib.Path(result['checkpoint']).parts[-2:] == pathlib.Path(path).parts[-2:]
    return result if same and file.stat().st_mtime >= os.path.getmtime(path + '.index') else None


def _look(
    runs: list[Run], split: records.Split | None, images: int, count: int, tick: Callable[[], None]
) -> tuple[list[gallery.Picture], list[gallery.Picture]]:
    """Fills in the runs' confusion matrices and image scores; draws the best and the worst images."""
    for run in runs:
        if run.evaluation:
            run.confusion = np.array(run.evaluation['confusion'])
            run.confusion_of = f'all {run.evaluation["images"]} images'
    usable = split is not None and split.labelled.all() and all(run.checkpoint for run in runs)
    if not usable or not count:
        return [], []
    predicts = [
        gallery.predictor(str(run.folder), run.checkpoint, **(run.evaluation['looks'] if run.evaluation else {}))
        for run in runs
    ]
    for run, predict in zip(runs, predicts, strict=True):
        if run.evaluation:
            found = {name: own['miou'] for name, own in run.evaluation['scores_of_images'].items()}
            known = [name for name in split.image_ids if name in found]  # it may be of other records
            run.image_scores = {name: math.nan if found[name] is None else found[name] for name in known}
            continue
        run.image_scores, run.confusion = gallery.score_images(predict, split, run.table, images, tick)
        looked = len(run.image_scores)
        run.confusion_of = f'all {looked} images' if looked == len(split) else f'{looked} of {len(split)} images'
    scores = [run.image_scores for run in runs]
    learnt = [model_build.class_of_id('train_ids', run.table) != labels.IGNORED for run in runs]
    best, worst = gallery.best_and_worst(scores, count)
    return tuple(gallery.draw(ids, predicts, scores, split, runs[0].table, learnt) for ids in (best, worst))


def _scores(run: Run) -> tuple[dict, str]:
    """The run's best scores and where they are from: unet.evaluate, or the best evaluation during training."""
    if run.evaluation:
        return run.evaluation['scores'], f'unet.evaluate on {run.evaluation["images"]} images'
    metric = run.config.eval.best_metric
    evaluated = [line for line in run.lines if line.get(metric) is not None]
    if not evaluated:
        return {}, ''
    best = max(evaluated, key=lambda line: line[metric])
    return best, f'step {best["step"]:,}'


def _summary(runs: list[Run]) -> list[dict]:
    """Rows of a table: title, and per run its value and whether it is the best of several."""

    def last(run: Run) -> int:
        return run.lines[-1]['step'] if run.lines else 0

    def median(run: Run, name: str) -> float | None:
        values = [line[name] for line in run.lines if line.get(name) is not None]
        return statistics.median(values) if values else None

    def largest(run: Run, name: str) -> float | None:
        return max((line[name] for line in run.lines if line.get(name) is not None), default=None)

    def hours(run: Run) -> float | None:
        total = before = 0
        for line in run.lines:
            if line.get('time/images_per_second'):
                total += (line['step'] - before) * run.config.global_batch / line['time/images_per_second']
                before = line['step']
        return total / 3600 or None

    def score(name: str) -> Callable[[Run], float | None]:
        return lambda run: _scores(run)[0].get(name)

    rows = [
        ('mIoU', score('eval/miou'), _percent, max),
        ('mIoU of the classes present', score('eval/miou_present'), _percent, max),
        ('mIoU of categories', score('eval/miou_categories'), _percent, max),
        ('Pixel accuracy', score('eval/accuracy'), _percent, max),
        ('Mean class accuracy', score('eval/class_accuracy'), _percent, max),
        ('iIoU (instance-weighted)', score('eval/iiou'), _percent, max),
        ('Boundary IoU', score('eval/boundary_iou'), _percent, max),
        ('Scores from', lambda run: _scores(run)[1] or None, str, None),
        ('Steps', lambda run: f'{last(run):,} of {run.config.num_steps:,}', str, None),
        ('Checkpoint', lambda run: run.checkpoint and '/'.join(pathlib.Path(run.checkpoint).parts[-2:]), str, None),
        ('Parameters', _parameters, '{:,}'.format, None),
        ('Training speed (median)', lambda run: median(run, 'time/images_per_second'), '{:.3g} images/s'.format, max),
        ('Evaluation speed', lambda run: median(run, 'time/eval_images_per_second'), '{:.3g} images/s'.format, max),
        ('Waiting for data', lambda run: median(run, 'time/waiting_for_data'), _percent, min),
        ('Time spent on training steps', hours, _duration, None),
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


def _parameters(run: Run) -> int | None:
    if run.checkpoint is None:
        return None
    shapes = tf.train.list_variables(run.checkpoint)
    return sum(math.prod(shape) for name, shape in shapes if name.startswith('model/'))


def _curves(runs: list[Run]) -> list[dict]:
    curves = []
    for title, names, unit, floor in _CURVES:
        series = {}
        for run in runs:
            shown = [run.config.eval.best_metric] if len(runs) > 1 and len(names) > 1 else names
            for name in shown:
                points = [(line['step'], line[name]) for line in run.lines if name in line]
                if points and any(value is not None for _, value in points):
                    label = run.name if len(runs) > 1 else name.partition('/')[2]
                    series[label] = tuple(zip(*points, strict=True))
            if len(runs) > 1 and len(names) > 1:
                title = f'Score: {run.config.eval.best_metric}'
        if series:
            svg = charts.lines(series, unit=unit, floor=floor)
            curves.append({'title': title, 'svg': svg, 'keys': list(series) if len(series) > 1 else []})
    return curves


def _classes(runs: list[Run]) -> list[dict]:
    """A row per scored class: per run its IoU; of a single run also what its matrix tells."""
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
                'taken_for': f'{names[int(wrong.argmax())]} ({_percent(wrong.max() / true, 1)})' if wrong.any() else '',
            }
        rows.append(row)
    return rows


def _iou(run: Run, name: str) -> float | None:
    if run.confusion is not None:
        value = metrics.class_iou(run.confusion, run.table).get(name, math.nan)
        return None if math.isnan(value) else value
    return _scores(run)[0].get(f'eval/iou/{name}')


def _matrix(confusion: np.ndarray, table: labels.Table) -> dict:
    """The confusion matrix by share of each true class, of the ids that are scored or predicted for such."""
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
    pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: -pair[0])[:8]
    return {'rows': list(zip(rows, shares, strict=True)), 'columns': columns, 'pairs': pairs}


def _data_summary(data_dir: str, table: labels.Table) -> dict:
    """Per split its images, their sizes and bytes, and the share of each class."""
    manifest = records.read_manifest(data_dir)
    splits, shares = [], {}
    for name, size in records.split_sizes(data_dir).items():
        if not size:
            continue
        split = records.read_split(data_dir, name)
        sizes, counts = np.unique(np.stack([split.height, split.width], 1), axis=0, return_counts=True)
        common = sorted(zip(counts.tolist(), sizes.tolist(), strict=True), reverse=True)
        shown = ', '.join(
            f'{height}×{width}' + (f' ({n})' if len(common) > 1 else '') for n, (height, width) in common[:3]
        )
        splits.append(
            {
                'name': name,
                'images': size,
                'labelled': int(split.labelled.sum()),
                'sizes': shown + (f' and {len(common) - 3} more' if len(common) > 3 else ''),
                'gigabytes': split.length.sum() / 1e9,
                'shards': len(split.paths),
            }
        )
        if manifest:
            shares[name] = manifest['splits'][name]['class_pixels']
    rows = []
    totals = {name: sum(pixels.values()) for name, pixels in shares.items()}
    for label in [*labels.classes(table), *(label for label in table if label.ignored)]:
        own = [shares[name].get(str(label.id), 0) / max(totals[name], 1) for name in shares]
        if any(own):
            rows.append({'label': label, 'shares': own})
    largest = max((share for row in rows for share in row['shares']), default=1.0)
    return {'splits': splits, 'names': list(shares), 'rows': rows, 'largest': largest}


def _configs(runs: list[Run]) -> dict:
    """What sets the configs apart: of one run from the defaults, of several from each other; and all of each."""
    usual = validation.flatten(default.get_config())
    own = [validation.flatten(run.config) for run in runs]
    fields = list(dict.fromkeys(name for config in own for name in config))
    differing = []
    for name in fields:
        values = [config.get(name, '–') for config in own]
        apart = len({str(value) for value in values}) > 1 if len(runs) > 1 else values[0] != usual.get(name)
        if apart:
            differing.append({'name': name, 'usual': usual.get(name, '–'), 'values': values})
    whole = [(run.name, json.dumps(run.config.to_dict(), indent=2)) for run in runs]
    return {'differing': differing, 'whole': whole}


def _percent(share: float | None, digits: int = 2) -> str:
    return '–' if share is None or math.isnan(share) else f'{100 * share:.{digits}f} %'


def _duration(hours: float) -> str:
    minutes = round(hours * 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{max(minutes, 1)} min'


def _picture(picture: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, 'JPEG', quality=85)
    return 'data:image/jpeg;base64,' + base64.b64encode(content.getvalue()).decode()
