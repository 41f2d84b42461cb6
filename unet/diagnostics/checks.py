"""What can be known to go wrong before the first step, one line per check.

    for check in checks.before_training(config, 'runs/cityscapes', data_dir, split, eval_split, table, strategy):
        print(check)

The public functions read the config, and each check that they make takes the values that it compares.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels, png, records
from launch import entry, host
from unet.diagnostics import device_speed
from unet.distributed import cluster
from unet.models import build as model_build
from unet.models import field_of_view, step_cost, unet
from unet.training import build as training_build
from unet.training import device_memory
from unet.training import workdir as workdir_files


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of a report.

    Attributes:
      name: what was checked.
      passed: whether it is well.
      found: what was found, with figures.
      remedy: what to do if it failed.
      status: exit status if it failed; OK for what is only to be warned of.
    """

    name: str
    passed: bool
    found: str
    remedy: str = ''
    status: int = entry.BAD_CONFIG

    def __str__(self) -> str:
        line = f'{"pass" if self.passed else "FAIL" if self.status else "warn"}  {self.name}: {self.found}'
        return line if self.passed or not self.remedy else f'{line}. {self.remedy}'


def before_training(
    config: ConfigDict,
    workdir: str,
    data_dir: str,
    split: records.Split,
    eval_split: records.Split,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
) -> Iterator[Check]:
    """Makes the checks that every process makes for itself.

    Args:
      config: a valid one.
      workdir: the folder of the run.
      data_dir: the record folder.
      split, eval_split: what is trained on and what is scored, of that folder.
      table: its label table.
      strategy: the devices of the run.

    Yields:
      Each check as it is made.
    """
    replicas = strategy.num_replicas_in_sync
    yield _versions()
    yield _png_reader()
    yield _data(data_dir)
    yield _labelled(split, eval_split)
    yield _classes(table)
    yield _workers(split, cluster.rank_and_count(strategy)[1])
    yield _crop(config.data.crop, config.data.scale, config.data.resize, split)
    yield batch(config, replicas)
    yield _trackers(config.log.trackers)
    num_classes = len(model_build.id_of_class(config.labels, table))
    cost = training_build.estimate_cost(config, num_classes)
    yield _model(model_build.architecture(config, num_classes), cost)
    share = -(-config.global_batch // replicas)
    yield _memory(
        cost,
        images=share // (config.runtime.microbatches or share),
        available=device_memory.device_bytes(config.runtime.virtual_devices),
    )
    yield _space(workdir, config.checkpoint.keep, cost.checkpoint_bytes)


def _versions() -> Check:
    """The code relies on what TensorFlow 2.21 and Keras 3.15 do, private parts included."""
    tensorflow, keras = (
        tuple(map(int, importlib.metadata.version(name).split('.')[:2])) for name in ('tensorflow', 'keras')
    )
    return Check(
        'versions',
        tensorflow == (2, 21) and (3, 15) <= keras < (4,),
        host.versions(),
        'TensorFlow 2.21 and Keras 3.15 or later are needed: pip install -c constraints.txt -e .',
    )


def _png_reader() -> Check:
    return Check('PNG reader', png.is_compiled(), png.describe_reader(), png.SLOW_READER_REMEDY, entry.OK)


def _data(data_dir: str) -> Check:
    """Sizes and digests against the manifest; a folder that TFDS built by its own counts, which reading it compares."""
    folder = records.check_complete(data_dir)
    manifest = records.read_manifest(data_dir)
    problems = records.check_files(folder, manifest) if manifest else []
    sizes = ', '.join(f'{size:,} of {split}' for split, size in records.split_sizes(data_dir).items() if size)
    return Check(
        f'data in {data_dir}',
        not problems,
        '; '.join(problems[:4]) or sizes + ('' if manifest else ' (by TFDS, without a manifest)'),
        'python -m data_prep.verify_tfrecords finds out what is wrong.',
        entry.BAD_DATA,
    )


def _labelled(*splits: records.Split) -> Check:
    bare = [f'{s.name} ({s.image_ids[int(np.argmin(s.labelled))]}, ...)' for s in splits if not s.labelled.all()]
    return Check(
        'labels',
        not bare,
        f'none of images of {", ".join(bare)}' if bare else 'of every image',
        'Name splits with labels in config.data.train_splits and config.data.eval_split.',
        entry.BAD_DATA,
    )


def _classes(table: labels.Table) -> Check:
    classes = labels.classes(table)
    return Check(
        'classes',
        len(classes) > 1,
        f'{len(classes)} scored of {len(table)} label ids'
        if len(classes) > 1
        else f'{classes[0].name} alone is scored',
        f'{labels.ONE_CLASS[0].upper()}{labels.ONE_CLASS[1:]}',
        entry.OK,
    )


def _workers(split: records.Split, workers: int) -> Check:
    return Check(
        'workers and shards',
        workers <= len(split),
        f'{workers} worker(s) read {len(split):,} images of {len(split.paths)} shard(s), each those of its own steps',
        'There are more workers than images: use fewer.',
    )


def _crop(crop: tuple[int, int], scale: tuple[float, float], resize: tuple[int, int], split: records.Split) -> Check:
    """The smallest part of an image that becomes a crop must fit into some image."""
    heights, widths = resize if any(resize) else (split.height, split.width)
    tallest, widest = int(np.max(heights)), int(np.max(widths))
    height, width = (round(side / scale[1]) for side in crop)
    return Check(
        'crop and image sizes',
        height <= tallest and width <= widest,
        f'crops of {crop[0]}x{crop[1]} show at least {height}x{width} pixels of images of up to {tallest}x{widest}',
        'Every crop would be partly border: lower config.data.crop.',
    )


def refuse(found: Iterable[Check]) -> None:
    """Prints what failed and is only to be warned of. Raises UserError with all else that failed."""
    failed = [check for check in found if not check.passed]
    for check in failed:
        if check.status == entry.OK:
            print(check, flush=True)
    fatal = [check for check in failed if check.status]
    if fatal:
        raise entry.UserError(
            fatal[0].status, '\n'.join(f'{check.name}: {check.found}. {check.remedy}' for check in fatal)
        )


def batch(config: ConfigDict, replicas: int) -> Check:
    """Checks that the global batch divides over the devices, and a device's share into its microbatches."""
    share, rest = divmod(config.global_batch, replicas)
    microbatches = config.runtime.microbatches
    multiple = replicas * max(microbatches, 1)
    return Check(
        'global batch and devices',
        rest == 0 and (microbatches == 0 or share % microbatches == 0),
        f'{config.global_batch} images over {replicas} device(s) in {microbatches or "as many as needed"} '
        'microbatch(es)',
        f'The next config.global_batch that divides is {-(-config.global_batch // multiple) * multiple}.',
    )


def _trackers(names: tuple[str, ...]) -> Check:
    found = {name: importlib.util.find_spec(name) for name in names}
    # A folder of that name is a package without an origin.
    missing = [name for name, spec in found.items() if spec is None or spec.origin is None]
    return Check(
        'config.log.trackers',
        not missing,
        f'{", ".join(missing)} not installed' if missing else ', '.join(names) or 'none',
        f"Install what is missing (pip install 'unet-cityscapes[{','.join(missing)}]'), or leave it out",
    )


def _model(arch: unet.Architecture, cost: step_cost.Cost) -> Check:
    return Check(
        'model',
        True,
        f'{cost.parameters:,} parameters; a pixel sees {field_of_view.pixels(arch)} pixels along each side; '
        f'{cost.forward_flops / 1e9:.3g} GFLOP to predict a crop, {cost.step_flops / 1e9:.3g} to train on it',
        '',
        entry.OK,
    )


def _memory(cost: step_cost.Cost, *, images: int, available: int) -> Check:
    """A device of `available` bytes should hold a step on so many images at a time."""
    needed = step_cost.step_bytes(cost, images)
    return Check(
        'memory',
        needed <= available,
        f'{images} image(s) at a time take about {_size(needed)} of {_size(available)}; '
        f'{step_cost.largest_microbatch(cost, available)} would fit; {_size(cost.all_reduce_bytes)} summed per step',
        'Raise config.runtime.microbatches (0 finds it), or set config.runtime.recompute=True.',
        entry.OK,
    )


def expected_step_seconds(config: ConfigDict, num_classes: int, strategy: tf.distribute.Strategy) -> float:
    """Estimates how long a step of a config takes, see `device_speed.step_seconds`."""
    replicas = strategy.num_replicas_in_sync
    return device_speed.step_seconds(
        model_build.build_uninitialized(config, num_classes),
        strategy,
        global_batch=config.global_batch,
        microbatches=config.runtime.microbatches,
        jit=model_build.jit(config, replicas),
        synchronized=model_build.synchronized(config, replicas),
    )


def expected_time(
    config: ConfigDict, table: labels.Table, strategy: tf.distribute.Strategy, bytes_per_second: float, latency: float
) -> Check:
    """Expects how long the run will take from convolutions that it times, and how efficient more hosts would be.

    Args:
      config: a valid one.
      table: the label table.
      strategy: the devices of the run.
      bytes_per_second: that a host can send to the others.
      latency: seconds that each message between hosts takes besides.
    """
    classes = len(model_build.id_of_class(config.labels, table))
    alone = expected_step_seconds(config, classes, strategy)
    cost = training_build.estimate_cost(config, classes)
    share = config.global_batch // strategy.num_replicas_in_sync
    fitting = step_cost.microbatches(cost, share, device_memory.device_bytes(config.runtime.virtual_devices))
    microbatches = config.runtime.microbatches or next(fitting, share)

    def efficiency(hosts: int) -> float:
        return step_cost.scaling_efficiency(
            cost,
            step_seconds=alone,
            hosts=hosts,
            bytes_per_second=bytes_per_second,
            latency=latency,
            microbatches=microbatches,
        )

    seconds = alone / efficiency(cluster.rank_and_count(strategy)[1])
    more = ', '.join(f'{100 * efficiency(hosts):.0f} % on {hosts}' for hosts in (2, 4, 8, 16))
    return Check(
        'expected time',
        True,
        f'{seconds:.3g} s per step, {config.global_batch / seconds:.3g} images/s, '
        f'{config.num_steps * seconds / 3600:.3g} h for {config.num_steps:,} steps if none waits for data. More hosts, '
        f'each with as many images, would be {more} efficient at {bytes_per_second / 1e9:g} GB/s '
        f'and {1000 * latency:g} ms per message',
    )


def _space(workdir: str, kept: int, checkpoint_bytes: int) -> Check:
    """The workdir's filesystem must have room for the checkpoints that are kept, the best, and one more of each while
    it is written, less those that are there."""
    kinds = (workdir_files.CHECKPOINTS, workdir_files.BEST)
    there = sum(path.stat().st_size for kind in kinds for path in pathlib.Path(workdir, kind).glob('*.data-*'))
    needed = max((kept + 3) * checkpoint_bytes - there, 2 * checkpoint_bytes)
    folder = pathlib.Path(os.path.abspath(workdir))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check(
        'space for checkpoints',
        needed <= free,
        f'{_size(needed)} of the {_size(free)} free in {folder}',
        'Free some space, lower config.checkpoint.keep or pass another --workdir.',
        entry.NO_STORAGE,
    )


def _size(count: int) -> str:
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.1f} MiB'
