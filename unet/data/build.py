"""Makes the batches that a config asks for from a record folder."""

import os
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import places, records
from launch import entry
from unet.data import crops, input_pipeline
from unet.distributed import cluster
from unet.models import build as model_build
from unet.models import preprocess

_iterators: list[
    Iterator
] = []  # of strategies, kept: TensorFlow 2.21 takes up to a minute to destroy one that it tunes


def dropout_channels(config: ConfigDict) -> int:
    """Returns the channels of the dropout mask that each example brings; 0 without dropout."""
    arch = model_build.architecture(config, num_classes=1)
    return arch.channels(arch.depth - 1) if arch.dropout else 0


def color_changes(config: ConfigDict) -> tuple[str, ...]:
    """Returns the changes of colour that are drawn for each example, of `preprocess.COLOR_CHANGES`."""
    return preprocess.COLOR_CHANGES[: 5 if config.data.gamma or config.data.hue else 3]


def make_sampler(config: ConfigDict, split: records.Split) -> crops.Sampler:
    """Makes what draws the crops of a split, see `crops.Sampler`.

    Raises:
      UserError: BAD_DATA as `places.read`, or if class-uniform sampling finds no class that counts.
    """
    data, stored_sizes = config.data, input_pipeline.image_sizes(split)
    table = records.read_label_table(os.path.dirname(split.paths[0]))
    class_of_id = model_build.class_of_id(config.labels, table)
    of_classes = []
    if data.class_uniform:
        of_classes = crops.places_by_class(places.read(split), stored_sizes, class_of_id)
        if not of_classes:
            raise entry.UserError(
                entry.BAD_DATA, f'config.data.class_uniform: no pixel of {data.train_splits} has a class that counts'
            )
    return crops.Sampler(
        np.broadcast_to(data.resize, stored_sizes.shape) if any(data.resize) else stored_sizes,
        seed=config.seed,
        crop=tuple(data.crop),
        scale=tuple(data.scale),
        log_scale=data.log_scale,
        class_uniform=data.class_uniform,
        places=of_classes,
        largest_share=data.largest_share,
        class_of_id=class_of_id,
    )


def make_example_maker(config: ConfigDict, reader: input_pipeline.Reader) -> Callable[[int], tuple[np.ndarray, ...]]:
    """Makes the function that makes the training example at a position, see `input_pipeline.ExampleMaker`.

    Raises:
      UserError: MISSING_INPUT if the folder for a cache on disk is not there, NO_STORAGE if the cache has no room.
    """
    data = config.data
    if data.cache == 'disk' and not os.path.isdir(folder := os.environ.get('TMPDIR', '/')):
        raise entry.UserError(
            entry.MISSING_INPUT, f"TMPDIR={folder}: no such folder, and config.data.cache='disk' is to use it"
        )
    return input_pipeline.ExampleMaker(
        reader,
        make_sampler(config, reader.split),
        flip=data.flip,
        color=tuple(data[change] for change in color_changes(config)),
        resize=tuple(data.resize),
        resize_method=data.resize_method,
        cache=data.cache != 'none',
        cache_dir=tempfile.gettempdir() if data.cache == 'disk' else None,
        dropout=config.model.dropout,
        dropout_channels=dropout_channels(config),
    )


def make_train_batches(
    config: ConfigDict,
    reader: input_pipeline.Reader,
    positions: Callable[[int], range],
    *,
    first: int,
    last: int | None = None,
) -> tf.data.Dataset:
    """Makes the training batches from `first` on, see `input_pipeline.train_batches`.

    Raises:
      UserError: as `make_example_maker`.
    """
    return input_pipeline.train_batches(
        reader,
        make_example_maker(config, reader),
        crop=tuple(config.data.crop),
        color_changes=len(color_changes(config)),
        dropout_channels=dropout_channels(config),
        positions=positions,
        first=first,
        last=last,
    )


def make_distributed_batches(
    config: ConfigDict,
    strategy: tf.distribute.Strategy,
    workers: cluster.Workers,
    reader: input_pipeline.Reader,
    *,
    first_step: int,
) -> tf.data.Dataset:
    """Makes the run's batches from `first_step` on, each replica's share by itself."""
    replicas = strategy.num_replicas_in_sync
    local = replicas // workers.count  # a process's replicas take consecutive batches of its dataset

    def positions(batch_number: int) -> range:
        done, replica = divmod(batch_number, local)
        return input_pipeline.replica_positions(done, config.global_batch, replicas, workers.rank * local + replica)

    return strategy.distribute_datasets_from_function(
        lambda _: make_train_batches(config, reader, positions, first=first_step * local)
    )


def iterate(batches: tf.data.Dataset) -> Iterator:
    """Returns an iterator over distributed batches, which lives as long as the process."""
    _iterators.append(iter(batches))
    return _iterators[-1]


def noise_batch(config: ConfigDict, images: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch as `input_pipeline.train_batches` yields it, of noise, with a void part of another size in each
    image."""
    rng = np.random.default_rng(seed)
    height, width = config.data.crop
    label = rng.integers(0, 34, (images, height, width), dtype=np.uint8)
    for number, void in enumerate(label):
        void[: number * height // images] = 0
    batch: dict[str, np.ndarray] = {
        'image': rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8),
        'label': label,
        'color': np.zeros([images, len(color_changes(config))], np.float32),
    }
    if config.model.dropout:
        batch['dropout_mask'] = np.ones([images, 1, 1, dropout_channels(config)], np.float32)
    return batch
