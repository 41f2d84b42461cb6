"""Files that are written whole or not at all, local or remote.

    from launch import files

    files.write_atomically('config.json', '{"seed": 1}')
    files.read_json('config.json')  # {'seed': 1}

A path may be a URL such as gs://bucket/folder.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from etils import epath

from launch import entry


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file so that, whatever happens, its name holds either the old content or all of the new.

    Args:
      path: the file; its folder is there.
      content: all of the new content; text is written as UTF-8.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    process = f'{socket.gethostname()}.{os.getpid()}'  # other hosts have processes of the same number
    temporary = path.parent / f'.{path.name}.{process}.tmp'
    try:
        with temporary.open('wb') as file:
            file.write(content)
            sync(file, path)
        temporary.replace(path)
    except OSError as error:
        if error.errno:  # and it is the system's
            error.filename = os.fspath(path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Lets an OSError of the block name a file, which one of writing to an open file or reading it does not do."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = error.filename or os.fspath(path)
        raise


_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # how Lustre, NFS and others say that they have none


def try_lock(file: IO, kind: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> bool | None:
    """Locks an open local file until it is closed.

    Args:
      file: the file.
      kind: of fcntl: exclusive or shared, waiting for others or not.

    Returns:
      Whether this process has the lock now; None if the file system has no locks.
    """
    try:
        fcntl.flock(file.fileno(), kind)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


class Stat(NamedTuple):
    """The size of a file in bytes, and the time of its last change in seconds since the epoch."""

    length: int
    mtime: int


def stat(path: epath.PathLike) -> Stat:
    """Returns size and time of a file; raises FileNotFoundError if it is not there.

    epath's own stat looks up the owner's name too and fails where a user id has none, as in many containers.
    """
    if is_remote(path):
        remote = epath.Path(path).stat()
        return Stat(remote.length, int(remote.mtime))
    local = os.stat(path)
    return Stat(local.st_size, int(local.st_mtime))


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether the path is a URL, such as gs://bucket/folder."""
    return '://' in os.fspath(path)


def sync(file: IO[bytes], path: epath.PathLike) -> None:
    """Waits until what was written to a local file is on the disk; a remote file is stored when it is closed.

    Args:
      file: the open file.
      path: where it is.
    """
    if not is_remote(path):
        file.flush()
        os.fsync(file.fileno())


def read_json(path: epath.PathLike, remedy: str = 'Build the folder again.') -> dict[str, Any]:
    """Reads a JSON file.

    Args:
      path: the file.
      remedy: what to do if it is damaged.

    Raises:
      UserError: BAD_DATA if it does not hold JSON.
    """
    path = epath.Path(path)
    try:
        return json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise entry.UserError(entry.BAD_DATA, f'{path}: not JSON ({error}). {remedy}') from error
