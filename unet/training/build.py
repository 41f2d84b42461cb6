"""Config -> losses, state and steps of training."""

import dataclasses
import functools
import gc
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from configs import validation
from data_prep import labels, png
from launch import entry, host
from unet.data import build as data_build
from unet.distributed import process_group
from unet.models import build as model_build
from unet.models import step_cost
from unet.training import device_memory, losses, optimizer, step, train_state


def prepare_process(config: ConfigDict) -> None:
    """Sets what TensorFlow takes for a whole process: determinism, and what GPUs make of float32."""
    if config.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(config.runtime.tf32)


def make_train_state(config: ConfigDict, model: keras.Model) -> train_state.TrainState:
    """Makes what a run remembers besides the model, as it is before the first step."""
    weights = [variable.value for variable in model.trainable_variables]
    return train_state.TrainState(config.optimizer.name, weights, ema=config.optimizer.ema > 0)


def make_losses(config: ConfigDict, table: labels.Table, class_pixels: np.ndarray | None) -> list[step.Loss]:
    """Makes the losses whose sum is minimised, see `losses.make_losses`.

    Args:
      config: the config.
      table: the label table.
      class_pixels: int64 [256], training pixels per label id; None if the folder has no manifest.

    Raises:
      UserError: BAD_CONFIG if class weights do not fit the classes or cannot be computed.
    """
    ids = model_build.id_of_class(config.labels, table)
    weights = config.loss.class_weights
    if config.loss.balanced:
        if class_pixels is None:
            raise entry.UserError(
                entry.BAD_CONFIG,
                'config.loss.balanced needs the manifest that data_prep.build_tfrecords writes; this record folder has '
                'none. Give config.loss.class_weights, or build the folder with it.',
            )
        if not class_pixels[ids].any():
            raise entry.UserError(
                entry.BAD_DATA, f'config.loss.balanced: no pixel of {config.data.train_splits} has a class that counts'
            )
        weights = losses.balanced_class_weights(class_pixels[ids].tolist(), config.loss.balanced_power)
    if weights and len(weights) != len(ids):
        raise entry.UserError(
            entry.BAD_CONFIG, f'config.loss.class_weights has {len(weights)} values; there are {len(ids)} classes'
        )
    return losses.make_losses(
        {name: config.loss[name] for name in validation.LOSSES},
        class_weights=tuple(weights),
        logit_adjustment=config.loss.logit_adjustment,
        label_smoothing=config.loss.label_smoothing,
        focal_gamma=config.loss.focal_gamma,
        ohem_threshold=config.loss.ohem_threshold,
        ohem_min_fraction=config.loss.ohem_min_fraction,
    )


def make_replica_step(
    config: ConfigDict,
    model: keras.Model,
    state: train_state.TrainState,
    table: labels.Table,
    replicas: int,
    class_pixels: np.ndarray | None,
    *,
    alone: bool = False,
) -> Callable[[dict[str, tf.Tensor], tf.Tensor], tf.Tensor]:
    """Makes the step that each of `replicas` replicas takes, or one of them alone, without the sums over all.

    See `step.make_replica_step`.
    """
    optimized = config.optimizer
    return step.make_replica_step(
        model,
        state,
        losses=make_losses(config, table, class_pixels),
        heads=[(1.0, 1), (config.loss.auxiliary, 2 * config.model.stem)][: len(model.outputs)],
        class_of_id=tf.constant(model_build.class_of_id(config.labels, table)),
        learning_rate=functools.partial(
            optimizer.learning_rate,
            peak=peak_learning_rate(config),
            schedule=optimized.schedule,
            warmup_steps=optimized.warmup_steps,
            num_steps=config.num_steps,
        ),
        update=functools.partial(
            optimizer.update,
            name=optimized.name,
            weight_decay=optimized.weight_decay,
            momentum=optimized.momentum,
            beta1=optimized.beta1,
            beta2=optimized.beta2,
            epsilon=optimized.epsilon,
        ),
        clip_norm=optimized.clip_norm,
        ema=optimized.ema,
        loss_scaling=config.precision == 'float16',
        microbatches=config.runtime.microbatches,
        average_statistics=(
            replicas > 1 and config.model.norm == 'batch' and not model_build.synchronized(config, replicas)
        ),
        replicas=1 if alone else replicas,
        compiled=compiled_parts(config, replicas),
    )


def compiled_parts(config: ConfigDict, replicas: int) -> tuple[str, ...]:
    """Returns what XLA compiles of a replica's step, of `step.COMPILED`."""
    jit = model_build.jit(config, replicas)
    if jit == 'off':
        return ()
    if jit == 'pieces':
        return ('inputs', 'loss', 'update')
    if config.runtime.microbatches == 1 and (replicas == 1 or model_build.jit_collectives(config, replicas)):
        return ('step',)
    return ('inputs', 'gradients', 'update')


def make_train_steps(
    config: ConfigDict,
    model: keras.Model,
    state: train_state.TrainState,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
    class_pixels: np.ndarray | None,
    *,
    replicas: int | None = None,
) -> tf.types.experimental.PolymorphicFunction:
    """Makes the function that takes several steps in one call, see `step.make_train_steps`.

    With more `replicas` than the strategy has, its one computes as it would among so many, but for the sums over them.
    """
    replicas = replicas or strategy.num_replicas_in_sync
    alone = replicas > strategy.num_replicas_in_sync
    return step.make_train_steps(
        strategy,
        make_replica_step(config, model, state, table, replicas, class_pixels, alone=alone),
        device='GPU:0' if device_memory.local_gpus() and not config.runtime.virtual_devices else 'CPU:0',
        deterministic=config.runtime.deterministic,
    )


def steps_per_call(config: ConfigDict) -> int:
    """Returns how many steps one call into TensorFlow takes; 0: the loop finds what fits, see `loop.Run`."""
    on_gpus = bool(device_memory.local_gpus()) and not config.runtime.virtual_devices
    return config.runtime.steps_per_call or (0 if on_gpus else 1)


def estimate_cost(config: ConfigDict, num_classes: int) -> step_cost.Cost:
    """Estimates what a training step costs with the config's model and crop, see `step_cost.estimate`."""
    slots = optimizer.SLOTS[config.optimizer.name] + (config.optimizer.ema > 0)
    cost = step_cost.estimate(model_build.build_uninitialized(config, num_classes), slots=slots)
    return cost if config.model.norm_over == 'global_batch' else dataclasses.replace(cost, norm_sums=0)


def with_fitting_microbatches(
    config: ConfigDict, table: labels.Table, group: process_group.ProcessGroup, replicas: int
) -> ConfigDict:
    """Returns the config with the smallest number of microbatches that fits all ranks' devices, found by trying a step.

    Raises:
      UserError: BAD_CONFIG if not even one image at a time fits.
    """
    share = config.global_batch // replicas
    class_pixels = np.ones(256) if config.loss.balanced else None

    def with_microbatches(count: int) -> ConfigDict:
        changed = config.copy_and_resolve_references()
        changed.runtime.microbatches = count
        return changed

    def try_step(count: int) -> None:
        tried = with_microbatches(count)
        batch = {name: tf.constant(values) for name, values in data_build.noise_batch(tried, share).items()}
        # As one of so many replicas computes it, which takes more memory.
        model = model_build.build_model(tried, table, replicas=replicas)
        state = make_train_state(tried, model)
        replica_step = make_replica_step(tried, model, state, table, replicas, class_pixels, alone=True)
        tf.function(replica_step)(batch, tf.constant(0.0))

    memory = device_memory.usable_bytes(config.runtime.virtual_devices)
    cost = estimate_cost(config, len(model_build.id_of_class(config.labels, table)))
    ours = device_memory.find_microbatches(cost, share, memory, try_step)
    gc.collect()
    if ours is None:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'not even one image of {"x".join(map(str, config.data.crop))} at a time fits {memory / 2**30:.1f} GiB: '
            'set config.runtime.recompute=True or config.precision=bfloat16, or lower config.data.crop or '
            'config.model.width.',
        )
    return with_microbatches(max(group.all_gather(ours)))


def peak_learning_rate(config: ConfigDict) -> float:
    """Returns the learning rate for this global batch, by config.optimizer.batch_scaling.

    Sources: 'linear', https://arxiv.org/abs/1706.02677; 'sqrt', https://arxiv.org/abs/1404.5997.
    """
    factor = config.global_batch / config.optimizer.reference_batch
    exponent = {'none': 0.0, 'sqrt': 0.5, 'linear': 1.0}[config.optimizer.batch_scaling]
    return config.optimizer.learning_rate * factor**exponent


def description(
    config: ConfigDict, model: keras.Model, train_images: int, eval_images: int, replicas: int, workers: int
) -> str:
    """Returns the few lines with which a run says what is about to happen."""
    devices = 'GPU' if tf.config.list_logical_devices('GPU') else 'CPU'
    hosts = f' of {workers} workers' if workers > 1 else ''
    how = ''
    if devices == 'GPU' and config.precision == 'float32' and config.runtime.tf32:
        how = ' (TF32)'
    elif devices == 'CPU' and config.precision == 'bfloat16' and not host.multiplies_bfloat16():
        how = ' (which this CPU has no instructions for: float32 is faster)'
    microbatches = config.runtime.microbatches
    in_microbatches = f', in {microbatches} microbatches' if microbatches > 1 else ''
    pooled = config.global_batch // microbatches
    norm = f'; batch statistics over {pooled} images' if config.model.norm == 'batch' else ''
    epochs = config.num_steps * config.global_batch / train_images
    return (
        f'{host.versions()}\n'
        f'U-Net of {model.count_params():,} parameters, {config.precision}{how}, on {replicas} {devices} '
        f'device(s){hosts}\n'
        f'{config.num_steps:,} steps x {config.global_batch} images ({config.global_batch // replicas} per device'
        f'{in_microbatches}{norm}) = {epochs:.1f} epochs of {train_images:,} images\n'
        f'Scored on {eval_images:,} images; PNG reader: {png.describe_reader()}'
    )
