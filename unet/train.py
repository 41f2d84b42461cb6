"""Training: records -> a workdir with checkpoints, metrics and pictures.

    train.train_and_evaluate(config, 'runs/cityscapes', 'data/cityscapes')

A run is a function of its config, its data and its seed. Started again on the same workdir it goes on from the last
checkpoint, with the very examples that would have come next.
"""

import functools
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from configs import default
from data_prep import labels, records
from launch import entry
from unet import checkpoint, cluster, console, from_config, input_pipeline, metrics, scoring, step, visualize, workdir

_ENDLESS_SKIPPING = 100  # overflowed steps in a row after which float16 is given up


class StopRequest:
    """True once SIGTERM or Ctrl-C has asked the run to stop; asked a second time, Ctrl-C ends it at once."""

    def __init__(self):
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def __enter__(self) -> 'StopRequest':
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True


class _Interrupted(Exception):
    """An evaluation was broken off by a request to stop."""


def train_and_evaluate(
    config: ConfigDict, run: str, data_dir: str, *, accept_config_change: bool = False
) -> dict[str, float]:
    """Trains until `config.num_steps`, from scratch or from the workdir's last checkpoint, and evaluates as it goes.

    Args:
      config: see configs/default.py.
      run: the workdir.
      data_dir: a record folder.
      accept_config_change: go on with a run although its config has changed in meaning.

    Returns:
      The scores of the last evaluation, see `metrics.scores`.

    Raises:
      Failure: BAD_CONFIG, BAD_DATA, MISSING_INPUT, IN_USE, DIVERGED, NO_STORAGE, or STOPPED after a request to stop,
        with a checkpoint saved.
    """
    problems = default.validate(config)
    if problems:
        raise entry.Failure(entry.BAD_CONFIG, '\n'.join(problems))
    train_split = records.read_split(data_dir, '+'.join(config.data.train_splits))
    eval_split = records.read_split(data_dir, config.data.eval_split)
    table = records.read_label_table(data_dir)
    class_pixels = records.class_pixels(data_dir, config.data.train_splits)
    if config.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = cluster.make_strategy(config.runtime.virtual_devices)
    replicas = strategy.num_replicas_in_sync
    if config.global_batch % replicas:
        raise entry.Failure(
            entry.BAD_CONFIG,
            f'config.global_batch={config.global_batch} does not divide over {replicas} devices: the next that does is '
            f'{-(-config.global_batch // replicas) * replicas}',
        )
    if config.global_batch // replicas % config.runtime.microbatches:
        raise entry.Failure(
            entry.BAD_CONFIG,
            f'config.runtime.microbatches={config.runtime.microbatches} does not divide the '
            f'{config.global_batch // replicas} images per device',
        )

    with workdir.lease(run), StopRequest() as stop:
        workdir.record_config(run, config, accept_change=accept_config_change)
        records.write_atomically(os.path.join(run, labels.FILE), labels.to_json(table))
        with strategy.scope():
            network = from_config.network(config, table, replicas=replicas)
            weights = [variable.value for variable in network.trainable_variables]
            state = step.TrainState(config.optimizer.name, weights, ema=config.optimizer.ema > 0)
        contents = tf.train.Checkpoint(model=network, state=state)
        restored = checkpoint.restore(os.path.join(run, workdir.CHECKPOINTS), contents)
        if config.init_from and not restored:
            print(from_config.init_from(config.init_from, network), flush=True)
            for mean, weight in zip(state.ema, weights, strict=bool(state.ema)):
                mean.assign(weight)
        start_step = int(state.step.numpy())
        console.hello(config, network, train_split, eval_split, replicas, restored)

        jit_compile = from_config.jit_compile(config, replicas)
        train_steps = step.make_train_steps(
            strategy, _replica_step(config, network, state, table, replicas, class_pixels), jit_compile=jit_compile
        )
        reader = input_pipeline.Reader(train_split)
        batches = iter(_batches(config, strategy, reader, start_step)) if start_step < config.num_steps else None
        evaluate = functools.partial(
            _evaluate,
            config,
            strategy,
            from_config.predictor(config, network, table),
            lambda: step.averaged_weights(weights, state.ema),
            eval_split,
            table,
            jit_compile,
            stop,
        )
        writer = workdir.MetricsWriter(run, last_step=start_step)
        try:
            return _loop(config, run, contents, lambda count: train_steps(batches, count), evaluate, writer, stop)
        except tf.errors.OpError:
            if reader.failure:
                raise reader.failure from None
            raise


def _loop(
    config: ConfigDict,
    run: str,
    contents: tf.train.Checkpoint,
    train_steps: Callable[[tf.Tensor], tf.Tensor],
    evaluate: Callable[[int, console.Progress], tuple[dict[str, float], np.ndarray | None]],
    writer: workdir.MetricsWriter,
    stop: StopRequest,
) -> dict[str, float]:
    """Evaluates, saves, stops, and trains up to the next of these, until the last step."""
    state = contents.state
    done = saved = int(state.step.numpy())
    intervals = (config.log.every_steps, config.eval.every_steps, config.checkpoint.every_steps)
    scores = workdir.last_scores(run) if done == config.num_steps else {}
    window = []  # metrics of the steps since the last report
    skipped = 0  # overflowed steps in a row

    def due(interval: int) -> bool:
        return done > 0 and (done % interval == 0 or done == config.num_steps)

    with console.Progress(config.num_steps, done, config.global_batch) as progress:
        while True:
            if due(config.eval.every_steps) and state.evaluated.numpy() < done and not stop:
                try:
                    scores, pictures = evaluate(done, progress)
                except _Interrupted:
                    pass
                else:
                    writer.write(done, scores, {'eval/pictures': pictures} if pictures is not None else None)
                    state.evaluated.assign(done)
                    if scores[config.eval.best_metric] > state.best.numpy():
                        state.best.assign(scores[config.eval.best_metric])
                        checkpoint.save(os.path.join(run, workdir.BEST), contents, step=done, keep=1)
                    if pictures is not None:
                        visualize.save(pictures, os.path.join(run, 'pictures', f'step-{done:06d}.png'))
            if (due(config.checkpoint.every_steps) or stop) and done > saved:
                checkpoint.save(
                    os.path.join(run, workdir.CHECKPOINTS), contents, step=done, keep=config.checkpoint.keep
                )
                saved = done
            if stop:
                raise entry.Failure(
                    entry.STOPPED, f'stopped on request after step {done}; the same command goes on from there'
                )
            if done >= config.num_steps:
                return scores

            boundary = min([config.num_steps, *((done // interval + 1) * interval for interval in intervals)])
            calls = []
            progress.start_timing()
            while done < boundary and not stop:
                count = min(config.runtime.steps_per_call, boundary - done)
                calls.append(train_steps(tf.constant(count)))
                done += count
                progress.advance(count)
            rows = np.concatenate([call.numpy() for call in calls]) if calls else np.zeros([0, len(step.METRICS)])
            progress.stop_timing(len(rows))
            skipped = _check_finite(rows, done, skipped, config.precision)
            window.extend(rows)
            if due(config.log.every_steps) and window:
                writer.write(done, progress.report(done, np.stack(window)))
                window = []


def _check_finite(rows: np.ndarray, done: int, skipped: int, precision: str) -> int:
    """Raises Failure DIVERGED naming the step if training cannot go on; returns the overflowed steps in a row so far.

    The update of a non-finite step has been withheld already, so the last checkpoint is good.
    """
    for number, row in enumerate(rows, done - len(rows) + 1):
        skipped = 0 if row[step.METRICS.index('finite')] else skipped + 1
        if skipped and precision != 'float16':
            raise entry.Failure(
                entry.DIVERGED,
                f'step {number}: the loss or its gradient is not finite (loss {row[0]}). The last checkpoint is good. '
                'Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or lengthen the warm-up.',
            )
        if skipped >= _ENDLESS_SKIPPING:
            raise entry.Failure(
                entry.DIVERGED,
                f'step {number}: float16 has overflowed {skipped} times in a row, now at loss scale {row[-1]:g}. Lower '
                'config.optimizer.learning_rate or use config.precision=bfloat16.',
            )
    return skipped


def _batches(config: ConfigDict, strategy: tf.distribute.Strategy, reader: input_pipeline.Reader, start_step: int):
    """The run's batches from `start_step` on, each replica's share by itself."""
    replicas = strategy.num_replicas_in_sync

    def positions(share: int) -> range:  # replicas take consecutive batches
        done, replica = divmod(share, replicas)
        return input_pipeline.replica_positions(done, config.global_batch, replicas, replica)

    data = config.data
    return strategy.distribute_datasets_from_function(
        lambda _: input_pipeline.train_batches(
            reader,
            positions=positions,
            first=start_step * replicas,
            last=config.num_steps * replicas,
            seed=config.seed,
            crop=tuple(data.crop),
            scale=tuple(data.scale),
            flip=data.flip,
            color=(data.brightness, data.contrast, data.saturation),
            resize=tuple(data.resize),
            resize_method=data.resize_method,
            cache=data.cache == 'memory',
        )
    )


def _replica_step(
    config: ConfigDict,
    network: keras.Model,
    state: step.TrainState,
    table: labels.Table,
    replicas: int,
    class_pixels: np.ndarray,
) -> Callable:
    return step.make_replica_step(
        network,
        state,
        losses=from_config.losses(config, table, class_pixels),
        class_of_id=tf.constant(from_config.class_of_id(config.labels, table)),
        precision=config.precision,
        num_steps=config.num_steps,
        optimizer_name=config.optimizer.name,
        learning_rate=config.optimizer.learning_rate,
        schedule=config.optimizer.schedule,
        warmup_steps=config.optimizer.warmup_steps,
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
        ema=config.optimizer.ema,
        microbatches=config.runtime.microbatches,
        replicas=replicas,
    )


def _evaluate(
    config: ConfigDict,
    strategy: tf.distribute.Strategy,
    predict: Callable[[tf.Tensor], tf.Tensor],
    averaged: Callable[[], AbstractContextManager[None]],
    split: records.Split,
    table: labels.Table,
    jit_compile: bool,
    stop: StopRequest,
    done: int,
    progress: console.Progress,
) -> tuple[dict[str, float], np.ndarray | None]:
    """Scores of the whole split, and a picture of some of its images (image, truth, prediction).

    Raises:
      _Interrupted: if a request to stop comes meanwhile.
    """

    def tick(examples: int) -> None:
        progress.note(f'evaluating {examples}/{len(split)}')
        if stop:
            raise _Interrupted

    started = time.monotonic()
    with averaged():
        confusion = scoring.confusion_of_split(
            strategy,
            predict,
            split,
            num_ids=labels.num_ids(table),
            batch=config.eval.batch,
            jit_compile=jit_compile,
            tick=tick,
        )
        seconds, pictures = time.monotonic() - started, None
        if config.eval.pictures:
            chosen = np.linspace(0, len(split) - 1, min(config.eval.pictures, len(split))).astype(int)
            pictures = visualize.examples(predict, split, chosen, table)
    scores = metrics.scores(confusion, table) | {'time/eval_images_per_second': len(split) / seconds}
    progress.say(f'step {done}/{config.num_steps}  {console.headline(scores, len(split))}')
    return scores, pictures
