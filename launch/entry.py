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
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
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


_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


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
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # TensorFlow's notes drown ours; 0 shows them
    argv, rest = sys.argv, []
    if forwards and '--' in argv:
        argv, rest = argv[: argv.index('--')], argv[argv.index('--') + 1 :]
    else:
        sys.argv = argv = config_arguments(argv)  # ml_collections looks for fields in sys.argv too
    call = functools.partial(main, rest) if forwards else main
    parser = functools.partial(_parse_flags, forwards=forwards and not rest)
    app.run(lambda _: _exit(_status_of(call)), argv=argv, flags_parser=parser)


def _exit(status: int) -> NoReturn:
    """Ends the program without TensorFlow's clean-up, which waits for its threads, for up to a minute."""
    if 'tensorflow' not in sys.modules:
        sys.exit(status)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


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
    except UserError as error:
        log_error(str(error))
        sys.exit(error.status)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ml_collections: a misspelt field, a wrong type
        log_error(f'--config: {config_mistake(error)}')
        sys.exit(BAD_USAGE)
    except Exception:  # the config file is a program of the user's: show where it fails
        traceback.print_exc()
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
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        log_error(
            f'{error.filename or "storage"}: {error.strerror}. Free some space or mend the storage, then run again.'
        )
        return NO_STORAGE


def _drop_output() -> None:
    """Sends stdout nowhere, since its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log_error(message: str) -> None:
    """Prints a line to stderr, after the program's name."""
    path = pathlib.Path(sys.argv[0])
    with contextlib.suppress(OSError):  # whatever has become of stdout
        sys.stdout.flush()
    print(f'{path.parent.name}.{path.stem}: {message}', file=sys.stderr, flush=True)
