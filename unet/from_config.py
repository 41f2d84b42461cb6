"""Config -> the network and what surrounds it; here, in train.py, and nowhere below, config fields are read."""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from launch import entry
from unet import checkpoint, cluster, inference, input_pipeline, loss, memory, model, peers, serving, step, workdir

_iterators = []  # of strategies, kept: TensorFlow 2.21 takes up to a minute to destroy one that it tunes
_FOLDERS = {'best': workdir.BEST, 'latest': workdir.CHECKPOINTS}


def network(config: ConfigDict, table: labels.Table, *, replicas: int) -> keras.Model:
    """The network; its weights are a function of the config's seed."""
    keras.utils.set_random_seed(config.seed)
    return model.unet(
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


def predictor(
    config: ConfigDict, net: keras.Model, table: labels.Table, **looks: object
) -> Callable[[tf.Tensor], tf.Tensor]:
    """uint8 images [b, h, w, 3] of any size -> label ids, uint8 [b, h, w].

    Args:
      config, net, table: the run's.
      **looks: `window`, `overlap`, `jit_windows`, `scales` and `flip` of `inference.make_predictor`.
    """
    ids = tf.constant(id_of_class(config.labels, table))
    return inference.make_predictor(model.for_inference(net), id_of_class=ids, **(_what_surrounds(config) | looks))


def logits(config: ConfigDict, net: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """uint8 images [b, h, w, 3] of any size -> logits [b, h, w, classes], of which `predictor` takes the largest."""
    return inference.make_logits(model.for_inference(net), **_what_surrounds(config))


def _what_surrounds(config: ConfigDict) -> dict[str, object]:
    return {
        'padding': config.model.padding,
        'depth': config.model.depth,
        'tile': tuple(config.data.crop),
        'resize': tuple(config.eval.resize),
        'resize_method': config.data.resize_method,
    }


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
      Failure: BAD_CONFIG if class weights do not fit the classes or cannot be computed.
    """
    ids = id_of_class(config.labels, table)
    weights = config.loss.class_weights
    if config.loss.balanced:
        if class_pixels is None:
            raise entry.Failure(
                entry.BAD_CONFIG,
                'config.loss.balanced needs the manifest that data_prep.build_tfrecords writes; this record folder has '
                'none. Give config.loss.class_weights, or build the folder with it.',
            )
        if not class_pixels[ids].any():
            raise entry.Failure(
                entry.BAD_DATA, f'config.loss.balanced: no pixel of {config.data.train_splits} has a class that counts'
            )
        weights = loss.balanced_class_weights(class_pixels[ids].tolist())
    if weights and len(weights) != len(ids):
        raise entry.Failure(
            entry.BAD_CONFIG, f'config.loss.class_weights has {len(weights)} values; there are {len(ids)} classes'
        )
    return loss.make_losses(
        {name: config.loss[name] for name in loss.NAMES},
        class_weights=tuple(weights),
        label_smoothing=config.loss.label_smoothing,
        focal_gamma=config.loss.focal_gamma,
        hard_threshold=config.loss.hard_threshold,
        hard_least=config.loss.hard_least,
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
        class_of_id=tf.constant(class_of_id(config.labels, table)),
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
        jit_compile=jit_compile(config, replicas),
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


def fitting_microbatches(config: ConfigDict, table: labels.Table, group: peers.Peers, replicas: int) -> int:
    """The smallest number of parts of a replica's share of the batch that fits all ranks' devices, by trying a step.

    Raises:
      Failure: BAD_CONFIG if none does.
    """
    compiled = jit_compile(config, replicas)
    class_pixels = np.ones(256) if config.loss.balanced else None

    def try_step(tried: ConfigDict) -> None:
        tried.runtime.jit_compile = 'on' if compiled else 'off'
        noise = noise_batch(tried, tried.global_batch // replicas)
        batch = {name: tf.constant(values) for name, values in noise.items()}
        net = network(tried, table, replicas=replicas)  # with the normalisation of so many, which takes more memory
        state = train_state(tried, net)
        tf.function(replica_step(tried, net, state, table, 1, class_pixels))(batch, tf.constant(0.0))

    ours = memory.find_microbatches(
        config, len(id_of_class(config.labels, table)), replicas=replicas, try_step=try_step
    )
    gc.collect()
    return max(group.gather(ours))


def example_settings(config: ConfigDict) -> dict[str, object]:
    """Those of `input_pipeline.example_maker` that show in an example."""
    data, channels = config.data, model.bottom_channels(config.model.width, config.model.depth)
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
      Failure: MISSING_INPUT if the folder for a cache on disk is not there.
    """
    if config.data.cache == 'disk' and not os.path.isdir(folder := os.environ.get('TMPDIR', '/')):
        raise entry.Failure(
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
      Failure: BAD_CONFIG if a server makes other examples; NO_STORAGE if the cache has no room.
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
        channels = model.bottom_channels(config.model.width, config.model.depth)
        batch['kept'] = np.ones([images, 1, 1, channels], np.float32)
    return batch


def same_batch_again(config: ConfigDict, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """One batch of noise for each replica, from memory, for ever."""
    batch = noise_batch(config, config.global_batch // strategy.num_replicas_in_sync)
    return strategy.distribute_datasets_from_function(
        lambda _: tf.data.Dataset.from_tensors(batch).repeat().prefetch(tf.data.AUTOTUNE)
    )


def peak_learning_rate(config: ConfigDict) -> float:
    """The learning rate for this global batch, by config.optimizer.batch_scaling.

    Sources: 'linear', https://arxiv.org/abs/1706.02677; 'sqrt', https://arxiv.org/abs/1404.5997.
    """
    factor = config.global_batch / config.optimizer.reference_batch
    exponent = {'none': 0.0, 'sqrt': 0.5, 'linear': 1.0}[config.optimizer.batch_scaling]
    return config.optimizer.learning_rate * factor**exponent


def jit_compile(config: ConfigDict, replicas: int) -> bool:
    """Whether XLA compiles the training step.

    'auto': where there is one replica, whose step holds no collectives. In float32 on a CPU it is then 2 to 24 %
    faster, on one core between 7 % slower and 18 % faster; in bfloat16 five times as fast (`benchmarks.survey`).

    Raises:
      Failure: BAD_CONFIG if it is asked for where XLA cannot do it.
    """
    gpus = bool(tf.config.list_physical_devices('GPU'))
    if config.runtime.jit_compile == 'on' and replicas > 1 and not gpus:
        raise entry.Failure(
            entry.BAD_CONFIG,
            f'config.runtime.jit_compile=on: XLA cannot compile collectives between {replicas} CPU devices. '
            "Leave it at 'auto'.",
        )
    if config.runtime.jit_compile == 'on' and replicas > 1 and config.runtime.microbatches > 1:
        raise entry.Failure(
            entry.BAD_CONFIG,
            f'config.runtime.jit_compile=on: in what XLA compiles for {replicas} devices, '
            f'{config.runtime.microbatches} microbatches would be in memory at the same time. '
            "Leave it at 'auto', or set config.runtime.microbatches=1.",
        )
    return replicas == 1 if config.runtime.jit_compile == 'auto' else config.runtime.jit_compile == 'on'


def jit_predictions(config: ConfigDict, replicas: int) -> bool:
    """Whether XLA compiles predictions, which it does anew for each image size.

    'auto': as the step, but on a CPU only for bfloat16, which is slow there without XLA; else it brings nothing.
    """
    if config.runtime.jit_compile == 'auto' and not tf.config.list_physical_devices('GPU'):
        return replicas == 1 and config.precision == 'bfloat16'
    return jit_compile(config, replicas)


def trained(run: str, which: str) -> tuple[ConfigDict, labels.Table, keras.Model, str]:
    """A run's config, label table and network with the weights of a checkpoint, and that checkpoint's path.

    Args:
      run: the workdir.
      which: 'best', 'latest' or the path of a checkpoint.

    Raises:
      Failure: MISSING_INPUT if there is no such run or checkpoint.
    """
    config = workdir.read_config(run)
    table = labels.read(os.path.join(run, labels.FILE))
    net = network(config, table, replicas=1)  # statistics are only synchronised in training
    weights = [variable.value for variable in net.trainable_variables]
    state = tf.Module()
    state.ema = [tf.Variable(weight) for weight in weights] if config.optimizer.ema else []
    contents = tf.train.Checkpoint(model=net, state=state)
    path = which
    if which in _FOLDERS:
        folder = os.path.join(run, _FOLDERS[which])
        path = checkpoint.restore(folder, contents)
        if path is None:
            raise entry.Failure(
                entry.MISSING_INPUT, f'{folder}: no checkpoint yet. Train further, or pass --checkpoint=latest.'
            )
    else:
        checkpoint.restore_path(which, contents)
    for weight, mean in zip(weights, state.ema, strict=bool(state.ema)):
        weight.assign(mean)
    return config, table, model.for_inference(net), path


def in_precision(
    config: ConfigDict, net: keras.Model, table: labels.Table, precision: str
) -> tuple[ConfigDict, keras.Model]:
    """The config and network of the same weights that compute in another precision, and in ops that are no XLA's."""
    own = ConfigDict(config.to_dict())
    own.precision = precision
    own.runtime.jit_compile = 'off'
    other = network(own, table, replicas=1)
    for variable, source in zip(other.variables, net.variables, strict=True):
        variable.assign(source.value)
    return own, other


def step_of(path: str) -> int:
    """The steps that a checkpoint's model was trained for."""
    return int(tf.train.load_variable(path, 'state/step/.ATTRIBUTES/VARIABLE_VALUE'))


def init_from(source: str, net: keras.Model) -> str:
    """Takes over the weights and statistics of another run that fit, by name and shape.

    Args:
      source: its workdir; the best checkpoint is taken, or the latest if there is no best yet.
      net: the network to fill.

    Returns:
      What was taken and what was not, for people.

    Raises:
      Failure: MISSING_INPUT if there is no such checkpoint, BAD_CONFIG if nothing in it fits.
    """
    which = 'best' if checkpoint.list_newest_first(os.path.join(source, workdir.BEST)) else 'latest'
    _, _, other, path = trained(source, which)
    theirs = {variable.path: variable for variable in other.variables}
    left_out = []
    for variable in net.variables:
        found = theirs.get(variable.path)
        if found is not None and found.shape == variable.shape:
            variable.assign(found.value)
        else:
            left_out.append(f'{variable.path}: {found.shape if found is not None else "missing"} -> {variable.shape}')
    if len(left_out) == len(net.variables):
        raise entry.Failure(entry.BAD_CONFIG, f'config.init_from={path}: none of its weights fit this model')
    taken = f'Weights from {path}: {len(net.variables) - len(left_out)} of {len(net.variables)} fit'
    return taken + ''.join(f'\n  left out: {line}' for line in left_out)
