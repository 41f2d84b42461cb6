"""Training: records -> a workdir with checkpoints, metrics and pictures.

    with shutdown.StopRequest(grace_seconds=25) as stop:
        train.train_and_evaluate(config, 'runs/cityscapes', 'data/cityscapes', stop)

A run is a function of its config, its data and its seed. Started again on the same workdir it goes on from the last
checkpoint, with the very examples that would have come next.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels, records
from launch import entry, files
from unet.data import build as data_build
from unet.data import input_pipeline
from unet.diagnostics import checks
from unet.distributed import cluster, process_group, shutdown
from unet.evaluation import metrics, predict_split
from unet.inference import build as inference_build
from unet.models import build as model_build
from unet.reporting import confusion_plot, draw, page
from unet.training import build as training_build
from unet.training import checkpoint, lease, metric_writer, restore, step, train_log, workdir

_ENDLESS_SKIPPING = 100  # overflowed steps in a row after which float16 is given up


def train_and_evaluate(
    config: ConfigDict,
    run: str,
    data_dir: str,
    stop: shutdown.StopRequest,
    *,
    accept_config_change: bool = False,
) -> dict[str, float]:
    """Trains until `config.num_steps`, from scratch or from the workdir's last checkpoint, and evaluates as it goes.

    Args:
      config: see configs/default.py; `validate` finds nothing wrong with it.
      run: the workdir; of several hosts, the same folder on all of them.
      data_dir: a record folder.
      stop: becomes true when the run is to stop.
      accept_config_change: go on with a run although its config has changed in meaning.

    Returns:
      The scores of the last evaluation, see `metrics.scores`.

    Raises:
      UserError: BAD_CONFIG, BAD_DATA, MISSING_INPUT, IN_USE, DIVERGED, NO_STORAGE, PEER_LOST, or STOPPED after a
        request to stop, with a checkpoint saved.
    """
    train_split = records.read_split(data_dir, '+'.join(config.data.train_splits))
    eval_split = records.read_split(data_dir, config.data.eval_split)
    table = records.read_label_table(data_dir)
    class_pixels = records.class_pixels(data_dir, config.data.train_splits)
    runtime = config.runtime
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    with contextlib.ExitStack() as stack:
        joined = stack.enter_context(
            cluster.join(
                virtual_devices=runtime.virtual_devices,
                peer_seconds=runtime.peer_seconds,
                stall_seconds=runtime.stall_seconds,
                stop=stop,
                equal=must_be_equal(config, [train_split, eval_split]),
            )
        )
        workers, group, strategy, stall = joined.workers, joined.group, joined.strategy, joined.stall
        chief, replicas = joined.is_chief, joined.replicas
        checks.refuse(checks.before_training(config, run, data_dir, train_split, eval_split, table, strategy))
        if chief:
            stack.enter_context(lease.hold(run, check=stop.check))
        if runtime.microbatches == 0:
            config = config.copy_and_resolve_references()
            recorded = _recorded_microbatches(config, run, replicas)
            config.runtime.microbatches = recorded or training_build.fitting_microbatches(
                config, table, group, replicas
            )
            checks.refuse([checks.batch(config, replicas)])
        if chief:
            workdir.compare_config(run, config, accept_change=accept_config_change)
        group.all_gather(None)  # the workdir is ours
        with strategy.scope():
            network = model_build.build_model(config, table, replicas=replicas)
            state = training_build.train_state(config, network)
        weights = [variable.value for variable in network.trainable_variables]
        contents = tf.train.Checkpoint(model=network, state=state)
        restored = checkpoint.restore(os.path.join(run, workdir.CHECKPOINTS), contents)
        group.check_equal(
            f'the checkpoint in {run}', restored, 'the workdir must be on a filesystem that all hosts share'
        )
        if config.init_from and not restored:
            print(restore.init_from(config.init_from, network), flush=True)
            for mean, weight in zip(state.ema, weights, strict=bool(state.ema)):
                mean.assign(weight)
        start_step = int(state.step.numpy())
        if start_step > config.num_steps:
            raise entry.UserError(
                entry.BAD_CONFIG,
                f'config.num_steps={config.num_steps}: {restored} is at step {start_step} already. Pass at least that, '
                'or another --workdir.',
            )
        train_steps = training_build.train_steps(config, network, state, table, strategy, class_pixels)
        if chief:  # only now, when it is sure that the run goes on with it
            workdir.write_config(run, config)
            files.write_atomically(os.path.join(run, labels.FILE), labels.to_json(table))
        train_log.hello(config, network, train_split, eval_split, replicas, workers.count, restored)

        reader = input_pipeline.Reader(train_split)
        batches = None
        if start_step < config.num_steps:
            batches = data_build.iterate(
                data_build.distributed_batches(config, strategy, workers, reader, first_step=start_step)
            )
        evaluate = functools.partial(
            _evaluate,
            config,
            strategy,
            inference_build.predictor(config, network, table),
            lambda: step.averaged_weights(weights, state.ema),
            eval_split,
            table,
            inference_build.jit_predictions(config, replicas),
            stop,
            chief,
        )
        writer = metric_writer.MetricsWriter(run, last_step=start_step) if chief else None
        try:
            scores = _loop(
                config, run, contents, functools.partial(train_steps, batches), evaluate, writer, group, stop, stall
            )
        except tf.errors.OpError as error:
            if reader.failure:
                raise reader.failure from None
            group.raise_if_peer_lost(error)
            if isinstance(error, tf.errors.ResourceExhaustedError):
                raise entry.UserError(entry.BAD_CONFIG, _out_of_memory(config, replicas, error)) from error
            raise
        if chief:
            page.write_after(run, data_dir, eval_split.name, config.eval.pictures, lambda: bool(stop), stall.progress)
        group.all_gather(None)  # nobody leaves before the report is there
        print(f'{run}: {train_log.headline(scores)}', flush=True)
        return scores


def _recorded_microbatches(config: ConfigDict, run: str, replicas: int) -> int:
    """The number that the run to go on with has; 0 if it has none yet, or one that this many devices cannot keep."""
    begun = checkpoint.list_newest_first(os.path.join(run, workdir.CHECKPOINTS))
    if not begun or not os.path.exists(os.path.join(run, workdir.CONFIG)):
        return 0
    recorded = workdir.read_config(run).runtime.microbatches
    return 0 if recorded and config.global_batch // replicas % recorded else recorded


def must_be_equal(config: ConfigDict, splits: list[records.Split]) -> list[tuple[str, str, str]]:
    """Code, config and data, which all ranks must have the same, as `cluster.join` takes them."""
    return [
        ('the code', _digest_of_code(), 'install the same version on all hosts'),
        ('the config', config.to_json(), 'give all ranks the same --config and flags'),
        *((f'the split {split.name}', split.digest(), 'give all ranks the same records') for split in splits),
    ]


def _out_of_memory(config: ConfigDict, replicas: int, error: tf.errors.OpError) -> str:
    share = config.global_batch // replicas // config.runtime.microbatches
    return (
        f'a device is out of memory with {share} images of {"x".join(map(str, config.data.crop))} at a time '
        f'({error.message.splitlines()[0][:200]}). Raise config.runtime.microbatches (now '
        f'{config.runtime.microbatches}), set config.runtime.recompute=True or config.precision=bfloat16, or train on '
        'more devices.'
    )


def _digest_of_code() -> str:
    """Of all of this project's modules that training uses."""
    root = pathlib.Path(__file__).parent.parent
    files = sorted(file for package in ('data_prep', 'launch', 'unet') for file in (root / package).rglob('*.py'))
    return hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()


def _loop(
    config: ConfigDict,
    run: str,
    contents: tf.train.Checkpoint,
    train_steps: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    evaluate: Callable[[int, train_log.Progress, shutdown.Stall], tuple[dict[str, float], dict[str, np.ndarray]]],
    writer: metric_writer.MetricsWriter | None,
    group: process_group.ProcessGroup,
    stop: shutdown.StopRequest,
    stall: shutdown.Stall,
) -> dict[str, float]:
    """Evaluates, saves, stops, and trains up to the next of these, until the last step; only the chief has a writer.

    All ranks take every decision alike. A request to stop may reach one of them alone: it rides on the step's
    all-reduce, and all of them read it off the same step.
    """
    chief = writer is not None
    state = contents.state
    done = saved = int(state.step.numpy())
    intervals = (config.log.every_steps, config.eval.every_steps, config.checkpoint.every_steps)
    scores = workdir.last_scores(run) if done == config.num_steps else {}
    window = []  # metrics of the steps since the last report
    skipped = 0  # overflowed steps in a row
    profiled = config.profile.steps if chief and config.profile.steps[0] < config.profile.steps[1] else ()
    profiling = False
    stopping_now = False
    alone = group.size == 1

    def due(interval: int) -> bool:
        return done > 0 and (done % interval == 0 or done == config.num_steps)

    def save() -> None:
        nonlocal saved
        if chief and done > saved:
            folder = os.path.join(run, workdir.CHECKPOINTS)
            checkpoint.save(folder, contents, step=done, keep=config.checkpoint.keep)
        saved = done

    with train_log.Progress(config.num_steps, done, config.global_batch) as progress:
        while True:
            if alone:
                stopping_now = bool(stop)
            evaluated = state.evaluated.numpy() == done and bool(scores or done < config.num_steps)
            if due(config.eval.every_steps) and not evaluated and not stopping_now:
                try:
                    scores, pictures = evaluate(done, progress, stall)
                except predict_split.Interrupted:
                    stopping_now = True
                except Exception:
                    save()  # what has been learnt is good
                    raise
                else:
                    state.evaluated.assign(done)
                    best = scores[config.eval.best_metric] > state.best.numpy()
                    if best:
                        state.best.assign(scores[config.eval.best_metric])
                    if chief:
                        writer.write(done, scores, pictures)
                        if best:
                            checkpoint.save(os.path.join(run, workdir.BEST), contents, step=done, keep=1)
                        if pictures:
                            file = os.path.join(run, 'pictures', f'step-{done:06d}.png')
                            draw.save(pictures['eval/pictures'], file)
            if due(config.checkpoint.every_steps) or stopping_now:
                save()
            if done in profiled:
                profiling = _profile(run, start=done == profiled[0], profiling=profiling)
            stall.progress()
            if stopping_now:
                _profile(run, start=False, profiling=profiling)
                group.all_gather(None)  # nobody leaves before the chief has saved
                raise entry.UserError(
                    entry.STOPPED, f'stopped on request after step {done}; the same command goes on from there'
                )
            if done >= config.num_steps:
                return scores

            boundary = min([config.num_steps, *((done // interval + 1) * interval for interval in intervals)])
            boundary = min([boundary, *(number for number in profiled if number > done)])
            calls = []
            progress.start_timing()
            while done < boundary and not stopping_now:
                count = min(config.runtime.steps_per_call, boundary - done)
                calls.append(train_steps(tf.constant(count), tf.constant(float(bool(stop)))))
                done += count
                progress.advance(count)
                stall.progress()
                # The call before must be done: that keeps a GPU busy, and what a stop has to wait for short.
                asked = len(calls) > 1 and _asked_to_stop(calls[-2].numpy())
                stopping_now = bool(stop) if alone else asked
            rows = np.concatenate([call.numpy() for call in calls])
            stopping_now = stopping_now or _asked_to_stop(rows)
            progress.stop_timing(len(rows))
            skipped = _check_finite(rows, done, skipped, config.precision)
            window.extend(rows)
            if due(config.log.every_steps) and window:
                values = progress.report(done, np.stack(window))
                if chief:
                    writer.write(done, values)
                window = []


def _profile(run: str, *, start: bool, profiling: bool) -> bool:
    """Starts the profiler, or stops it if it runs; returns whether it runs now."""
    if start:
        tf.profiler.experimental.start(os.path.join(run, workdir.TENSORBOARD))
    elif profiling:
        tf.profiler.experimental.stop()
        print(f'Profile written: tensorboard --logdir={run} (its Profile tab needs pip install xprof)', flush=True)
    return start


def _asked_to_stop(rows: np.ndarray) -> bool:
    return bool(rows[:, step.METRICS.index('stop')].any())


def _check_finite(rows: np.ndarray, done: int, skipped: int, precision: str) -> int:
    """Raises UserError DIVERGED naming the step if training cannot go on; returns the overflowed steps in a row so far.

    The update of a non-finite step has been withheld already, so the last checkpoint, if there is one, is good.
    """
    scales = rows[:, step.METRICS.index('loss_scale')]
    for number, row in enumerate(rows, done - len(rows) + 1):
        skipped = 0 if row[step.METRICS.index('finite')] else skipped + 1
        if skipped and precision != 'float16':
            raise entry.UserError(
                entry.DIVERGED,
                f'step {number}: the loss or its gradient is not finite (loss {row[0]}). Checkpoints are good. '
                'Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or lengthen the warm-up.',
            )
        if skipped >= _ENDLESS_SKIPPING:
            raise entry.UserError(
                entry.DIVERGED,
                f'step {number}: float16 has overflowed {skipped} times in a row, now at loss scale {scales[-1]:g}. '
                'Lower config.optimizer.learning_rate or use config.precision=bfloat16.',
            )
    return skipped


def _evaluate(
    config: ConfigDict,
    strategy: tf.distribute.Strategy,
    predict: Callable[[tf.Tensor], tf.Tensor],
    averaged: Callable[[], AbstractContextManager[None]],
    split: records.Split,
    table: labels.Table,
    jit_compile: bool,
    stop: shutdown.StopRequest,
    with_pictures: bool,
    done: int,
    progress: train_log.Progress,
    stall: shutdown.Stall,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores of the whole split; pictures of some of its images (image, truth, prediction) and of the confusion matrix.

    Raises:
      predict_split.Interrupted: if a request to stop comes meanwhile.
    """

    def tick(examples: int) -> None:
        progress.note(f'evaluating {examples}/{len(split)}')
        stall.progress()

    started = time.monotonic()
    try:
        with averaged():
            confusion = predict_split.confusion_of_split(
                strategy,
                predict,
                split,
                num_ids=labels.num_ids(table),
                batch=config.eval.batch,
                jit_compile=jit_compile,
                tick=tick,
                stop=lambda: bool(stop),
            )
            seconds, pictures = time.monotonic() - started, {}
            if with_pictures and config.eval.pictures:
                chosen = np.linspace(0, len(split) - 1, min(config.eval.pictures, len(split))).astype(int)
                pictures['eval/pictures'] = draw.rows_of_examples(predict, split, chosen, table)
                pictures['eval/confusion'] = confusion_plot.draw(confusion, labels.classes(table), f'step {done}')
    except tf.errors.ResourceExhaustedError as error:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'a device is out of memory evaluating {config.eval.batch} whole images at a time '
            f'({error.message.splitlines()[0][:200]}). Lower config.eval.batch or config.eval.pictures, or set '
            'config.eval.resize. The same command goes on from this step.',
        ) from error
    scores = metrics.scores(confusion, table) | {'time/eval_images_per_second': len(split) / seconds}
    progress.say(f'step {done}/{config.num_steps}  {train_log.headline(scores, len(split))}')
    return scores, pictures
