"""The way into every program: flags, one plain line for a mistake, an exit status that scripts can rely on.

    from launch import entry

    def main():
        raise entry.UserError(entry.MISSING_INPUT, 'data/cityscapes: no such folder. Pass --data_dir.')

    if __name__ == '__main__':
        entry.run(main)

This module imports absl alone, so that `--help` answers at once; programs import TensorFlow within `main`.
"""

import contextlib
import errno
import functools
import io
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

STARTED = time.time()  # of this process, as near as it can tell

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
PEER_LOST = 76  # a peer, or this process, hung, vanished or went astray: run the same command again
BAD_CONFIG = 78  # a config that cannot work, or devices promised but not there


# What the system says no with: exit status and remedy. Everything else that it says about a file is of its storage.
_NOT_USABLE = {
    errno.ENOENT: (MISSING_INPUT, 'Check how it is written, or copy it there.'),
    errno.EACCES: (BAD_USAGE, 'Pass another path, or have its owner let this user read, or write, there.'),
    errno.EPERM: (BAD_USAGE, 'Pass another path, or have its owner let this user change it.'),
    errno.ENOTDIR: (BAD_USAGE, 'A file stands where a folder should be: pass another path.'),
    errno.EEXIST: (BAD_USAGE, 'A file stands where a folder should be: pass another path.'),
    errno.EISDIR: (BAD_USAGE, 'A folder stands where a file should be: pass another path.'),
    errno.ENAMETOOLONG: (BAD_USAGE, 'Shorten its name, or pass another path.'),
    errno.ELOOP: (BAD_USAGE, 'A link leads to itself: mend it, or pass another path.'),
    errno.EFBIG: (NO_STORAGE, 'Raise the limit on the size of a file (ulimit -f), or use another file system.'),
    errno.EROFS: (NO_STORAGE, 'Pass a path that may be written to.'),
    errno.EMFILE: (BAD_CONFIG, 'Raise the limit on open files (ulimit -n).'),
    errno.ENFILE: (BAD_CONFIG, 'Raise the limit on open files of this host.'),
}
# Libraries for remote files raise these without a number.
_NUMBERS: dict[type, int] = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    FileExistsError: errno.EEXIST,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
}
# These say so without a file too: writing to an open file does not name it.
_STORAGE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.EMFILE, errno.ENFILE,
}  # fmt: skip


# What libraries read when they are loaded; what the user has set counts.
_ENVIRONMENT = {
    'TF_CPP_MIN_LOG_LEVEL': '3',  # TensorFlow's notes drown ours; 0 shows them
    'TF_GPU_THREAD_MODE': 'gpu_private',  # threads that start a GPU's work do not wait for those that read images
    'NCCL_DEBUG': 'WARN',  # else NCCL fails without a reason
}


class UserError(Exception):
    """A mistake that the user can mend: the program ends with `status` and the message, without a traceback."""

    def __init__(self, status: int, message: str):
        """Makes the error.

        Args:
          status: exit status of the program, one of the constants above.
          message: one line that names the file or flag, its value, what is wrong with it, and what to do.
        """
        super().__init__(message)
        self.status = status


def run(main: Callable[..., int | None], *, forwards: bool = False) -> NoReturn:
    """Parses the flags, calls `main` and exits with the status that its outcome stands for.

    Args:
      main: does the work, and may return an exit status (None: OK).
      forwards: whether `main` takes the arguments after `--`, as they are: it does so in launchers.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _prepare_streams()
    argv, rest = sys.argv, []
    if forwards and '--' in argv:
        argv, rest = argv[: argv.index('--')], argv[argv.index('--') + 1 :]
        argv = expand_home(argv)
        sys.argv = [*argv, '--', *rest]
    else:
        sys.argv = argv = config_arguments(expand_home(argv))  # ml_collections looks for fields in sys.argv too
    call = functools.partial(main, rest) if forwards else main
    parser = functools.partial(_parse_flags, forwards=forwards and not rest)
    app.run(lambda _: _exit(_status_of(call)), argv=argv, flags_parser=parser)


def expand_home(arguments: list[str]) -> list[str]:
    """Returns a command line with the user's home in place of `~`, which the shell leaves in --data_dir=~/records."""
    home = os.path.expanduser('~')
    return [re.sub(r'^(--?[\w.]+=)?~(?=/|$)', lambda found: (found[1] or '') + home, word) for word in arguments]


def _prepare_streams() -> None:
    """Lets stdout and stderr take any text, wherever they lead.

    Of a stream that was closed (`>&-`) the next file to be opened would take the place: it leads nowhere instead. What
    an encoding does not have, as on an ASCII terminal, is written as an escape.
    """
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)  # if it was opened in this very place
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, 'w' if number else 'r', encoding='utf-8', closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def _exit(status: int) -> NoReturn:
    """Ends the program without TensorFlow's clean-up, which waits for its threads, for up to a minute."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:  # what was printed last is lost
        log_error(f'stdout: {error.strerror}. Free some space or mend the storage, then run again.')
        status = status or NO_STORAGE
        _drop_output()
    if 'tensorflow' not in sys.modules:
        sys.exit(status)
    sys.stderr.flush()
    _remove_generated_sources()
    os._exit(status)


def _remove_generated_sources() -> None:
    """Removes the temporary files that TensorFlow's tracing keeps until the functions of atexit run, which may wait for
    much else."""
    for name, module in list(sys.modules.items()):
        if name.startswith('__autograph_generated_file'):
            with contextlib.suppress(OSError):
                os.remove(str(module.__file__))


def _parse_flags(argv: list[str], *, forwards: bool) -> list[str]:
    for argument, following in zip(argv[1:], [*argv[2:], ''], strict=False):
        flag, joined, path = argument.partition('=')
        path = path if joined else following
        if flag in ('--config', '-config') and not os.path.isfile(path.partition(':')[0]):
            # ml_collections would say so with a traceback, and only once the config is used.
            log_error(f'--config={path}: no such file (seen from {os.getcwd()})')
            sys.exit(MISSING_INPUT)
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # only the help flags exit while parsing, and absl lets them exit 1
        sys.exit(OK)
    except BrokenPipeError:  # --help | head
        _drop_output()
        sys.exit(OK)
    except flags.Error as error:
        hint = '; what the program is to get stands after --' if forwards else ''
        log_error(f'{error} (--help lists the flags{hint})')
        sys.exit(BAD_USAGE)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ml_collections: a misspelt field, a wrong type
        log_error(f'--config: {config_mistake(error)}')
        sys.exit(BAD_USAGE)
    except Exception as error:
        if refused := as_user_error(error):
            log_error(str(refused))
            sys.exit(refused.status)
        traceback.print_exc()  # the config file is a program of the user's: show where it fails
        log_error('--config: the file above could not be loaded')
        sys.exit(BAD_CONFIG)
    if rest[1:]:
        log_error(f'unexpected argument {rest[1]!r}: flags are written --name=value (--help lists them)')
        sys.exit(BAD_USAGE)
    return rest


def config_mistake(error: Exception) -> str:
    """Returns what is wrong with the flags of a config, in one line.

    Args:
      error: raised by ml_collections.
    """
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    reason = str(error.args[0] if error.args else error)
    if isinstance(error, KeyError):
        name, _, hint = reason.partition('\n')
        return f'no such field: {name}. {hint or "configs/default.py lists them."}'
    return ' '.join(reason.split())


def config_arguments(arguments: list[str]) -> list[str]:
    """Prepares a command line for ml_collections.

    Fields under names of older versions get those of today, with a line on stderr for each. Of a field that is given
    several times only the last value stays: ml_collections would join tuples.

    Args:
      arguments: the command line, e.g. ['--config=configs/default.py', '--config.loss.hard_pixels=1'].

    Returns:
      The command line to parse.
    """
    if any(argument.startswith(('--config.', '-config.')) for argument in arguments):
        from configs import validation  # imports ml_collections, which programs without a config do not need

        arguments, notes = validation.bring_arguments_up_to_date(arguments)
        for note in notes:
            _print_once(note)
    last = {argument.partition('=')[0]: place for place, argument in enumerate(arguments)}
    return [
        argument
        for place, argument in enumerate(arguments)
        if not argument.startswith('--config.') or '=' not in argument or last[argument.partition('=')[0]] == place
    ]


@functools.cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse_size(flag: str, text: str) -> tuple[int, int]:
    """Reads the value of a flag that is a size.

    Args:
      flag: the flag's name, e.g. 'size'.
      text: its value, e.g. '512x1024'.

    Returns:
      Height and width in pixels, e.g. (512, 1024).

    Raises:
      UserError: BAD_USAGE if the value has not this form.
    """
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not found:
        raise UserError(BAD_USAGE, f'--{flag}={text}: expected HEIGHTxWIDTH in pixels, e.g. 512x1024')
    return int(found[1]), int(found[2])


def _status_of(main: Callable[[], int | None]) -> int:
    logging.set_verbosity(logging.WARNING)
    try:
        return main() or OK
    except UserError as error:
        log_error(str(error))
        return error.status
    except KeyboardInterrupt:
        log_error('stopped; run the same command again')
        return STOPPED
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        if sys.stdout is not sys.__stdout__:  # and is outlived: it was another pipe, or a connection
            raise
        _drop_output()
        return OK
    except Exception as error:
        refused = as_user_error(error)
        if refused is None:
            raise
        log_error(str(refused))
        return refused.status


def as_user_error(error: BaseException) -> UserError | None:
    """Returns what an error means to the user; None if it is a bug.

    Args:
      error: a UserError, or what the system refuses: memory, or a file, by an OSError or by TensorFlow's error that
        holds one.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError):
        said = f'out of memory ({error})' if str(error) else 'out of memory'
        return UserError(BAD_CONFIG, f'{said}. Work on smaller images or fewer at a time, or take a larger host.')
    tensorflow = sys.modules.get('tensorflow')
    if tensorflow is not None and isinstance(error, tensorflow.errors.UnavailableError):  # of a sum or broadcast
        return UserError(PEER_LOST, f'another worker is gone ({reason_of(error)[:200]}). Run the same command again.')
    found = error if isinstance(error, OSError) else _os_error_of_tensorflow(error)
    if found is None:
        return None
    code = found.errno or _NUMBERS.get(type(found))
    if found.filename is None and code == errno.ENOENT and found.errno:  # as tempfile says it
        return UserError(MISSING_INPUT, f'{found.strerror}. Set TMPDIR to a folder that this user may write to.')
    if code is None or (found.filename is None and found.errno and code not in _STORAGE_ERRORS):
        return None
    said = f'{found.filename or "storage"}: {found.strerror}' if found.strerror else str(found)
    status, remedy = _NOT_USABLE.get(code, (NO_STORAGE, 'Free some space or mend the storage, then run again.'))
    return UserError(status, f'{said}. {remedy}')


def reason_of(error: Exception) -> str:
    """Returns what an error of TensorFlow says in its first line, without the names that it gives to operations."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r'{{.*?}} | \[Op:.*$', '', line)[:300]


def _os_error_of_tensorflow(error: BaseException) -> OSError | None:
    """What the system said, where TensorFlow passes it on: `<path>; No space left on device [Op:SaveV2]`, or
    `<path> is not a directory`."""
    tensorflow = sys.modules.get('tensorflow')
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return None
    found = re.match(r'(?:{{.*?}} )?(.+)(?:; | is )(.+?)(?: \[Op:.*)?$', error.message, re.MULTILINE)
    codes = {os.strerror(code).lower(): code for code in errno.errorcode}
    code = codes.get(found[2].lower()) if found else None
    return OSError(code, os.strerror(code), found[1]) if found and code else None


def _drop_output() -> None:
    """Sends stdout nowhere, since its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log_error(message: str) -> None:
    """Prints a line to stderr, after the program's name."""
    path = pathlib.Path(sys.argv[0])
    with contextlib.suppress(OSError):  # whatever has become of stdout
        sys.stdout.flush()
    print(f'{path.parent.name}.{path.stem}: {message}', file=sys.stderr, flush=True)
