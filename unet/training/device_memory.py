"""The memory of devices, and how many images one can compute at a time: from an estimate, then by trying.

microbatches = memory.find_microbatches(config, num_classes=19, replicas=8, try_step=...)
"""

import os
import pathlib
from collections.abc import Callable

import tensorflow as tf
from ml_collections import ConfigDict
from tensorflow.python.client import device_lib  # the memory of a GPU has no public name in TensorFlow 2.21

from launch import entry
from unet.models import build as model_build
from unet.models import step_cost

_USABLE = 0.9  # of a device's memory; the rest is for what the estimate does not know


def local_gpus() -> list[str]:
    """This process's own GPUs; TensorFlow's logical devices are those of all hosts."""
    return [f'GPU:{number}' for number in range(len(tf.config.list_physical_devices('GPU')))]


def gpu_peak_bytes() -> int:
    """Most that was in use at a time on the fullest of this process's GPUs; 0 if there is none."""
    return max((tf.config.experimental.get_memory_info(name)['peak'] for name in local_gpus()), default=0)


def forget_gpu_peak() -> None:
    for name in local_gpus():
        tf.config.experimental.reset_memory_stats(name)


def device_bytes(virtual_devices: int = 0) -> int:
    """Memory that one device of this process may use: of the smallest GPU, or this process's share of the host's."""
    gpus = [device.memory_limit for device in device_lib.list_local_devices() if device.device_type == 'GPU']
    if gpus and not virtual_devices:
        return min(gpus)
    return host_bytes() // max(virtual_devices, 1)


def host_bytes() -> int:
    """Memory that is available on this host, in this process's control group if that allows less (Linux)."""
    fields = dict(line.split(':') for line in pathlib.Path('/proc/meminfo').read_text().splitlines())
    free = [int(fields['MemAvailable'].split()[0]) * 1024]
    own = next((line[3:] for line in _lines('/proc/self/cgroup') if line.startswith('0::')), '/').strip('/')
    group = pathlib.Path('/sys/fs/cgroup', own)
    for folder in (group, *group.parents[:-3]):  # a limit holds for all groups below; up to /sys/fs/cgroup
        for limit in _lines(folder / 'memory.max'):
            if limit.isdigit():
                free.append(int(limit) - int(_lines(folder / 'memory.current')[0]))
    return max(min(free), 0)


def _lines(path: str | pathlib.Path) -> list[str]:
    return pathlib.Path(path).read_text().splitlines() if os.path.exists(path) else []


def find_microbatches(
    config: ConfigDict, num_classes: int, *, replicas: int, try_step: Callable[[ConfigDict], None]
) -> int:
    """The smallest number of parts of a replica's share of the batch that fits this process's devices.

    Args:
      config: its runtime.microbatches is ignored.
      num_classes: channels of the network's output.
      replicas: how many share the global batch.
      try_step: computes one training step of a config on one device; raises tf.errors.ResourceExhaustedError if it
        does not fit.

    Raises:
      UserError: BAD_CONFIG if not even one image at a time fits.
    """
    share = config.global_batch // replicas
    memory = int(_USABLE * device_bytes(config.runtime.virtual_devices))
    for parts in step_cost.microbatches(model_build.estimate_cost(config, num_classes), share, memory):
        tried = config.copy_and_resolve_references()
        tried.runtime.microbatches = parts
        forget_gpu_peak()
        try:
            try_step(tried)
        except tf.errors.ResourceExhaustedError:
            continue
        if gpu_peak_bytes() <= memory or parts == share:  # batches, sums over devices and evaluations come on top
            return parts
    raise entry.UserError(
        entry.BAD_CONFIG,
        f'not even one image of {"x".join(map(str, config.data.crop))} at a time fits {memory / 2**30:.1f} GiB: set '
        'config.runtime.recompute=True or config.precision=bfloat16, or lower config.data.crop or config.model.width.',
    )
