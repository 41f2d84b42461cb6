"""A config's training step with nothing around it.

step, batch = bare.step_and_batch(config)
step(batch, tf.constant(0.0))
"""

from collections.abc import Callable

import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from unet import from_config


def step_and_batch(config: ConfigDict) -> tuple[Callable, dict[str, tf.Tensor]]:
    """The step of one device on a new network, compiled if the config says so, and a batch of noise."""
    network = from_config.network(config, labels.CITYSCAPES, replicas=1)
    state = from_config.train_state(config, network)
    step = tf.function(from_config.replica_step(config, network, state, labels.CITYSCAPES, 1, None))
    batch = from_config.noise_batch(config, config.global_batch)
    return step, {name: tf.constant(values) for name, values in batch.items()}
