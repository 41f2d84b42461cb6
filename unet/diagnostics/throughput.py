"""What the loader, the step, predictions and evaluation of a config achieve on these devices.

    figures = throughput.measure(config, 'data/cityscapes', parts=['step'], seconds=20, tell=print)

What is measured is what training runs: the same batches, the same compiled step, the same evaluation. Workers of a
cluster measure at the same time; 'apart' is the step of one device of each without a word to any other.
"""

import ctypes
import dataclasses
import gc
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels, records
from launch import host
from unet.data import build as data_build
from unet.data import input_pipeline
from unet.diagnostics import checks, device_speed, timing
from unet.distributed import cluster, process_group
from unet.evaluation import metrics, predict_split
from unet.inference import build as inference_build
from unet.models import build as model_build
from unet.models import step_cost
from unet.training import build as training_build
from unet.training import device_memory

_EVALUATED = 10_000  # images of a pass at the least, so that its start counts for little
_TRAINING = ('step', 'both', 'apart')  # the parts that take steps


def measure(
    config: ConfigDict, data_dir: str, *, parts: Sequence[str], seconds: float, tell: Callable[[str, dict], None]
) -> dict[str, dict]:
    """Measures the parts one after the other, on all workers of the cluster at the same time.

    Args:
      config: a valid one.
      data_dir: record folder; 'step' alone needs none.
      parts: of 'loader', 'step', 'both', 'predict' and 'evaluate'. Several workers that measure 'step' measure 'apart'
        too.
      seconds: for how long each part is measured, after a warm-up.
      tell: called, on rank 0, with 'conditions' and with the name of each part as it is done, and the figures.

    Returns:
      The figures that `tell` was called with, on rank 0; nothing elsewhere. Rates are sums over the workers; times,
      shares and memory are those of the worker with the largest. Milliseconds are those of a step, of 'predict' of an
      image, of 'evaluate' of a batch on all devices: median and 90th percentile of the calls, each of which counts as
      the mean of its config.runtime.steps_per_call steps.

    Raises:
      UserError: as training would.
    """
    config = config.copy_and_resolve_references()
    runtime = config.runtime
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    figures = {}
    with cluster.join(
        virtual_devices=runtime.virtual_devices,
        peer_seconds=runtime.peer_seconds,
        stall_seconds=runtime.stall_seconds,
    ) as joined:
        group, strategy, stall, workers = joined.group, joined.strategy, joined.stall, joined.workers

        def note(name: str, found: dict) -> None:
            stall.progress()
            figures[name] = found
            if group.rank == 0:
                tell(name, found)

        table, replicas = records.read_label_table(data_dir), strategy.num_replicas_in_sync
        checks.refuse([checks.batch(config, replicas)])
        if runtime.microbatches == 0:
            config = training_build.with_fitting_microbatches(config, table, group, replicas)
        note('conditions', _conditions(config, table, strategy, group))
        for name, images, steps, call in _calls(config, data_dir, table, strategy, workers, parts):

            def watched(call=call) -> float | None:
                stall.progress()
                return call()

            _forget_peak_memory()
            measured = timing.measure(
                watched, images=images, steps=steps, seconds=seconds, agree=lambda own: max(group.all_gather(own))
            )
            found = {
                'images_per_second': sum(group.all_gather(measured.images_per_second)),
                'milliseconds': max(group.all_gather(measured.milliseconds(50))),
                'milliseconds_p90': max(group.all_gather(measured.milliseconds(90))),
                'peak_bytes': max(group.all_gather(peak_memory())),
            }
            if name in _TRAINING and not runtime.deterministic:  # no clock is read then
                found['waiting_for_data'] = max(group.all_gather(float(measured.waited.sum() / measured.seconds.sum())))
            note(name, found)
    return figures if group.rank == 0 else {}


def _conditions(
    config: ConfigDict, table: labels.Table, strategy: tf.distribute.Strategy, group: process_group.ProcessGroup
) -> dict:
    devices = strategy.num_replicas_in_sync
    images = config.global_batch // devices // config.runtime.microbatches
    classes = len(model_build.id_of_class(config.labels, table))
    cost = model_build.estimate_cost(config, classes)
    gpus = len(device_memory.local_gpus())
    return {
        'device': 'GPU' if gpus else 'CPU',
        'devices': devices,
        'workers': group.size,
        'cores': sum(group.all_gather(host.cores())),
        'global_batch': config.global_batch,
        'crop': list(config.data.crop),
        'precision': config.precision,
        'jit_compile': model_build.jit_compile(config, devices),
        'step_flops_per_image': cost.step_flops,
        'matrix_flops_per_second': sum(group.all_gather(device_speed.matrix_flops(config.precision) * max(gpus, 1))),
        'estimated_peak_bytes': step_cost.step_bytes(cost, images),
        'expected_milliseconds': 1000 * max(group.all_gather(checks.expected_step_seconds(config, classes, strategy))),
        'config': json.loads(config.to_json()),
    }


def _calls(
    config: ConfigDict,
    data_dir: str,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
    workers: cluster.Workers,
    parts: Sequence[str],
) -> Iterator[tuple[str, int, int, Callable[[], float | None]]]:
    """What is to be timed: its name, the images of this worker and the steps that a call deals with, and the call.
    What only one of them needs goes with it, so that its memory is not counted for the next."""
    share, steps = config.global_batch // workers.count, config.runtime.steps_per_call
    class_pixels = batches = None
    if config.loss.balanced:
        class_pixels = records.class_pixels(data_dir, config.data.train_splits)
    if {'loader', 'both'} & set(parts):
        reader = input_pipeline.Reader(records.read_split(data_dir, '+'.join(config.data.train_splits)))
        batches = data_build.distributed_batches(config, strategy, workers, reader, first_step=0)

    if 'loader' in parts:
        yield 'loader', share, 1, _taking(batches)

    def stepping(train_steps: Callable, batches: tf.data.Dataset) -> Callable[[], float]:
        arguments = data_build.iterate(batches), tf.constant(steps), tf.constant(0.0)
        return lambda: float(train_steps(*arguments).numpy()[:, -1].sum())

    replicas = strategy.num_replicas_in_sync
    if {'step', 'both'} & set(parts):
        train_steps = _training(config, table, strategy, class_pixels, replicas)
        if 'step' in parts:
            yield 'step', share * steps, steps, stepping(train_steps, same_batch_again(config, strategy))
        if 'both' in parts:
            yield 'both', share * steps, steps, stepping(train_steps, batches)
        train_steps = None
    batches = None
    if 'step' in parts and workers.count > 1:
        # The same work but for what they tell each other: one device's images, compiled and normalised as on all.
        alone, own = tf.distribute.get_strategy(), config.copy_and_resolve_references()
        own.runtime.jit_compile = 'on' if model_build.jit_compile(config, replicas) else 'off'
        own.global_batch = config.global_batch // replicas
        yield (
            'apart',
            share * steps,
            steps,
            stepping(_training(own, table, alone, class_pixels, replicas), same_batch_again(own, alone)),
        )

    if not {'predict', 'evaluate'} & set(parts):
        return
    split = records.read_split(data_dir, config.data.eval_split)
    with strategy.scope():
        model = model_build.build_model(config, table, replicas=1)
    predict = inference_build.predictor(config, model, table)
    compiled = inference_build.jit_predictions(config, replicas)
    if 'predict' in parts:
        yield 'predict', 1, 1, _predicting(tf.function(predict, jit_compile=compiled), split)
    if 'evaluate' in parts:
        predict_split.check_labelled(split)
        together = config.eval.batch * replicas
        split = full_rounds(split, together)
        passes = (
            predict_split.predictions(strategy, predict, split, batch=config.eval.batch, jit_compile=compiled)
            for _ in itertools.count()
        )
        images = together // workers.count
        yield 'evaluate', images, 1, _counting(itertools.chain.from_iterable(passes), images, labels.num_ids(table))


def _training(
    config: ConfigDict,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
    class_pixels: np.ndarray | None,
    replicas: int,
) -> Callable:
    """The compiled steps of a model of its own, which normalises as on so many replicas."""
    with strategy.scope():
        model = model_build.build_model(config, table, replicas=replicas)
        state = training_build.train_state(config, model)
    return training_build.train_steps(config, model, state, table, strategy, class_pixels)


def _taking(batches: tf.data.Dataset) -> Callable[[], None]:
    iterator = data_build.iterate(batches)
    return lambda: tf.nest.flatten(next(iterator)) and None


def _predicting(predict: Callable[[tf.Tensor], tf.Tensor], split: records.Split) -> Callable[[], None]:
    """Of an image of noise, as large as the split's first, from host to host."""
    shape = (1, int(split.height[0]), int(split.width[0]), 3)
    image = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return lambda: predict(image).numpy() is None


def _counting(found: Iterator, images: int, num_ids: int) -> Callable[[], None]:
    """Of so many of what `predict_split.predictions` yields."""

    def count() -> None:
        for _, truth, prediction in itertools.islice(found, images):
            metrics.count_pairs(truth, prediction, num_ids)

    return count


def full_rounds(split: records.Split, together: int) -> records.Split:
    """The split so many times over that so many images at a time are never fewer, whatever their sizes: processes that
    take equally many then stay in step."""
    times = -(-_EVALUATED // (len(split) * together)) * together
    tiled = {
        field.name: np.tile(getattr(split, field.name), times)
        for field in dataclasses.fields(split)
        if isinstance(getattr(split, field.name), np.ndarray)
    }
    return dataclasses.replace(split, image_ids=split.image_ids * times, **tiled)


def _forget_peak_memory() -> None:
    device_memory.forget_gpu_peak()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc: what is free, which `entry.keep_freed_memory` keeps
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # proc(5): the peak resident set size


def peak_memory() -> int:
    """Bytes: of the fullest GPU, or of this process where there is none."""
    if device_memory.local_gpus():
        return device_memory.gpu_peak_bytes()
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith('VmHWM:')))


def same_batch_again(config: ConfigDict, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """One batch of noise for each replica, from memory, for ever."""
    batch = data_build.noise_batch(config, config.global_batch // strategy.num_replicas_in_sync)
    return strategy.distribute_datasets_from_function(
        lambda _: tf.data.Dataset.from_tensors(batch).repeat().prefetch(tf.data.AUTOTUNE)
    )
