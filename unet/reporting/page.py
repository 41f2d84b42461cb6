"""One self-contained HTML page about a run, or about several side by side.

    page.write(['runs/cityscapes'], 'runs/cityscapes/report.html', data_dir='data/cityscapes')

`runs` reads what the workdirs hold, `sections` says what each section shows of it, `gallery` predicts and draws images,
and report.html.jinja lays it out. Which images go best and worst is predicted anew, unless unet.evaluate has scored
them all with the same checkpoint. The page needs neither network nor script.
"""

import base64
import datetime
import io
import math
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence

import jinja2
import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from data_prep import labels, records
from launch import entry, files
from unet.inference import options
from unet.models import build as model_build
from unet.reporting import gallery, runs, sections
from unet.training import device_memory
from unet.training import workdir as workdir_files

FILE = 'report.html'


def write_after(
    workdir: str,
    data_dir: str,
    split: str,
    count: int,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes `report.html` into a workdir at the end of its training or evaluation.

    What keeps it from being written is a warning: the work it is about is done and saved.

    Args:
      workdir: the folder of the run.
      data_dir, split, count: see `write`.
      stop: whether to give up, since the program is asked to stop.
      on_progress: called after each image.
    """
    output = os.path.join(workdir, FILE)

    def go_on_unless_stopped() -> None:
        if stop():
            where = shlex.quote(f'--workdir={workdir}')
            raise entry.UserError(entry.STOPPED, f'stopped on request; python -m unet.report {where} writes it')
        on_progress()

    try:
        write([workdir], output, data_dir=data_dir, split=split, count=count, on_progress=go_on_unless_stopped)
    except Exception as error:
        reason = entry.as_user_error(error)
        if reason is None and not (isinstance(error, tf.errors.OpError) and device_memory.is_out_of_memory(error)):
            raise
        logging.warning('%s: not written: %s', output, reason or error)
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
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes the page.

    Args:
      workdirs: of the runs, one or several.
      output: the HTML file.
      data_dir: their record folder; None: the page is without images and data summary.
      split: whose images are shown.
      images: so many images, evenly over the split, are predicted to find those that go best and worst, where
        unet.evaluate has not scored all of them.
      count: images shown of either kind; 0: none, and none are predicted.
      on_progress: called after each image.

    Raises:
      UserError: MISSING_INPUT if a workdir holds no run, or BAD_DATA if its files are damaged.
    """
    shown = runs.read(workdirs, split)
    data = records.read_split(data_dir, split) if data_dir else None
    for run in shown if data_dir else ():
        workdir_files.check_labels(str(run.folder), records.read_label_table(data_dir), data_dir)
    best, worst = _best_and_worst(shown, data, images, count, on_progress)
    content = _template().render(
        runs=shown,
        several=len(shown) > 1,
        written=datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z'),
        summary=sections.summary(shown),
        curves=sections.curves(shown),
        wall_time=sections.wall_time(shown),
        classes=sections.classes(shown),
        matrices=[(r, sections.confusion_matrix(r.confusion, r.table)) for r in shown if r.confusion is not None],
        galleries=[('Worst images', worst), ('Best images', best)],
        legend=labels.classes(shown[0].table),
        split=split,
        data=sections.dataset(data_dir, shown[0].table) if data_dir else None,
        data_dir=data_dir,
        configs=sections.configs(shown),
    )
    files.write_atomically(output, content)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'percent': sections.percent, 'picture': _picture}
    return environment.get_template('report.html.jinja')


def _picture(picture: np.ndarray) -> str:
    """The address that holds a picture, uint8 [h, w, 3], in itself."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, 'JPEG', quality=85)
    return 'data:image/jpeg;base64,' + base64.b64encode(content.getvalue()).decode()


def _best_and_worst(
    shown: list[runs.Run], split: records.Split | None, images: int, count: int, on_progress: Callable[[], None]
) -> tuple[list[gallery.Picture], list[gallery.Picture]]:
    """Fills in the runs' confusion matrices and image scores; draws the best and the worst images."""
    for run in shown:
        if run.evaluation:
            run.confusion = np.array(run.evaluation['confusion'])
            run.confusion_of = f'all {run.evaluation["images"]} images'
    usable = split is not None and split.labelled.all() and all(run.checkpoint for run in shown)
    if not usable or not count:
        return [], []
    predicts = [
        gallery.predictor(str(run.folder), run.checkpoint, options.of_evaluation(run.evaluation or {})) for run in shown
    ]
    for run, predict in zip(shown, predicts, strict=True):
        if run.evaluation:
            found = {name: own['miou'] for name, own in run.evaluation['scores_of_images'].items()}
            known = [name for name in split.image_ids if name in found]  # it may be of other records
            run.image_scores = {name: math.nan if found[name] is None else found[name] for name in known}
            continue
        run.image_scores, run.confusion = gallery.score_images(predict, split, run.table, images, on_progress)
        predicted = len(run.image_scores)
        run.confusion_of = (
            f'all {predicted} images' if predicted == len(split) else f'{predicted} of {len(split)} images'
        )
    scores = [run.image_scores for run in shown]
    learnt = [model_build.class_of_id('train_ids', run.table) != labels.IGNORED for run in shown]
    best, worst = gallery.best_and_worst(scores, count)
    drawn = [gallery.draw(ids, predicts, scores, split, shown[0].table, learnt) for ids in (best, worst)]
    return drawn[0], drawn[1]
