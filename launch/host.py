"""This host as a program finds it: its cores and GPUs, its memory, the noise of imports, readers that go away."""

import contextlib
import ctypes
import glob
import io
import os
import sys
import tempfile
from collections.abc import Iterator

# Of glibc's mallopt, <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


class _Lossy(io.FileIO):
    """A file that drops what it cannot write."""

    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def ignore_broken_pipes() -> None:
    """For long work: from here on, what stdout and stderr cannot take is lost, and nothing else.

    Their reader may be gone (tee, a pager, a terminal) or their disk be full; the work goes on. A program that is done
    once nobody reads it leaves this out: `run` ends it quietly then.
    """
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        stream.flush()
        raw = _Lossy(stream.fileno(), 'w', closefd=False)
        lossy = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
        setattr(sys, name, lossy)


def cores() -> int:
    """CPU cores that this process may use, which in a container or a cluster job may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def visible_gpus(environ: dict[str, str] | None = None, device_files: str = '/dev/nvidia[0-9]*') -> list[str]:
    """The NVIDIA GPUs that this process should see, as in CUDA_VISIBLE_DEVICES: those that the user, the launcher or
    else the driver names."""
    environ = os.environ if environ is None else environ
    visible = environ.get('CUDA_VISIBLE_DEVICES', environ.get('NVIDIA_VISIBLE_DEVICES'))
    if visible is not None and visible != 'all':
        return [] if visible in ('', '-1', 'none', 'void') else visible.split(',')
    slurm = environ.get('SLURM_GPUS_ON_NODE', '')
    count = int(slurm) if slurm.isdigit() else len(glob.glob(device_files))
    return [str(number) for number in range(count)]


def keep_freed_memory() -> None:
    """Keeps the memory of images and tensors that are done with for the next ones.

    glibc gives every large block back to the system, and that gives it again page by page: nearly half of the CPU time
    of a training step on a CPU, a third of a conversion. Whoever sets MALLOC_... or preloads another allocator decides.
    """
    if any(name.startswith('MALLOC_') for name in os.environ) or not hasattr(ctypes.CDLL(None), 'mallopt'):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap too
    mallopt(_M_TRIM_THRESHOLD, -1)  # whose end is never given back
    mallopt(_M_ARENA_MAX, 1)  # the heaps of other threads would be, and hold no block above 64 MiB


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Around the import of TensorFlow: prepares the process for it, and keeps off the terminal what libraries write to
    stderr meanwhile; shown if the import fails.

    TensorFlow notes the absence of things that nobody asked for, before any setting of its log level takes effect.
    """
    keep_freed_memory()
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
            sys.stderr.flush()
            os.dup2(terminal, sys.stderr.fileno())
            os.close(terminal)
