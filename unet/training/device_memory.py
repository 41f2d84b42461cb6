"""The memory of devices, and how many images one can compute at a time: from an estimate, then by trying.

memory = device_memory.usable_bytes()
microbatches = device_memory.find_microbatches(cost, share=4, memory=memory, try_step=lambda count: None)
"""

import os
import pathlib
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.client import device_lib  # the memory of a GPU has no public name in TensorFlow 2.21

from unet.models import step_cost

# In the messages of errors other than ResourceExhaustedError.
_OUT_OF_MEMORY = (
    'CUDA_ERROR_OUT_OF_MEMORY',
    'Failed to determine best cudnn convolution algorithm',
    'RESOURCE_EXHAUSTED',
    'Out of memory',
)
_USABLE = 0.9  # of a device's memory; the rest is for what the estimate does not know


def local_gpus() -> list[str]:
    """Returns this process's own GPUs; TensorFlow's logical devices are those of all hosts."""
    return [f'GPU:{number}' for number in range(len(tf.config.list_physical_devices('GPU')))]


def gpu_peak_bytes() -> int:
    """Returns the most that was in use at a time on the fullest of this process's GPUs; 0 if there is none."""
    return max((tf.config.experimental.get_memory_info(name)['peak'] for name in local_gpus()), default=0)


def forget_gpu_peak() -> None:
    for name in local_gpus():
        tf.config.experimental.reset_memory_stats(name)


def device_bytes(virtual_devices: int = 0) -> int:
    """Returns the memory that one device of this process may use: of the smallest GPU, or this process's share of the
    host's."""
    gpus = [device.memory_limit for device in device_lib.list_local_devices() if device.device_type == 'GPU']
    if gpus and not virtual_devices:
        return min(gpus)
    return host_bytes() // max(virtual_devices, 1)


def host_bytes() -> int:
    """Returns the memory that is available on this host, in this process's control group if that allows less
    (Linux)."""
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


def is_out_of_memory(error: tf.errors.OpError) -> bool:
    """Says whether an error of TensorFlow's is due to too little memory, by whatever name: XLA on a GPU that is nearly
    full finds no algorithm for a convolution, for example."""
    return isinstance(error, tf.errors.ResourceExhaustedError) or any(sign in error.message for sign in _OUT_OF_MEMORY)


def usable_bytes(virtual_devices: int = 0) -> int:
    """Returns what of `device_bytes` a training step may take."""
    return int(_USABLE * device_bytes(virtual_devices))


def find_microbatches(cost: step_cost.Cost, share: int, memory: int, try_step: Callable[[int], None]) -> int | None:
    """Finds the smallest number of microbatches whose step fits this process's devices.

    Args:
      cost: estimated, of the step.
      share: images of the global batch that one device computes.
      memory: bytes that a device may use.
      try_step: computes one training step in so many microbatches on one device; raises an
        error that `is_out_of_memory` knows if it does not fit.

    Returns:
      The number, which divides `share`; None if not even one image at a time fits.
    """
    for microbatches in step_cost.microbatches(cost, share, memory):
        forget_gpu_peak()
        try:
            try_step(microbatches)
        except tf.errors.OpError as error:
            if not is_out_of_memory(error):
                raise
            continue
        # Batches, sums over devices and evaluations come on top.
        if gpu_peak_bytes() <= memory or microbatches == share:
            return microbatches
    return None
