"""Reads the files of a dataset, which lie in folders or in zip files, on this machine or on remote storage.

    for name, location in source_files.list_all(epath.Path('dataset'), ('leftImg8bit',)).items():
        content = source_files.read('dataset', location)

A file has a *name*, such as leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png, and a *location* below the
dataset's folder: the name itself, or `<zip file>!<name>`.
"""

import functools
import io
import os
import re
import zipfile
import zlib

from etils import epath

from launch import entry, files

READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError)  # the last: an unknown compression

_HIDDEN = ('.', 'Thumbs.db', 'desktop.ini')  # what file managers leave behind


def name_of(location: str) -> str:
    return _split(location)[1]


def _split(location: str) -> tuple[str, str]:
    """The zip file, '' if it lies in none, and the name."""
    found = re.match(r'([^/]*?\.zip)!(.*)', location, re.DOTALL)  # a name may hold ! too
    return (found[1], found[2]) if found else ('', location)


def read(root: epath.PathLike, location: str, size: int = -1) -> bytes:
    """Reads the first `size` bytes of a file, or all; a whole file in a zip is checked against its checksum.

    Raises:
      READ_ERRORS: if it cannot be read.
    """
    archive, name = _split(location)
    with _archive(os.path.join(root, archive)).open(name) if archive else _open(os.path.join(root, name)) as file:
        return file.read(size)


def size_of(root: epath.PathLike, location: str) -> int:
    """Returns the bytes of a file. Raises READ_ERRORS if it is not there."""
    archive, name = _split(location)
    if archive:
        return _archive(os.path.join(root, archive)).getinfo(name).file_size
    path = os.path.join(root, name)
    return files.stat(path).length


def list_all(root: epath.Path, kinds: tuple[str, ...]) -> dict[str, str]:
    """Lists all files below the folders `kinds`, name -> location; a file in the tree goes before the same one in a
    zip.

    Raises:
      UserError: BAD_DATA if a zip file or folder cannot be read.
    """

    def refuse(error: Exception) -> None:
        raise entry.UserError(entry.BAD_DATA, f'{getattr(error, "filename", None) or root}: cannot be read ({error}).')

    found = {}
    for path in files.matching(root, '*.zip'):
        try:
            names = [info.filename for info in _archive(os.fspath(path)).infolist() if not info.is_dir()]
        except READ_ERRORS as error:
            raise entry.UserError(
                entry.BAD_DATA,
                f'{path}: not a whole zip file ({error}), probably an interrupted download. Get it again.',
            ) from error
        found |= {name: f'{path.name}!{name}' for name in names if name.split('/')[0] in kinds}
    for kind in kinds:
        if not (root / kind).is_dir():
            continue
        for folder, _, names in (root / kind).walk(on_error=refuse):
            below = kind + _without_scheme(folder).removeprefix(_without_scheme(root / kind))
            found |= {f'{below}/{name}': f'{below}/{name}' for name in names}
    return {name: found[name] for name in sorted(found) if not name.rpartition('/')[2].startswith(_HIDDEN)}


def unreadable(location: str, error: Exception) -> str:
    reason = getattr(error, 'strerror', None) or error
    return f'{location}: cannot be read ({reason}). Check its permissions and the disk, or copy it again.'


def _without_scheme(path: epath.Path) -> str:
    """What epath's walk yields where it goes through fsspec."""
    return os.fspath(path).rpartition('://')[2]


def _open(path: str) -> io.IOBase:
    """epath's own bookkeeping takes as long as reading the header of a local file does."""
    return epath.Path(path).open('rb') if files.is_remote(path) else open(path, 'rb', buffering=0)


@functools.lru_cache(maxsize=16)
def _archive(path: str) -> zipfile.ZipFile:
    if not files.is_remote(path):
        return zipfile.ZipFile(path)
    opened = epath.Path(path).open('rb')  # with tf.io.gfile not a file, but a context in which there is one
    archive = zipfile.ZipFile(opened.__enter__())
    archive.opened = opened  # type: ignore[attr-defined]  # it ends when nobody refers to it any more
    return archive


os.register_at_fork(after_in_child=_archive.cache_clear)  # else processes would move each other's place in the file
