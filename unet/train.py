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
import re
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from configs import validation
from data_prep import labels, records
from launch import entry, files, folders
from unet.data import build as data_build
from unet.data import input_pipeline
from unet.diagnostics import checks, selfcheck
from unet.distributed import cluster, process_group, shutdown
from unet.evaluation import metrics, predict_split
from unet.inference import build as inference_build
from unet.models import build as model_build
from unet.reporting import confusion_plot, draw, page
from unet.training import build as training_build
from unet.training import (
    checkpoint,
    device_memory,
    lease,
    loop,
    metric_writer,
    replica_check,
    restore,
    schedule,
    step,
    trackers,
    train_log,
    train_state,
    wall_time,
)
from unet.training import workdir as workdir_files


def train_and_evaluate(
    config: ConfigDict,
    workdir: str,
    data_dir: str,
    stop: shutdown.StopRequest,
    *,
    accept_config_change: bool = False,
) -> dict[str, float]:
    """Trains until `config.num_steps`, from scratch or from the workdir's last checkpoint, and evaluates as it goes.

    Args:
      config: see configs/default.py; `validate` finds nothing wrong with it.
      workdir: the run's folder; of several hosts, the same folder on all of them.
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
    training_build.prepare_process(config)
    with contextlib.ExitStack() as stack:
        joined = stack.enter_context(
            cluster.join(
                virtual_devices=runtime.virtual_devices,
                peer_seconds=runtime.peer_seconds,
                stall_seconds=runtime.stall_seconds,
                time_sums=not runtime.deterministic and runtime.jit_compile != 'on',
                stop=stop,
                compare=values_to_compare(config, [train_split, eval_split]),
            )
        )
        strategy, replicas = joined.strategy, joined.replicas
        checks.refuse(checks.before_training(config, workdir, data_dir, train_split, eval_split, table, strategy))
        selfcheck.require(config, workdir, strategy)
        if joined.is_chief:
            stack.enter_context(lease.hold(workdir, check=stop.check))
        if runtime.microbatches == 0:
            config = _with_found_microbatches(config, workdir, table, joined)
        if joined.is_chief:
            workdir_files.compare_config(workdir, config, accept_change=accept_config_change)
            workdir_files.check_labels(workdir, table, data_dir)
        joined.group.all_gather(None)  # the workdir is ours
        with strategy.scope():
            model = model_build.build_model(config, table, replicas=replicas)
            state = training_build.make_train_state(config, model)
        contents = tf.train.Checkpoint(model=model, state=state)
        train_steps = training_build.make_train_steps(config, model, state, table, strategy, class_pixels)
        reader = input_pipeline.Reader(train_split)

        def batches_from(step: int) -> Iterator:
            made = data_build.make_distributed_batches(config, strategy, joined.workers, reader, first_step=step)
            return data_build.iterate(made)

        expected = joined.group.all_gather(max(_steps_saved(workdir), default=0))[0]
        batches = None
        if expected < config.num_steps:
            batches = batches_from(expected)
            # Before anything is restored, so that XLA finds what it compiled at the first start, see `xla_cache`.
            train_steps.get_concrete_function(batches, tf.constant(1), tf.constant(0.0))
        restored = _restore(config, workdir, contents, joined.group)
        start = int(state.step.numpy())
        if start != expected:  # the newest checkpoint is damaged
            batches = batches_from(start)
        if joined.is_chief:  # only now, when it is sure that the run goes on with it
            workdir_files.write_config(workdir, config)
            files.write_atomically(os.path.join(workdir, labels.FILE), labels.to_json(table))
        print(
            training_build.description(config, model, len(train_split), len(eval_split), replicas, joined.workers.count)
        )
        print(f'Going on from {restored}' if restored else 'Starting from scratch', flush=True)
        evaluate = _evaluator(config, workdir, contents, eval_split, table, joined, stop)
        writer = None
        if joined.is_chief:
            names, fields = config.log.trackers, validation.flatten(config)
            followers = stack.enter_context(trackers.follow(names, workdir, fields))
            writer = metric_writer.MetricsWriter(workdir, last_step=start, followers=followers)
        steps = functools.partial(train_steps, batches)
        run = _loop_run(config, workdir, contents, steps, evaluate, writer, joined, stop)
        try:
            scores = loop.train(run)
        except tf.errors.OpError as error:
            _raise_cause(error, reader, config, joined)
            raise
        if joined.is_chief:
            page.write_after(
                workdir, data_dir, eval_split.name, config.eval.pictures, lambda: bool(stop), joined.stall.progress
            )
        joined.group.all_gather(None)  # nobody leaves before the report is there
        print(f'{workdir}: {train_log.headline(scores)}', flush=True)
        return scores


def values_to_compare(config: ConfigDict, splits: list[records.Split]) -> list[tuple[str, str, str]]:
    """Returns code, config and data, which all ranks must have the same, as `cluster.join` takes them."""
    return [
        ('the code', _digest_of_code(), 'install the same version on all hosts'),
        ('the config', config.to_json(), 'give all ranks the same --config and flags'),
        *((f'the split {split.name}', split.digest(), 'give all ranks the same records') for split in splits),
    ]


def _digest_of_code() -> str:
    """Returns the SHA-256 of all modules of configs, data_prep, launch and unet."""
    root = pathlib.Path(__file__).parent.parent
    packages = ('configs', 'data_prep', 'launch', 'unet')
    names = [f'{package}/{name}' for package in packages for name in folders.files_below(root / package, [])]
    modules = [root / name for name in sorted(names) if name.endswith('.py')]
    return hashlib.sha256(b''.join(file.read_bytes() for file in modules)).hexdigest()


def _with_found_microbatches(
    config: ConfigDict, workdir: str, table: labels.Table, joined: cluster.Joined
) -> ConfigDict:
    """Returns the config with the microbatches of the run to go on with, as rank 0 reads it, or the fewest that fit."""
    recorded = 0
    if joined.is_chief and _steps_saved(workdir) and os.path.exists(os.path.join(workdir, workdir_files.CONFIG)):
        recorded = workdir_files.read_config(workdir).runtime.microbatches
    recorded = joined.group.all_gather(recorded)[0]
    if recorded and config.global_batch // joined.replicas % recorded == 0:
        config = config.copy_and_resolve_references()
        config.runtime.microbatches = recorded
        return config
    config = training_build.with_fitting_microbatches(config, table, joined.group, joined.replicas)
    checks.refuse([checks.batch(config, joined.replicas)])
    return config


def _steps_saved(workdir: str) -> list[int]:
    return checkpoint.list_newest_first(os.path.join(workdir, workdir_files.CHECKPOINTS))


def _restore(
    config: ConfigDict, workdir: str, contents: tf.train.Checkpoint, group: process_group.ProcessGroup
) -> str | None:
    """Restores the newest checkpoint and returns its path; without one, takes over the weights of config.init_from."""
    restored = checkpoint.restore(os.path.join(workdir, workdir_files.CHECKPOINTS), contents)
    group.check_equal(
        f'the checkpoint in {workdir}', restored, 'the workdir must be on a filesystem that all hosts share'
    )
    if config.init_from and not restored:
        print(restore.init_from(config.init_from, contents.model), flush=True)
        weights = [variable.value for variable in contents.model.trainable_variables]
        for mean, weight in zip(contents.state.ema, weights, strict=bool(contents.state.ema)):
            mean.assign(weight)
    start = int(contents.state.step.numpy())
    if start > config.num_steps:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'config.num_steps={config.num_steps}: {restored} is at step {start} already. Pass at least that, or '
            'another --workdir.',
        )
    return restored


def _loop_run(
    config: ConfigDict,
    workdir: str,
    contents: tf.train.Checkpoint,
    train_steps: Callable[[tf.Tensor, tf.Tensor], step.Taken],
    evaluate: Callable[[int, train_log.TrainLog], loop.Evaluation | None],
    writer: metric_writer.MetricsWriter | None,
    joined: cluster.Joined,
    stop: shutdown.StopRequest,
) -> loop.Run:
    """Returns the parts of the run that the loop puts together, by the config."""
    start = int(contents.state.step.numpy())
    return loop.Run(
        workdir=workdir,
        boundaries=functools.partial(
            schedule.boundaries,
            num_steps=config.num_steps,
            log_every=config.log.every_steps,
            eval_every=config.eval.every_steps,
            save_every=config.checkpoint.every_steps,
            profile=tuple(config.profile.steps),
        ),
        num_steps=config.num_steps,
        global_batch=config.global_batch,
        steps_per_call=training_build.steps_per_call(config),
        grace_seconds=config.runtime.grace_seconds,
        skips_overflows=config.precision == 'float16',
        checkpoints_kept=config.checkpoint.keep,
        best_metric=config.eval.best_metric,
        contents=contents,
        train_steps=train_steps,
        check_replicas=replica_check.make_check(
            joined, [*(variable.value for variable in contents.model.variables), *contents.state.variables]
        ),
        evaluate=evaluate,
        writer=writer,
        clock=wall_time.Clock(workdir if joined.is_chief else None, step=start, started=entry.STARTED),
        joined=joined,
        stop=stop,
    )


def _raise_cause(
    error: tf.errors.OpError, reader: input_pipeline.Reader, config: ConfigDict, joined: cluster.Joined
) -> None:
    """Raises UserError if TensorFlow's error is due to bad data, a lost peer or too little memory."""
    if reader.failure:
        raise reader.failure from None
    joined.group.raise_if_peer_lost(error)
    if device_memory.is_out_of_memory(error):
        images = config.global_batch // joined.replicas // config.runtime.microbatches
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'a device is out of memory with {images} images of {"x".join(map(str, config.data.crop))} at a time '
            f'({error.message.splitlines()[0][:200]}). Raise config.runtime.microbatches (now '
            f'{config.runtime.microbatches}), set config.runtime.recompute=True or config.precision=bfloat16, or train '
            'on more devices.',
        ) from error
    if re.search('NCCL|CUDA_ERROR', error.message):
        raise entry.UserError(
            entry.PEER_LOST,
            f'a GPU or what connects them failed ({error.message.splitlines()[0][:200]}). The same command goes on '
            'from the last checkpoint.',
        ) from error


def _evaluator(
    config: ConfigDict,
    workdir: str,
    contents: tf.train.Checkpoint,
    split: records.Split,
    table: labels.Table,
    joined: cluster.Joined,
    stop: shutdown.StopRequest,
) -> Callable[[int, train_log.TrainLog], loop.Evaluation | None]:
    """Returns a function that scores the whole split, and on the chief draws some images and the confusion matrix."""
    model, state = contents.model, contents.state
    weights = [variable.value for variable in model.trainable_variables]
    predict = inference_build.predictor(config, model, table)
    jit_compile = inference_build.jit_predictions(config)
    drawn = min(config.eval.pictures, len(split)) if joined.is_chief else 0

    def evaluate(done: int, log: train_log.TrainLog) -> loop.Evaluation | None:
        def on_progress(examples: int) -> None:
            log.set_status(f'evaluating {examples}/{len(split)}')
            joined.stall.progress()

        started, pictures = time.monotonic(), {}
        try:
            with train_state.averaged_weights(weights, state.ema):
                confusion = predict_split.confusion_of_split(
                    joined.strategy,
                    predict,
                    split,
                    table,
                    batch=config.eval.batch,
                    jit_compile=jit_compile,
                    on_progress=on_progress,
                    stop=lambda: bool(stop),
                )
                seconds = time.monotonic() - started
                if drawn:
                    chosen = np.linspace(0, len(split) - 1, drawn).astype(int).tolist()
                    pictures['eval/pictures'] = draw.rows_of_examples(predict, split, chosen, table)
                    pictures['eval/confusion'] = confusion_plot.draw(confusion, labels.classes(table), f'step {done}')
                    draw.save(pictures['eval/pictures'], os.path.join(workdir, 'pictures', f'step-{done:06d}.png'))
        except predict_split.Interrupted:
            return None
        except tf.errors.OpError as error:
            if not device_memory.is_out_of_memory(error):
                raise
            raise entry.UserError(
                entry.BAD_CONFIG,
                f'a device is out of memory evaluating {config.eval.batch} whole images at a time '
                f'({error.message.splitlines()[0][:200]}). Lower config.eval.batch or config.eval.pictures, or set '
                'config.eval.resize. The same command goes on from this step.',
            ) from error
        scores = metrics.scores(confusion, table) | {'time/eval_images_per_second': len(split) / seconds}
        log.log(f'step {done}/{config.num_steps}  {train_log.headline(scores, len(split))}')
        return scores, pictures

    return evaluate
