"""Config -> model, and what follows from it: classes, cost, whether XLA compiles it."""

import concurrent.futures

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from launch import entry
from unet.models import unet


def build_model(config: ConfigDict, table: labels.Table, *, replicas: int) -> keras.Model:
    """Builds the model that a config describes; its weights are a function of the config's seed.

    Args:
      config: the run's.
      table: the label table.
      replicas: how many train it together.
    """
    keras.utils.set_random_seed(config.seed)
    return unet.build_unet(architecture(config, len(id_of_class(config.labels, table)), replicas))


def architecture(config: ConfigDict, num_classes: int, replicas: int = 1) -> unet.Architecture:
    """Returns what the model of a config consists of, see `build_model`."""
    return unet.Architecture(
        num_classes,
        width=config.model.width,
        depth=config.model.depth,
        max_width=config.model.max_width,
        stem=config.model.stem,
        context=config.model.context,
        skip=config.model.skip,
        padding=config.model.padding,
        up=config.model.up,
        residual=config.model.residual,
        norm=config.model.norm,
        norm_momentum=config.model.norm_momentum,
        dropout=config.model.dropout > 0,
        auxiliary=config.loss.auxiliary > 0,
        synchronized=synchronized(config, replicas),
        recompute=config.runtime.recompute,
        jit=jit(config, replicas),
        precision=config.precision,
    )


def build_in_precision(
    config: ConfigDict, model: keras.Model, table: labels.Table, precision: str
) -> tuple[ConfigDict, keras.Model]:
    """Builds a model of the same weights that computes in another precision, for exports: none of its ops is XLA's.

    Returns:
      Its config, and the model.
    """
    own = ConfigDict(config.to_dict())
    own.precision = precision
    own.runtime.jit_compile = 'off'
    other = build_model(own, table, replicas=1)
    for variable, source in zip(other.variables, model.variables, strict=True):
        variable.assign(source.value)
    return own, other


def build_uninitialized(config: ConfigDict, num_classes: int) -> keras.Model:
    """Builds the model of a config for images of the size of its crop, whose weights have shapes but no values.

    It costs a tenth of the time of a model with weights, and no memory.
    """

    def build() -> keras.Model:
        with keras.StatelessScope(initialize_variables=False):
            return unet.build_unet(architecture(config, num_classes), tuple(config.data.crop))

    # Keras remembers per thread what is still to be given a value; this is not.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(build).result()


def id_of_class(learnt: str, table: labels.Table) -> np.ndarray:
    """Returns, uint8 [classes], the label id of each of the model's outputs.

    Args:
      learnt: what the model learns, 'train_ids' or 'label_ids'.
      table: the label table.
    """
    return labels.id_of_train_id(table) if learnt == 'train_ids' else np.arange(labels.num_ids(table), dtype=np.uint8)


def class_of_id(learnt: str, table: labels.Table) -> np.ndarray:
    """Returns, int32 [256], the model's output that each label id is learnt as, 255 for those that do not count; see
    `id_of_class`."""
    lookup = labels.train_id_of_id(table).astype(np.int32)
    if learnt == 'label_ids':
        known = [label.id for label in table]
        lookup = np.full(256, labels.IGNORED, np.int32)
        lookup[known] = known
    return lookup


def synchronized(config: ConfigDict, replicas: int) -> bool:
    """Returns whether forward and backward pass hold sums over the replicas, those of batch normalisation."""
    return replicas > 1 and config.model.norm == 'batch' and config.model.norm_over == 'global_batch'


def jit(config: ConfigDict, replicas: int) -> str:
    """Returns what XLA compiles of a replica's step.

    Returns:
      'whole': forward and backward pass as one.
      'pieces': what lies between convolutions, and sums over replicas, each piece by itself. So it is where the passes
        hold such sums, and, unless asked for otherwise, on a CPU: oneDNN's convolutions are 1.2 to 1.7 times as fast as
        XLA's there, in bfloat16 4 to 8 times on one that multiplies it. Normalisation without sums is oneDNN's, too.
      'off': nothing.
    """
    if config.runtime.jit_compile == 'off':
        return 'off'
    on_gpus = bool(tf.config.list_physical_devices('GPU')) and not config.runtime.virtual_devices
    whole = on_gpus or config.runtime.jit_compile == 'on'
    if whole and (jit_collectives(config, replicas) or not synchronized(config, replicas)):
        return 'whole'
    return 'pieces'


def jit_collectives(config: ConfigDict, replicas: int) -> bool:
    """Returns whether XLA compiles the sums over several replicas too, and with them the whole step as one.

    Raises:
      UserError: BAD_CONFIG if that is asked for where XLA cannot do it.
    """
    if config.runtime.jit_compile != 'on' or replicas == 1:
        return False
    if not tf.config.list_physical_devices('GPU'):
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'config.runtime.jit_compile=on: XLA cannot compile sums over {replicas} CPU devices. '
            "Leave it at 'auto', which compiles what lies between them.",
        )
    if config.runtime.microbatches > 1:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'config.runtime.jit_compile=on: in what XLA compiles for {replicas} devices, '
            f'{config.runtime.microbatches} microbatches would be in memory at the same time. '
            "Leave it at 'auto', which compiles what lies between the sums, or set config.runtime.microbatches=1.",
        )
    return True
