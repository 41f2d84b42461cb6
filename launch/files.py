"""Files that are written whole or not at all, local or remote.

    from launch import files

    files.write_atomically('config.json', '{"seed": 1}')
    files.read_json('config.json')  # {'seed': 1}

A path may be a URL such as gs://bucket/folder.
"""

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import socket
import tempfile
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
    temporary = path.parent / temporary_name(path.name)
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


def temporary_name(name: str) -> str:
    """Returns a hidden name of this process's own for a file while it is written, not too long for a file system."""
    process = f'{socket.gethostname()[:40]}.{os.getpid()}'  # other hosts have processes of the same number
    if len(os.fsencode(name)) > 150:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f'.{name}.{process}.tmp'


def matching(folder: epath.PathLike, pattern: str) -> list[epath.Path]:
    """Lists what in a folder has a name that matches a pattern, sorted; whatever the folder's own name holds is no
    pattern, as it is to epath. Of a folder that is not there it lists nothing."""
    try:
        names = [path.name for path in epath.Path(folder).iterdir()]
    except FileNotFoundError:
        return []
    return [epath.Path(folder) / name for name in sorted(fnmatch.filter(names, pattern))]


_PATTERNS = set('[]*?\\')


@contextlib.contextmanager
def without_patterns(path: epath.PathLike) -> Iterator[str]:
    """Lends a local file or folder another name, for readers that take `[`, `*`, `?` and `\\` in a path for a pattern,
    as TensorFlow's of checkpoints do: one below /proc/self/fd (Linux).

    If the file's own name holds them, that of a link in a temporary folder; so do all that are called as it is but for
    a suffix, of which a checkpoint consists.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if set(name) & _PATTERNS:
        with tempfile.TemporaryDirectory() as links:
            for own in os.listdir(folder):
                if own == name or own.startswith(f'{name}.'):
                    os.symlink(os.path.join(folder, own), os.path.join(links, f'file{own.removeprefix(name)}'))
            with without_patterns(os.path.join(links, 'file')) as lent:
                yield lent
        return
    if not set(folder) & _PATTERNS:
        yield os.fspath(path)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f'/proc/self/fd/{descriptor}/{name}'
    finally:
        os.close(descriptor)


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
