"""Config and records -> batches."""

import os
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from launch import entry
from unet.data import input_pipeline, serving
from unet.distributed import cluster
from unet.models import unet

_iterators = []  # of strategies, kept: TensorFlow 2.21 takes up to a minute to destroy one that it tunes


def example_settings(config: ConfigDict) -> dict[str, object]:
    """Those of `input_pipeline.example_maker` that show in an example."""
    data, channels = config.data, unet.bottom_channels(config.model.width, config.model.depth)
    return {
        'seed': config.seed,
        'crop': tuple(data.crop),
        'scale': tuple(data.scale),
        'flip': data.flip,
        'color': (data.brightness, data.contrast, data.saturation),
        'resize': tuple(data.resize),
        'resize_method': data.resize_method,
        'dropout': config.model.dropout,
        'dropout_channels': channels if config.model.dropout else 0,
    }


def cache_settings(config: ConfigDict) -> dict[str, object]:
    """Those that do not.

    Raises:
      UserError: MISSING_INPUT if the folder for a cache on disk is not there.
    """
    if config.data.cache == 'disk' and not os.path.isdir(folder := os.environ.get('TMPDIR', '/')):
        raise entry.UserError(
            entry.MISSING_INPUT, f"TMPDIR={folder}: no such folder, and config.data.cache='disk' is to use it"
        )
    return {
        'cache': config.data.cache != 'none',
        'cache_dir': tempfile.gettempdir() if config.data.cache == 'disk' else None,
    }


def train_batches(
    config: ConfigDict,
    reader: input_pipeline.Reader,
    positions: Callable[[int], range],
    *,
    first: int,
    last: int | None = None,
) -> tf.data.Dataset:
    """The training batches from `first` on, see `input_pipeline.train_batches`.

    Raises:
      UserError: BAD_CONFIG if a server makes other examples; NO_STORAGE if the cache has no room.
    """
    settings, servers = example_settings(config), None
    if config.data.servers:
        servers = serving.meet(config.data.servers, serving.agreement(reader.split, **settings))
    else:
        settings |= cache_settings(config)
    return input_pipeline.train_batches(
        reader, positions=positions, first=first, last=last, servers=servers, **settings
    )


def distributed_batches(
    config: ConfigDict,
    strategy: tf.distribute.Strategy,
    workers: cluster.Workers,
    reader: input_pipeline.Reader,
    *,
    first_step: int,
) -> tf.data.Dataset:
    """The run's batches from `first_step` on, each replica's share by itself."""
    replicas = strategy.num_replicas_in_sync
    local = replicas // workers.count  # a process's replicas take consecutive batches of its dataset

    def positions(share: int) -> range:
        done, replica = divmod(share, local)
        return input_pipeline.replica_positions(done, config.global_batch, replicas, workers.rank * local + replica)

    return strategy.distribute_datasets_from_function(
        lambda _: train_batches(config, reader, positions, first=first_step * local)
    )


def iterate(batches: tf.data.Dataset) -> Iterator:
    """An iterator over distributed batches, which lives as long as the process."""
    _iterators.append(iter(batches))
    return _iterators[-1]


def noise_batch(config: ConfigDict, images: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as `input_pipeline.train_batches` yields it, of noise, with a void part of another size in each image."""
    rng = np.random.default_rng(seed)
    height, width = config.data.crop
    label = rng.integers(0, 34, (images, height, width), dtype=np.uint8)
    for number, void in enumerate(label):
        void[: number * height // images] = 0
    batch = {
        'image': rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8),
        'label': label,
        'color': np.zeros([images, 3], np.float32),
    }
    if config.model.dropout:
        channels = unet.bottom_channels(config.model.width, config.model.depth)
        batch['kept'] = np.ones([images, 1, 1, channels], np.float32)
    return batch
