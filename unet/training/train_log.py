"""What a run says: a greeting, a bar on a terminal or plain lines in a log, and scores."""

import resource
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tqdm import tqdm

from data_prep import records
from unet.training import device_memory, step


def hello(
    config: ConfigDict,
    network: keras.Model,
    train_split: records.Split,
    eval_split: records.Split,
    replicas: int,
    workers: int,
    restored: str | None,
) -> None:
    """Says in a few lines what is about to happen."""
    devices = 'GPU' if tf.config.list_logical_devices('GPU') else 'CPU'
    hosts = f' of {workers} workers' if workers > 1 else ''
    parts = config.runtime.microbatches
    in_parts = f', in {parts} parts' if parts > 1 else ''
    norm = f'; batch statistics over {config.global_batch // parts} images' if config.model.norm == 'batch' else ''
    epochs = config.num_steps * config.global_batch / len(train_split)
    print(
        f'U-Net of {network.count_params():,} parameters, {config.precision}, on {replicas} {devices} device(s)'
        f'{hosts}\n'
        f'{config.num_steps:,} steps x {config.global_batch} images ({config.global_batch // replicas} per device'
        f'{in_parts}{norm}) = {epochs:.1f} epochs of {len(train_split):,} images\n'
        f'Scored on {len(eval_split):,} images\n'
        + (f'Going on from {restored}' if restored else 'Starting from scratch'),
        flush=True,
    )


def headline(scores: dict[str, float], images: int | None = None) -> str:
    """The scores that matter most, in per cent."""
    shown = f'mIoU {100 * scores["eval/miou"]:.2f} %  of the classes present {100 * scores["eval/miou_present"]:.2f} %'
    return shown + (f'  pixel accuracy {100 * scores["eval/accuracy"]:.2f} %  ({images} images)' if images else '')


class Progress:
    """A bar with the time left on a terminal, a plain line per report elsewhere."""

    def __init__(self, num_steps: int, done: int, global_batch: int):
        self._num_steps = num_steps
        self._global_batch = global_batch
        self._seconds = self._steps = 0.0  # training alone, since the last report
        on_terminal = sys.stdout.isatty()
        self._bar = (
            tqdm(total=num_steps, initial=done, unit='step', file=sys.stdout, dynamic_ncols=True)
            if on_terminal
            else None
        )

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.close()

    def start_timing(self) -> None:
        self._started = time.monotonic()

    def stop_timing(self, steps: int) -> None:
        self._seconds += time.monotonic() - self._started
        self._steps += steps

    def advance(self, steps: int) -> None:
        if self._bar:
            self._bar.update(steps)

    def note(self, text: str) -> None:
        """Something that passes; shown on a terminal alone."""
        if self._bar:
            self._bar.set_postfix_str(text)

    def say(self, text: str) -> None:
        if self._bar:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def report(self, done: int, rows: np.ndarray) -> dict[str, float]:
        """Says how training goes and returns it by name.

        Args:
          done: completed steps.
          rows: [steps, len(step.METRICS)] since the last report; the loss is averaged, of the rest the last counts.
        """
        last = dict(zip(step.METRICS, rows[-1].tolist(), strict=True))
        finite = rows[rows[:, step.METRICS.index('finite')] > 0]
        skipped = len(rows) - len(finite)
        mean_loss = float(finite[:, 0].mean()) if len(finite) else float('nan')
        seconds = max(self._seconds, 1e-9)
        speed = self._steps * self._global_batch / seconds
        left = (self._num_steps - done) * self._global_batch / max(speed, 1e-9)
        self._seconds = self._steps = 0.0
        text = f'loss {mean_loss:.4f}  learning rate {last["learning_rate"]:.2e}  {speed:.1f} images/s'
        if skipped:
            text += f'  {skipped} overflowed and skipped, loss scale {last["loss_scale"]:g}'
        if self._bar:
            self._bar.set_postfix_str(text)
        else:
            print(f'step {done}/{self._num_steps}  {text}  {left / 60:.0f} min left', flush=True)
        return {
            'train/loss': mean_loss,
            'train/learning_rate': last['learning_rate'],
            'train/gradient_norm': last['gradient_norm'],
            'train/loss_scale': last['loss_scale'],
            'train/skipped_steps': float(skipped),
            'time/images_per_second': speed,
            'time/waiting_for_data': float(rows[:, step.METRICS.index('seconds_without_data')].sum()) / seconds,
        } | _peak_memory()


def _peak_memory() -> dict[str, float]:
    """Largest memory in use so far, GiB, of this process and of its fullest GPU."""
    peak = {'memory/host_peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # KiB on Linux
    return peak | (
        {'memory/gpu_peak_gib': device_memory.gpu_peak_bytes() / 2**30} if device_memory.local_gpus() else {}
    )
