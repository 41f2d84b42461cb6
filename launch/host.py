"""What a program asks of its host: cores and GPUs, memory, quiet imports, output that nobody reads any more."""

import contextlib
import ctypes
import gc
import glob
import importlib.metadata
import io
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

# Of glibc's mallopt, <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


class _Lossy(io.FileIO):
    """A file that drops what it cannot write."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def ignore_broken_pipes() -> None:
    """Lets long work go on when nobody can take its output: what stdout and stderr cannot take is lost from here on.

    Their reader may be gone (tee, a pager, a terminal) or their disk may be full. A program that is of no use once
    nobody reads it does not call this: `entry.run` then ends it quietly.
    """
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        stream.flush()
        raw = _Lossy(stream.fileno(), 'w', closefd=False)
        lossy = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
        setattr(sys, name, lossy)


def cores() -> int:
    """Returns the number of CPU cores that this process may use: in a container or a job fewer than the host has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


def cpu_quota(groups: str = '/proc/self/cgroup', root: str = '/sys/fs/cgroup') -> float:
    """Returns the cores' worth of time that this process's control groups allow, as a pod's CPU limit does.

    Args:
      groups: the file that names them, see cgroups(7).
      root: where they are mounted, of version 1 or 2.

    Returns:
      The least of the groups and those that they lie in; infinity if there is no limit.
    """
    quota = math.inf
    for line in _lines(groups):
        _, controllers, path = line.split(':', 2)
        if controllers and 'cpu' not in controllers.split(','):
            continue
        mounts = [controllers, 'cpu'] if controllers else ['']
        for folder in (pathlib.Path(root, mount, path.strip('/')) for mount in mounts):
            for group in (folder, *folder.parents):
                for limit in _lines(group / 'cpu.max'):  # version 2: '400000 100000', or 'max 100000'
                    time, period = limit.split()
                    quota = min(quota, int(time) / int(period)) if time.isdigit() else quota
                times = [*_lines(group / 'cpu.cfs_quota_us'), *_lines(group / 'cpu.cfs_period_us')]
                if len(times) == 2 and int(times[0]) > 0:  # -1: none
                    quota = min(quota, int(times[0]) / int(times[1]))
    return quota


def multiplies_bfloat16(cpuinfo: str = '/proc/cpuinfo') -> bool:
    """Says whether this CPU has instructions that multiply bfloat16 numbers; without them float32 is faster."""
    found = {word for line in _lines(cpuinfo) for word in line.split()}
    return not found.isdisjoint({'avx512_bf16', 'amx_bf16', 'bf16', 'svebf16'})


def _lines(path: str | pathlib.Path) -> list[str]:
    try:
        return pathlib.Path(path).read_text().splitlines()
    except OSError:
        return []


def visible_gpus(environ: Mapping[str, str] | None = None, device_files: str = '/dev/nvidia[0-9]*') -> list[str]:
    """Returns the NVIDIA GPUs that this process should see: those that the user, the launcher or else the driver names.

    Args:
      environ: the environment; default that of this process.
      device_files: pattern of the files of the driver, one per GPU.

    Returns:
      Their names, as in CUDA_VISIBLE_DEVICES; of UNET_GPUS, by which a launcher says how many it asked for, numbers.
    """
    variables = os.environ if environ is None else environ
    visible = variables.get('CUDA_VISIBLE_DEVICES', 'all')
    if visible != 'all':
        return [] if visible in ('', '-1', 'none', 'NoDevFiles') else visible.split(',')
    container = variables.get('NVIDIA_VISIBLE_DEVICES', 'all')
    for count in (variables.get('UNET_GPUS', ''), variables.get('SLURM_GPUS_ON_NODE', '')):
        if count.isdigit():
            return [str(number) for number in range(int(count))]
    if container in ('', 'none'):
        return []
    if container not in ('all', 'void'):  # void: the container runtime has mounted them by itself (CDI), or none
        return container.split(',')
    return [str(number) for number in range(len(glob.glob(device_files)))]


def keep_freed_memory() -> None:
    """Makes this process keep freed memory for the next images and tensors.

    glibc returns every large block to the system, which then hands it out again page by page: this takes nearly half of
    the CPU time of a training step on a CPU, and a third of a conversion. Nothing changes where the user has set
    MALLOC_... or preloads another allocator.
    """
    if any(name.startswith('MALLOC_') for name in os.environ) or not hasattr(ctypes.CDLL(None), 'mallopt'):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap too
    mallopt(_M_TRIM_THRESHOLD, -1)  # whose end is never given back
    mallopt(_M_ARENA_MAX, 1)  # the heaps of other threads would be, and hold no block above 64 MiB


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Surrounds the import of TensorFlow: it prepares the process and hides what libraries write to stderr meanwhile.

    What is imported stays: the garbage collector, which would go through all of it again and again, leaves it alone.
    TensorFlow notes the absence of things that nobody asked for, before any setting of its log level takes effect. If
    the import fails, all of it is shown.

    Raises:
      FileNotFoundError: if there is no temporary folder, without which TensorFlow cannot be imported either.
    """
    keep_freed_memory()
    gc.disable()
    sys.stderr.flush()
    terminal = os.dup(sys.stderr.fileno())
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), sys.stderr.fileno())
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            gc.freeze()
            gc.enable()
            sys.stderr.flush()
            os.dup2(terminal, sys.stderr.fileno())
            os.close(terminal)


def versions() -> str:
    """Returns the versions of what computes, with those of CUDA's packages where they are installed."""
    import tensorflow as tf

    found = {name: importlib.metadata.version(name) for name in ('tensorflow', 'keras', 'numpy')}
    for package in ('nvidia-cuda-runtime-cu12', 'nvidia-cudnn-cu12', 'nvidia-nccl-cu12'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # on hosts without GPUs
            found[package] = importlib.metadata.version(package)
    cuda = tf.sysconfig.get_build_info().get('cuda_version')
    built = f', built for CUDA {cuda}' if cuda else ''
    return ', '.join(f'{name} {version}' for name, version in found.items()) + built
