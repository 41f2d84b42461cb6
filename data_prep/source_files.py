"""Reads the files of a dataset, which lie in folders or in zip files, on this machine or on remote storage.

    problems = []
    for name, location in source_files.list_all(epath.Path('dataset'), ('leftImg8bit',), problems).items():
        content = source_files.read('dataset', location)

A file has a *name*, such as leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png, and a *location* below the
dataset's folder: the name itself, or `<zip file>!<name>`, or `<zip file>!<folders>//<name>` where folders in the zip
file lie above those of the dataset.
"""

import dataclasses
import functools
import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from typing import IO

from etils import epath

from launch import entry, files, folders

# What a file, or a part of a zip file, that is not as it should be makes the readers raise.
READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)

_READ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OTHER_COMPRESSIONS = {9: 'Deflate64', 93: 'Zstandard', 95: 'XZ', 97: 'WavPack', 98: 'PPMd'}


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a dataset: the dataset's folder, and the location in it."""

    root: str
    location: str

    def read_bytes(self) -> bytes:
        """Reads it. Raises READ_ERRORS if it cannot be read."""
        return read(self.root, self.location)

    def __str__(self) -> str:
        """Returns the path of the file, or that of the zip file with what follows it."""
        return os.path.join(self.root, self.location)


def name_of(location: str) -> str:
    return _split(location)[1].rpartition('//')[2]


def _split(location: str) -> tuple[str, str]:
    """The zip file, '' if it lies in none, and what follows it."""
    found = re.match(r'([^/]*?\.zip)!(.*)', location, re.DOTALL | re.IGNORECASE)  # a name may hold ! too
    return (found[1], found[2]) if found else ('', location)


def read(root: epath.PathLike, location: str, size: int = -1) -> bytes:
    """Reads the first `size` bytes of a file, or all; a whole file in a zip is checked against its checksum.

    Raises:
      READ_ERRORS: if it cannot be read.
    """
    archive, name = _split(location)
    with _open_member(os.path.join(root, archive), name) if archive else _open(os.path.join(root, name)) as file:
        return file.read(size)


def size_of(root: epath.PathLike, location: str) -> int:
    """Returns the bytes of a file. Raises READ_ERRORS if it is not there."""
    archive, name = _split(location)
    if archive:
        return _members(os.path.join(root, archive))[name.replace('//', '/')].file_size
    path = os.path.join(root, name)
    return files.stat(path).length


def list_all(root: epath.Path, kinds: tuple[str, ...], problems: list[str]) -> dict[str, str]:
    """Lists all files below the folders `kinds`, name -> location; a file in the tree goes before the same one in a
    zip file. What tools leave behind is left out.

    Args:
      root: the dataset's folder.
      kinds: names of folders in it, and in the zip files in it, there also below others.
      problems: a line is appended for what cannot be read in the tree.

    Raises:
      UserError: BAD_DATA if zip files cannot be read.
    """
    found, refused = {}, []
    for path in files.matching(root, '*'):
        if path.name.lower().endswith('.zip') and not folders.is_leftover(path.name) and not path.is_dir():
            try:
                found |= _list_archive(path, kinds)
            except ValueError as error:
                refused.append(f'{path}: {error}')
    if refused:
        raise entry.UserError(entry.BAD_DATA, '\n'.join(refused))
    for kind in kinds:
        if (root / kind).is_dir():
            names = [f'{kind}/{name}' for name in folders.files_below(root / kind, problems)]
            found |= zip(names, names, strict=True)
    return dict(sorted(found.items()))


def _list_archive(path: epath.Path, kinds: tuple[str, ...]) -> dict[str, str]:
    """Name -> location of the files of a zip file; raises ValueError if it cannot be read."""
    try:
        members = _members(os.fspath(path))
    except (*READ_ERRORS, ValueError, IndexError, struct.error) as error:
        raise ValueError(f'not a whole zip file ({error}), probably an interrupted download. Get it again.') from error
    found, encrypted, unknown = {}, [], []
    for member, info in members.items():
        parts = member.split('/')
        at = next((place for place, part in enumerate(parts) if part in kinds), None)
        if at is None or any(map(folders.is_leftover, parts)):
            continue
        above, name = '/'.join(parts[:at]), '/'.join(parts[at:])
        location = f'{path.name}!{above}//{name}' if above else f'{path.name}!{name}'
        if name in found:
            raise ValueError(f'holds {name} twice, as {found[name]} and {location}. Extract the one that is meant.')
        found[name] = location
        if info.flag_bits & 1:
            encrypted.append(name)
        elif info.compress_type not in _READ_COMPRESSIONS:
            unknown.append(_OTHER_COMPRESSIONS.get(info.compress_type, f'method {info.compress_type}'))
    if encrypted:
        raise ValueError(
            f'{len(encrypted):,} of its files are encrypted, such as {encrypted[0]}. Extract it with its password, and '
            'move it away.'
        )
    if unknown:
        raise ValueError(
            f'{len(unknown):,} of its files are compressed by {unknown[0]}, which is not read in place. Extract it '
            '(7z x), and move it away.'
        )
    return found


def unreadable(location: str, error: Exception) -> str:
    reason = getattr(error, 'strerror', None) or error
    return f'{location}: cannot be read ({reason}). Check its permissions and the disk, or copy it again.'


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


@functools.lru_cache(maxsize=16)
def _members(path: str) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip file, by their names with '/' between folders."""
    members = {}
    for info in _archive(path).infolist():
        name = info.filename if '/' in info.filename else info.filename.replace('\\', '/')  # as some of Windows write
        if not name.endswith('/'):
            members['/'.join(part for part in name.split('/') if part not in ('', '.'))] = info
    return members


def _open_member(archive: str, name: str) -> IO[bytes]:
    return _archive(archive).open(_members(archive)[name.replace('//', '/')])


os.register_at_fork(after_in_child=_archive.cache_clear)  # else processes would move each other's place in the file
