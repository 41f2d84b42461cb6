"""What TensorFlow's own allocator says of the memory of the CPU's tensors, whatever else the machine does meanwhile.

    from tests import allocator             # before TensorFlow allocates anything

    before = allocator.current()
    allocator.forget_peak()
    tf.zeros([1000, 1000])
    allocator.peak() - before               # 4000000

The resident memory of the process, on the other hand, depends on what the C library and the kernel keep for later.
"""

import ctypes
import pathlib

import tensorflow as tf

_DEVICE = 'CPU:0'
_LIBRARY = pathlib.Path(tf.sysconfig.get_lib(), 'libtensorflow_framework.so.2')

# tsl::EnableCPUAllocatorStats() of tsl/framework/allocator.h: TensorFlow counts on CPUs only if it is told to.
ctypes.CDLL(str(_LIBRARY))._ZN3tsl23EnableCPUAllocatorStatsEv()


def current() -> int:
    """Bytes that are in use now."""
    return tf.config.experimental.get_memory_info(_DEVICE)['current']


def peak() -> int:
    """The most bytes that were in use at a time since `forget_peak`."""
    return tf.config.experimental.get_memory_info(_DEVICE)['peak']


def forget_peak() -> None:
    tf.config.experimental.reset_memory_stats(_DEVICE)
