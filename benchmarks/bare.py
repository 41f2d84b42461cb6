"""A config's training step on images of noise from memory, with nothing around it and as unet.main takes it.

step, batch = bare.step_and_batch(config)
step(batch, tf.constant(0.0))
take_steps = bare.training_steps(config, tf.distribute.get_strategy(), 2)
take_steps()
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from unet.data import build as data_build
from unet.diagnostics import parts
from unet.models import build as model_build
from unet.training import build as training_build
from unet.training import step as training_step

_CLASS_PIXELS = np.ones(256, np.int64)  # of the noise, for class weights


def step_and_batch(config: ConfigDict) -> tuple[Callable, dict[str, tf.Tensor]]:
    """The step of one device on a new model, compiled if the config says so, and a batch of noise."""
    model = model_build.build_model(config, labels.CITYSCAPES, replicas=1)
    state = training_build.make_train_state(config, model)
    step = tf.function(training_build.make_replica_step(config, model, state, labels.CITYSCAPES, 1, _CLASS_PIXELS))
    batch = data_build.noise_batch(config, config.global_batch)
    return step, {name: tf.constant(values) for name, values in batch.items()}


def training_steps(config: ConfigDict, strategy: tf.distribute.Strategy, steps: int) -> Callable[[], object]:
    """A function that takes so many of unet.main's steps on a new model, one per call of them, and returns when they
    are done."""
    with strategy.scope():
        model = model_build.build_model(config, labels.CITYSCAPES, replicas=strategy.num_replicas_in_sync)
        state = training_build.make_train_state(config, model)
    train_steps = training_build.make_train_steps(config, model, state, labels.CITYSCAPES, strategy, _CLASS_PIXELS)
    batches = data_build.iterate(parts.same_batch_again(config, strategy))

    def take_steps():
        for _ in range(steps):
            taken = train_steps(batches, tf.constant(1), tf.constant(0.0))
        return training_step.read_metrics(taken)

    return take_steps
