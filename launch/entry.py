"""The way into every program: flags, one plain line for a mistake, an exit status that scripts can rely on.

    from launch import entry

    def main():
        raise entry.Failure(entry.MISSING_INPUT, f'{path}: no such folder. Pass --data_dir.')

    if __name__ == '__main__':
        entry.run(main)

This module imports absl alone, so that `--help` answers at once; programs import TensorFlow inside `main`.
"""

import contextlib
import ctypes
import errno
import functools
import glob
import io
import os
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags, logging

# Exit statuses, after sysexits.h where it has one that fits. Slurm and Kubernetes templates act on them.
OK = 0
BUG = 1
BAD_USAGE = 64  # wrong flags or arguments
BAD_DATA = 65  # the data is wrong
MISSING_INPUT = 66  # a file or folder is not there
NO_STORAGE = 69  # no space left, or storage failed
DIVERGED = 70  # non-finite loss, or endless skipping
IN_USE = 73  # the workdir is in use, or belongs to another config
STOPPED = 75  # stopped on request, progress saved: run the same command again
PEER_LOST = 76  # a peer, or this process, hung or vanished: run the same command again
BAD_CONFIG = 78  # a config that cannot work, or devices promised but not there

# Of glibc's mallopt, <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


class Failure(Exception):
    """A mistake that the user can mend: ends the program with `status` and the message, without a traceback.

    The message names what is wrong, which file or flag, and what to do.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def run(main: Callable[..., int | None], *, forwards: bool = False) -> NoReturn:
    """Parses the flags, calls `main` and exits with the status that its outcome stands for.

    Args:
      main: does the work; may return an exit status (None: OK).
      forwards: for launchers: `main` is given the arguments after `--`, untouched.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # TensorFlow's notes drown ours; 0 shows them
    argv, rest = sys.argv, []
    if forwards and '--' in argv:
        argv, rest = argv[: argv.index('--')], argv[argv.index('--') + 1 :]
    call = functools.partial(main, rest) if forwards else main
    parser = functools.partial(_parse_flags, forwards=forwards and not rest)
    app.run(lambda _: _exit(_status_of(call)), argv=argv, flags_parser=parser)


class _Lossy(io.FileIO):
    """A file that drops what it cannot write."""

    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def outlive_readers() -> None:
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


def _exit(status: int) -> NoReturn:
    """Ends the program; without TensorFlow's own farewell, which waits for its threads, for up to a minute."""
    if 'tensorflow' not in sys.modules:
        sys.exit(status)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _parse_flags(argv: list[str], *, forwards: bool) -> list[str]:
    argv = last_of_each_field(argv)
    for argument, following in zip(argv[1:], [*argv[2:], ''], strict=False):
        flag, joined, path = argument.partition('=')
        path = path if joined else following
        if flag in ('--config', '-config') and not os.path.isfile(path.partition(':')[0]):
            # ml_collections would say so with a traceback, and only once the config is used.
            complain(f'--config={path}: no such file (seen from {os.getcwd()})')
            sys.exit(MISSING_INPUT)
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # only the help flags exit while parsing, and absl lets them exit 1
        sys.exit(OK)
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OK)
    except flags.Error as error:
        hint = '; what the program is to get stands after --' if forwards else ''
        complain(f'{error} (--help lists the flags{hint})')
        sys.exit(BAD_USAGE)
    except Failure as error:
        complain(str(error))
        sys.exit(error.status)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ml_collections: a misspelt field, a wrong type
        complain(f'--config: {config_mistake(error)}')
        sys.exit(BAD_USAGE)
    except Exception:  # the config file is a program of the user's: show where it fails
        traceback.print_exc()
        complain('--config: the file above could not be loaded')
        sys.exit(BAD_CONFIG)
    if rest[1:]:
        complain(f'unexpected argument {rest[1]!r}: flags are written --name=value (--help lists them)')
        sys.exit(BAD_USAGE)
    return rest


def config_mistake(error: Exception) -> str:
    """What is wrong with the flags of a config, from an error of ml_collections."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    reason = str(error.args[0] if error.args else error)
    if isinstance(error, KeyError):
        name, _, hint = reason.partition('\n')
        return f'no such field: {name}. {hint or "configs/default.py lists them."}'
    return ' '.join(reason.split())


def last_of_each_field(arguments: list[str]) -> list[str]:
    """Of a config field that is given several times, the last value alone: ml_collections would join tuples."""
    last = {argument.partition('=')[0]: place for place, argument in enumerate(arguments)}
    return [
        argument
        for place, argument in enumerate(arguments)
        if not argument.startswith('--config.') or '=' not in argument or last[argument.partition('=')[0]] == place
    ]


def _status_of(main: Callable[[], int | None]) -> int:
    logging.set_verbosity(logging.WARNING)
    try:
        return main() or OK
    except Failure as error:
        complain(str(error))
        return error.status
    except KeyboardInterrupt:
        complain('stopped; run the same command again')
        return STOPPED
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        if sys.stdout is not sys.__stdout__:  # and is outlived: it was another pipe, or a connection
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        complain(
            f'{error.filename or "storage"}: {error.strerror}. Free some space or mend the storage, then run again.'
        )
        return NO_STORAGE


def complain(message: str) -> None:
    """Prints a line to stderr, after the program's name."""
    path = pathlib.Path(sys.argv[0])
    with contextlib.suppress(OSError):  # whatever has become of stdout
        sys.stdout.flush()
    print(f'{path.parent.name}.{path.stem}: {message}', file=sys.stderr, flush=True)
