"""What the loader, the step, predictions and evaluation of a config achieve on these devices.

    figures = throughput.measure(config, 'data/cityscapes', parts=['step'], seconds=20, tell=print)

What is measured is what training runs: the same batches, the same compiled step, the same evaluation. Workers of a
cluster measure at the same time; 'apart' is the step of each without a word to the others.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels, records
from launch import entry
from unet import (
    checks,
    cluster,
    estimate,
    from_config,
    input_pipeline,
    metrics,
    peers,
    scoring,
    speed,
    stopping,
    timing,
)

_EVALUATED = 10_000  # images to evaluate if need be; smaller splits come again


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
      shares and memory are those of the worker with the largest.

    Raises:
      Failure: as training would.
    """
    config = config.copy_and_resolve_references()
    workers, runtime = cluster.workers(os.environ), config.runtime
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    figures = {}
    with (
        stopping.Stall(runtime.stall_seconds) as stall,
        peers.meet(workers.addresses, workers.rank, peer_seconds=runtime.peer_seconds) as group,
    ):

        def note(name: str, found: dict) -> None:
            stall.progress()
            figures[name] = found
            if group.rank == 0:
                tell(name, found)

        strategy = cluster.make_strategy(runtime.virtual_devices, workers, peer_seconds=runtime.peer_seconds)
        table, replicas = records.read_label_table(data_dir), strategy.num_replicas_in_sync
        checks.refuse([checks.batch(config, replicas)])
        if runtime.microbatches == 0:
            runtime.microbatches = from_config.fitting_microbatches(config, table, group, replicas)
        note('conditions', _conditions(config, table, strategy, group))
        for name, images, call in _calls(config, data_dir, table, strategy, workers, parts):
            _forget_peak_memory()
            measured = timing.measure(call, images=images, seconds=seconds, agree=lambda own: max(group.gather(own)))
            found = {
                'images_per_second': sum(group.gather(measured.images_per_second)),
                'milliseconds': max(group.gather(measured.milliseconds(50))),
                'milliseconds_p90': max(group.gather(measured.milliseconds(90))),
                'waiting_for_data': max(group.gather(float(measured.waited.sum() / measured.seconds.sum()))),
                'peak_bytes': max(group.gather(peak_memory())),
            }
            note(name, found)
    return figures if group.rank == 0 else {}


def _conditions(config: ConfigDict, table: labels.Table, strategy: tf.distribute.Strategy, group: peers.Peers) -> dict:
    devices = strategy.num_replicas_in_sync
    images = config.global_batch // devices // config.runtime.microbatches
    classes = len(from_config.id_of_class(config.labels, table))
    cost = estimate.cost(config, classes)
    local_gpus = len(tf.config.list_logical_devices('GPU'))
    return {
        'device': 'GPU' if local_gpus else 'CPU',
        'devices': devices,
        'workers': group.size,
        'cores': sum(group.gather(entry.cores())),
        'global_batch': config.global_batch,
        'crop': list(config.data.crop),
        'precision': config.precision,
        'jit_compile': from_config.jit_compile(config, devices),
        'step_flops_per_image': cost.step_flops,
        'matrix_flops_per_second': sum(group.gather(speed.matrix_flops(config.precision) * max(local_gpus, 1))),
        'estimated_peak_bytes': estimate.step_bytes(cost, images),
        'expected_milliseconds': 1000 * max(group.gather(speed.step_seconds(config, classes, strategy))),
    }


def _calls(
    config: ConfigDict,
    data_dir: str,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
    workers: cluster.Workers,
    parts: Sequence[str],
) -> Iterator[tuple[str, int, Callable[[], float | None]]]:
    """What is to be timed: its name, the images of this worker that a call deals with, and the call."""
    endless = config.copy_and_resolve_references()
    endless.num_steps = 10**9
    share, steps = config.global_batch // workers.count, config.runtime.steps_per_call
    class_pixels = batches = None
    if config.loss.balanced:
        class_pixels = records.class_pixels(data_dir, config.data.train_splits)
    if {'loader', 'both'} & set(parts):
        reader = input_pipeline.Reader(records.read_split(data_dir, '+'.join(config.data.train_splits)))
        batches = from_config.distributed_batches(endless, strategy, workers, reader, first_step=0)

    if 'loader' in parts:
        iterator = iter(batches)
        yield 'loader', share, lambda: tf.nest.flatten(next(iterator)) and None

    if {'step', 'both'} & set(parts):
        train_steps = _training(config, table, strategy, class_pixels)

    def stepping(train_steps: Callable, batches: tf.data.Dataset) -> Callable[[], float]:
        arguments = iter(batches), tf.constant(steps), tf.constant(0.0)
        return lambda: float(train_steps(*arguments).numpy()[:, -1].sum())

    if 'step' in parts:
        yield 'step', share * steps, stepping(train_steps, from_config.same_batch_again(config, strategy))
        if workers.count > 1:
            alone = tf.distribute.get_strategy()
            own = config.copy_and_resolve_references()
            own.global_batch = share
            yield (
                'apart',
                share * steps,
                stepping(_training(own, table, alone, class_pixels), from_config.same_batch_again(own, alone)),
            )
    if 'both' in parts:
        yield 'both', share * steps, stepping(train_steps, batches)

    if {'predict', 'evaluate'} & set(parts):
        split = records.read_split(data_dir, config.data.eval_split)
        with strategy.scope():
            network = from_config.network(config, table, replicas=1)
        predict = from_config.predictor(config, network, table)
        compiled = from_config.jit_predictions(config, strategy.num_replicas_in_sync)
    if 'predict' in parts:
        shape = (1, int(split.height[0]), int(split.width[0]), 3)
        image = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        function = tf.function(predict, jit_compile=compiled)
        yield 'predict', 1, lambda: function(image).numpy() is None
    if 'evaluate' in parts:
        scoring.check_labelled(split)
        num_ids = labels.num_ids(table)
        found = scoring.predictions(
            strategy, predict, _again(split, _EVALUATED), batch=config.eval.batch, jit_compile=compiled
        )
        images = config.eval.batch * strategy.num_replicas_in_sync // workers.count

        def evaluate_round() -> None:
            for _, truth, prediction in itertools.islice(found, images):
                metrics.count_pairs(truth, prediction, num_ids)

        yield 'evaluate', images, evaluate_round


def _training(config, table, strategy, class_pixels) -> Callable:
    """The compiled steps of a network of its own."""
    with strategy.scope():
        network = from_config.network(config, table, replicas=strategy.num_replicas_in_sync)
        state = from_config.train_state(config, network)
    return from_config.train_steps(config, network, state, table, strategy, class_pixels)


def _again(split: records.Split, least: int) -> records.Split:
    """The split, several times over, if it has fewer than `least` examples."""
    times = -(-least // len(split))
    tiled = {
        field.name: np.tile(getattr(split, field.name), times)
        for field in dataclasses.fields(split)
        if isinstance(getattr(split, field.name), np.ndarray)
    }
    return dataclasses.replace(split, image_ids=split.image_ids * times, **tiled)


def _forget_peak_memory() -> None:
    for device in tf.config.list_logical_devices('GPU'):
        tf.config.experimental.reset_memory_stats(device.name.removeprefix('/device:'))
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # proc(5): the peak resident set size


def peak_memory() -> int:
    """Bytes: of the fullest GPU, or of this process where there is none."""
    names = [device.name.removeprefix('/device:') for device in tf.config.list_logical_devices('GPU')]
    if names:
        return max(tf.config.experimental.get_memory_info(name)['peak'] for name in names)
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith('VmHWM:')))
