"""Measures how much memory each training step leaves behind on this host, for runs of a hundred thousand steps.

    python -m benchmarks.leak --config=configs/cityscapes_256.py --config.model.width=4
    python -m launch.local --workers=2 --module=benchmarks.leak -- --config=configs/cityscapes_256.py

It takes --steps steps on noise and fits a line through what the C library says is allocated after each tenth of them,
but for the first, in which buffers and caches fill. Neither what else the machine does counts nor freed memory that the
process keeps for later.
"""

import ctypes
import json
import pathlib
import sys

from absl import flags

from launch import entry, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Not read; launchers pass it.')
_STEPS = flags.DEFINE_integer('steps', 500, 'Steps to take.', lower_bound=10)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')


_MALL_INFO = (
    *('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd'),
    *('usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost'),
)


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALL_INFO]


_LIBC = ctypes.CDLL(None)
_LIBC.mallinfo2.restype = _MallInfo


def main() -> None:
    config = config_flag.checked()
    with host.quiet_import():
        import numpy as np

        from benchmarks import bare
        from unet.distributed import cluster
    runtime = config.runtime
    with cluster.join(
        virtual_devices=runtime.virtual_devices,
        peer_seconds=runtime.peer_seconds,
        stall_seconds=runtime.stall_seconds,
    ) as joined:
        take_steps = bare.training_steps(config, joined.strategy, _STEPS.value // 10)
        in_use = []
        for _ in range(10):
            take_steps()
            joined.stall.progress()
            in_use.append(_bytes_in_use())
        taken = np.arange(1, 11) * (_STEPS.value // 10)
        slope = float(np.polyfit(taken[1:], in_use[1:], 1)[0])
        slopes = joined.group.all_gather(slope)
    print(f'{max(slopes) / 1024:.2f} KiB per step, the most of {len(slopes)} process(es)')
    if _OUTPUT.value and joined.is_chief:
        figures = {'config': config_flag.arguments(sys.argv[1:]), 'bytes_per_step': slopes, 'bytes_in_use': in_use}
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def _bytes_in_use() -> int:
    """mallinfo(3): what of the heap is allocated, in blocks of it and in mappings of their own."""
    info = _LIBC.mallinfo2()
    return info.uordblks + info.hblkhd


if __name__ == '__main__':
    entry.run(main)
