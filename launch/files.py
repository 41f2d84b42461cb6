"""Files that are written whole or not at all, local or remote.

files.write_atomically('runs/cityscapes/config.json', '{...}')
"""

import json
import os
import socket
from typing import IO

from etils import epath

from launch import entry


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file so that, whatever happens, its name holds either the old content or all of the new."""
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    process = f'{socket.gethostname()}.{os.getpid()}'  # other hosts have processes of the same number
    temporary = path.parent / f'.{path.name}.{process}.tmp'
    with temporary.open('wb') as file:
        file.write(content)
        sync(file, path)
    temporary.replace(path)


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is a URL, such as gs://bucket/folder."""
    return '://' in os.fspath(path)


def sync(file: IO[bytes], path: epath.PathLike) -> None:
    """Brings what was written to a local file onto the disk; remote files are brought there by being closed."""
    if not is_remote(path):
        file.flush()
        os.fsync(file.fileno())


def read_json(path: epath.PathLike) -> dict:
    """Raises UserError BAD_DATA, naming the file, if it does not hold JSON."""
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise entry.UserError(entry.BAD_DATA, f'{path}: not JSON ({error}). Build the folder again.') from error
