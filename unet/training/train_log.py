"""What a run says as it goes: a bar on a terminal or plain lines in a log, and scores."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np

from launch import progress
from unet.training import device_memory, step


def headline(scores: dict[str, float], images: int | None = None) -> str:
    """Returns the scores that matter most, in per cent."""
    shown = f'mIoU {100 * scores["eval/miou"]:.2f} %  of the classes present {100 * scores["eval/miou_present"]:.2f} %'
    return shown + (f'  pixel accuracy {100 * scores["eval/accuracy"]:.2f} %  ({images} images)' if images else '')


class TrainLog(progress.Bar):
    """What training says: a bar with the time left on a terminal, a plain line per report elsewhere."""

    def __init__(self, num_steps: int, done: int, global_batch: int):
        """Shows how far training has come.

        Args:
          num_steps: the last step.
          done: completed steps.
          global_batch: images per step.
        """
        super().__init__(num_steps, 'step', done=done, stream=sys.stdout, log_seconds=None)
        self._num_steps, self._global_batch = num_steps, global_batch
        self.seconds = 0.0  # of training alone, since the last report

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time until the block ends as that of training."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started

    def report(self, done: int, rows: np.ndarray) -> dict[str, float]:
        """Says how training goes and returns it by name.

        Args:
          done: completed steps.
          rows: [steps, len(step.METRICS)] since the last report; the loss is averaged, of the rest the last counts.
        """
        last = dict(zip(step.METRICS, rows[-1].tolist(), strict=True))
        finite = rows[step.column(rows, 'finite') > 0]
        skipped = len(rows) - len(finite)
        mean_loss = float(step.column(finite, 'loss').mean()) if len(finite) else float('nan')
        seconds = max(self.seconds, 1e-9)
        speed = len(rows) * self._global_batch / seconds
        left = (self._num_steps - done) * self._global_batch / max(speed, 1e-9)
        self.seconds = 0.0
        text = f'loss {mean_loss:.4f}  learning rate {last["learning_rate"]:.2e}  {speed:.1f} images/s'
        if skipped:
            text += f'  {skipped} overflowed and skipped, loss scale {last["loss_scale"]:g}'
        if self.is_shown:
            self.set_status(text)
        else:
            print(f'step {done}/{self._num_steps}  {text}  {left / 60:.0f} min left', flush=True)
        return {
            'train/loss': mean_loss,
            'train/learning_rate': last['learning_rate'],
            'train/gradient_norm': last['gradient_norm'],
            'train/loss_scale': last['loss_scale'],
            'train/skipped_steps': float(skipped),
            'time/images_per_second': speed,
            'time/waiting_for_data': float(step.column(rows, 'seconds_without_data').sum()) / seconds,
        } | _peak_memory()


def _peak_memory() -> dict[str, float]:
    """Largest memory in use so far, GiB, of this process and of its fullest GPU."""
    peak = {'memory/host_peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # KiB on Linux
    return peak | (
        {'memory/gpu_peak_gib': device_memory.gpu_peak_bytes() / 2**30} if device_memory.local_gpus() else {}
    )
