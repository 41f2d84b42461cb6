"""Config -> model."""

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from launch import entry
from unet.models import step_cost, unet


def build_model(config: ConfigDict, table: labels.Table, *, replicas: int) -> keras.Model:
    """The network; its weights are a function of the config's seed."""
    keras.utils.set_random_seed(config.seed)
    return unet.unet(
        len(id_of_class(config.labels, table)),
        width=config.model.width,
        depth=config.model.depth,
        skip=config.model.skip,
        padding=config.model.padding,
        up=config.model.up,
        residual=config.model.residual,
        norm=config.model.norm,
        norm_momentum=config.model.norm_momentum,
        dropout=config.model.dropout > 0,
        auxiliary=config.loss.auxiliary > 0,
        synchronized=replicas > 1,
        recompute=config.runtime.recompute,
        for_xla=jit_compile(config, replicas),
        precision=config.precision,
    )


def in_precision(
    config: ConfigDict, net: keras.Model, table: labels.Table, precision: str
) -> tuple[ConfigDict, keras.Model]:
    """The config and network of the same weights that compute in another precision, and in ops that are no XLA's."""
    own = ConfigDict(config.to_dict())
    own.precision = precision
    own.runtime.jit_compile = 'off'
    other = build_model(own, table, replicas=1)
    for variable, source in zip(other.variables, net.variables, strict=True):
        variable.assign(source.value)
    return own, other


def estimate_cost(config: ConfigDict, num_classes: int) -> step_cost.Cost:
    """Estimates what a training step of the config's model with so many classes costs."""
    return step_cost.cost(config, num_classes)


def id_of_class(learnt: str, table: labels.Table) -> np.ndarray:
    """uint8 [classes]: the label id of each of the network's outputs, which are train ids or label ids."""
    return labels.id_of_train_id(table) if learnt == 'train_ids' else np.arange(labels.num_ids(table), dtype=np.uint8)


def class_of_id(learnt: str, table: labels.Table) -> np.ndarray:
    """int32 [256]: the network's output that each label id is learnt as; 255 for those that do not count."""
    lookup = labels.train_id_of_id(table).astype(np.int32)
    if learnt == 'label_ids':
        known = [label.id for label in table]
        lookup = np.full(256, labels.IGNORED, np.int32)
        lookup[known] = known
    return lookup


def jit_compile(config: ConfigDict, replicas: int) -> bool:
    """Whether XLA compiles the training step.

    'auto': where there is one replica, whose step holds no collectives. In float32 on a CPU it is then 2 to 24 %
    faster, on one core between 7 % slower and 18 % faster; in bfloat16 five times as fast (`benchmarks.survey`).

    Raises:
      UserError: BAD_CONFIG if it is asked for where XLA cannot do it.
    """
    gpus = bool(tf.config.list_physical_devices('GPU'))
    if config.runtime.jit_compile == 'on' and replicas > 1 and not gpus:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'config.runtime.jit_compile=on: XLA cannot compile collectives between {replicas} CPU devices. '
            "Leave it at 'auto'.",
        )
    if config.runtime.jit_compile == 'on' and replicas > 1 and config.runtime.microbatches > 1:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'config.runtime.jit_compile=on: in what XLA compiles for {replicas} devices, '
            f'{config.runtime.microbatches} microbatches would be in memory at the same time. '
            "Leave it at 'auto', or set config.runtime.microbatches=1.",
        )
    return replicas == 1 if config.runtime.jit_compile == 'auto' else config.runtime.jit_compile == 'on'
