"""The metrics of a run, as JSON lines and as TensorBoard events.

metrics = metric_writer.MetricsWriter('runs/cityscapes', last_step=1000)
metrics.write(1050, {'train/loss': 0.7})
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Sequence

import tensorflow as tf

from data_prep import tfrecord
from launch import entry, files
from unet.training import trackers
from unet.training.workdir import METRICS_FILE, TENSORBOARD, read_metrics


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard; starting again cuts off what came after the checkpoint.

    Trackers get the same, and keep what they have.
    """

    def __init__(self, workdir: str, *, last_step: int, followers: Sequence[trackers.Tracker] = ()):
        self._followers = followers
        self._path = pathlib.Path(workdir) / METRICS_FILE
        if self._path.exists():
            kept = [line for line in read_metrics(workdir) if line['step'] <= last_step]
            files.write_atomically(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
        events = pathlib.Path(workdir) / TENSORBOARD
        events.mkdir(parents=True, exist_ok=True)
        for file in events.glob('events.out.tfevents.*'):
            _cut_events(file, last_step)
        self._summaries = tf.summary.create_file_writer(str(events))

    def write(self, step: int, values: dict[str, float], pictures: trackers.Pictures | None = None) -> None:
        """Writes one line with `step` and the values, also as TensorBoard scalars; what is not finite is null.

        Args:
          step: completed steps.
          values: by name.
          pictures: uint8 [height, width, 3] by name, for TensorBoard and trackers alone.

        Raises:
          UserError: NO_STORAGE if they cannot be written.
        """
        line = {'step': step} | {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        with files.naming(self._path), self._path.open('a') as file:
            file.write(json.dumps(line) + '\n')
        for tracker in self._followers:
            tracker.write(step, values, pictures or {})
        try:
            with self._summaries.as_default():
                for name, picture in (pictures or {}).items():
                    tf.summary.image(name, picture[None], step=step)
                for name, value in values.items():  # last: a large event's failure is ignored, a small one's is not
                    tf.summary.scalar(name, value, step=step)
            self._summaries.flush()
        except tf.errors.OpError as error:  # a full disk has several names there
            raise entry.UserError(
                entry.NO_STORAGE,
                f"{self._path.parent}: TensorBoard's events could not be written ({entry.reason_of(error)}). "
                'The checkpoints are whole: free some space and run the same command again.',
            ) from error

    def write_best(self, step: int, name: str, value: float) -> None:
        """Tells the trackers the best value of a score so far, and its step; others read it off the metrics."""
        for tracker in self._followers:
            tracker.write_best(step, name, value)


def _cut_events(file: pathlib.Path, last_step: int) -> None:
    """Cuts off what comes after `last_step` in an event file, which one process wrote in the order of its steps."""
    kept = 0  # bytes
    with contextlib.suppress(tf.errors.DataLossError):  # the end of a file whose writer was killed
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            if tf.compat.v1.Event.FromString(record).step > last_step:
                break
            kept += len(tfrecord.frame(record))
    os.truncate(file, kept)
