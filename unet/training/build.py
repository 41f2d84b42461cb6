"""Config -> losses, state and steps of training."""

import gc
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from launch import entry
from unet.data import build as data_build
from unet.distributed import process_group
from unet.models import build as model_build
from unet.training import device_memory, step
from unet.training import losses as training_losses


def train_state(config: ConfigDict, net: keras.Model) -> step.TrainState:
    """What a run remembers besides the network, before its first step."""
    weights = [variable.value for variable in net.trainable_variables]
    return step.TrainState(config.optimizer.name, weights, ema=config.optimizer.ema > 0)


def losses(config: ConfigDict, table: labels.Table, class_pixels: np.ndarray | None) -> list:
    """What is minimised, see `loss.make_losses`.

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
        weights = training_losses.balanced_class_weights(class_pixels[ids].tolist())
    if weights and len(weights) != len(ids):
        raise entry.UserError(
            entry.BAD_CONFIG, f'config.loss.class_weights has {len(weights)} values; there are {len(ids)} classes'
        )
    return training_losses.make_losses(
        {name: config.loss[name] for name in training_losses.NAMES},
        class_weights=tuple(weights),
        label_smoothing=config.loss.label_smoothing,
        focal_gamma=config.loss.focal_gamma,
        ohem_threshold=config.loss.ohem_threshold,
        ohem_min_fraction=config.loss.ohem_min_fraction,
    )


def replica_step(
    config: ConfigDict,
    net: keras.Model,
    state: step.TrainState,
    table: labels.Table,
    replicas: int,
    class_pixels: np.ndarray | None,
) -> Callable:
    """What each of `replicas` replicas runs, see `step.make_replica_step`."""
    return step.make_replica_step(
        net,
        state,
        losses=losses(config, table, class_pixels),
        auxiliary=config.loss.auxiliary,
        class_of_id=tf.constant(model_build.class_of_id(config.labels, table)),
        precision=config.precision,
        num_steps=config.num_steps,
        optimizer_name=config.optimizer.name,
        learning_rate=peak_learning_rate(config),
        schedule=config.optimizer.schedule,
        warmup_steps=config.optimizer.warmup_steps,
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
        ema=config.optimizer.ema,
        microbatches=config.runtime.microbatches,
        replicas=replicas,
        jit_compile=model_build.jit_compile(config, replicas),
    )


def train_steps(
    config: ConfigDict,
    net: keras.Model,
    state: step.TrainState,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
    class_pixels: np.ndarray | None,
) -> Callable:
    """Trains for several steps in one call, see `step.make_train_steps`."""
    replicas = strategy.num_replicas_in_sync
    return step.make_train_steps(
        strategy,
        replica_step(config, net, state, table, replicas, class_pixels),
        deterministic=config.runtime.deterministic,
    )


def fitting_microbatches(
    config: ConfigDict, table: labels.Table, group: process_group.ProcessGroup, replicas: int
) -> int:
    """The smallest number of parts of a replica's share of the batch that fits all ranks' devices, by trying a step.

    Raises:
      UserError: BAD_CONFIG if none does.
    """
    compiled = model_build.jit_compile(config, replicas)
    class_pixels = np.ones(256) if config.loss.balanced else None

    def try_step(tried: ConfigDict) -> None:
        tried.runtime.jit_compile = 'on' if compiled else 'off'
        noise = data_build.noise_batch(tried, tried.global_batch // replicas)
        batch = {name: tf.constant(values) for name, values in noise.items()}
        net = model_build.build_model(
            tried, table, replicas=replicas
        )  # with the normalisation of so many, which takes more memory
        state = train_state(tried, net)
        tf.function(replica_step(tried, net, state, table, 1, class_pixels))(batch, tf.constant(0.0))

    ours = device_memory.find_microbatches(
        config, len(model_build.id_of_class(config.labels, table)), replicas=replicas, try_step=try_step
    )
    gc.collect()
    return max(group.all_gather(ours))


def peak_learning_rate(config: ConfigDict) -> float:
    """The learning rate for this global batch, by config.optimizer.batch_scaling.

    Sources: 'linear', https://arxiv.org/abs/1706.02677; 'sqrt', https://arxiv.org/abs/1404.5997.
    """
    factor = config.global_batch / config.optimizer.reference_batch
    exponent = {'none': 0.0, 'sqrt': 0.5, 'linear': 1.0}[config.optimizer.batch_scaling]
    return config.optimizer.learning_rate * factor**exponent
