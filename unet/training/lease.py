"""The lease of a workdir: it keeps a second run out.

with lease.hold('runs/cityscapes'):
    ...
"""

import contextlib
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from launch import entry, files
from unet.distributed import shutdown
from unet.training.workdir import check_writable

_LEASE = 'lease.json'
_RENEWED_EVERY = 10  # seconds
_STALE_AFTER = 60  # seconds


@contextlib.contextmanager
def hold(workdir: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keeps a second run out of the workdir: two runs would overwrite each other's checkpoints.

    The lease is a file with host and process, renewed every 10 s. It no longer holds once it has not been renewed for
    60 s, which is waited for, or as soon as its process is gone from this host. A run that stood still for so long that
    another has taken its lease ends with IN_USE.

    Args:
      workdir: the folder; made if it is not there.
      check: called again and again while waiting; what it raises ends the waiting.

    Raises:
      UserError: IN_USE if another run holds it, BAD_USAGE if there cannot be such a folder.
    """
    path = pathlib.Path(workdir) / _LEASE
    check_writable(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'started': _process_start(os.getpid()),
        'job': os.environ.get('SLURM_JOB_ID', ''),
    }
    while True:
        try:
            with files.naming(path), path.open('x') as file:
                json.dump(mine, file)
            break
        except FileExistsError:
            _take_over(path, mine, check)
    released = threading.Event()

    def renew():
        while not released.wait(_RENEWED_EVERY):
            with contextlib.suppress(OSError):  # a slow disk, or a lease that is moved aside, must not end the run
                holder, _ = _look(path)
                if holder not in (mine, {}) and not released.is_set():
                    shutdown.end_process(
                        entry.IN_USE,
                        f'{workdir}: taken over by {_name(holder)}, since this process had not renewed its lease for '
                        f'{_STALE_AFTER} s. That run goes on from the last checkpoint.',
                    )
                os.utime(path)

    def release():
        released.set()
        with contextlib.suppress(FileNotFoundError):
            if _look(path)[0] == mine:
                path.unlink()

    threading.Thread(target=renew, daemon=True).start()
    with shutdown.cleaned(release):
        yield


def _take_over(path: pathlib.Path, mine: dict, check: Callable[[], None]) -> None:
    """Removes a lease that no longer holds, having waited until that is sure."""
    try:
        seen = holder, renewed = _look(path)
        if holder.get('host') == mine['host']:
            if _process_start(holder['pid']) == holder['started']:
                raise _in_use(path, holder)
        else:
            with tempfile.TemporaryFile(dir=path.parent) as file:  # dated by the clock that dates the lease
                age = os.fstat(file.fileno()).st_mtime - renewed
            left = _STALE_AFTER - max(age, 0)
            if left > 0:
                print(f'{path.parent} was held by {_name(holder)}: waiting {left:.0f} s for a sign of it', flush=True)
            deadline = time.monotonic() + left
            while time.monotonic() < deadline:
                check()
                time.sleep(0.5)
                if (now := _look(path)) != seen:
                    raise _in_use(path, now[0])
        aside = path.with_name(f'{path.name}.{mine["host"]}.{mine["pid"]}')
        path.rename(aside)  # of several who find it stale, one moves it; the others find none, or the lease of that one
        if _look(aside) == seen:
            aside.unlink()
        else:
            aside.rename(path)
    except FileNotFoundError:
        return


def _look(path: pathlib.Path) -> tuple[dict, float]:
    """Whose a lease is ({}: written half, just now or by a process that died) and when it was renewed.

    The file is opened since NFS answers `stat` from memory for up to a minute. Raises FileNotFoundError.
    """
    with path.open() as file:
        renewed = os.fstat(file.fileno()).st_mtime
        try:
            return json.load(file), renewed
        except ValueError:
            return {}, renewed


def _name(holder: dict) -> str:
    return f'process {holder.get("pid", "unknown")} on host {holder.get("host", "unknown")}'


def _in_use(path: pathlib.Path, holder: dict) -> entry.UserError:
    return entry.UserError(
        entry.IN_USE, f'{path.parent}: in use by {_name(holder)}. Stop it, or pass another --workdir.'
    )


def _process_start(pid: int) -> str:
    """When a process of this host started, so that a new process of the same number is not mistaken for it; '' if it is
    gone."""
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ''
    return stat.rpartition(')')[2].split()[19]  # field 22 of proc(5): clock ticks after boot
