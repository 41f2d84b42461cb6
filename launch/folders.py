"""Walks folders as people have them: with links, loops of links, and what file managers and tools leave behind.

    from launch import folders

    problems = []
    list(folders.files_below('photos', problems))  # ['a.jpg', 'ulm/b.png'], if these are its files
    folders.is_leftover('@eaDir'), folders.looks_like_image('c.heic')  # (True, True)

Links are followed, to files and to folders, but not a link to a folder that one is in already (a loop). A folder that
cannot be read or a link that leads nowhere costs a line in `problems` and nothing else.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from launch import files

# In lower case; besides them all that begins with a dot, such as .DS_Store, .ipynb_checkpoints and .thumbnails.
_LEFTOVERS = frozenset(
    (
        '__macosx', 'icon\r',  # macOS
        'thumbs.db', 'ehthumbs.db', 'desktop.ini', '$recycle.bin', 'recycler', 'system volume information',  # Windows
        '@eadir', '@tmp', '#recycle', '#snapshot', '@recycle', '@recently-snapshot',  # Synology and QNAP
        'lost+found', '__pycache__',
    )
)  # fmt: skip
_LISTED = 20  # files named before the rest is only counted
# Of files that people take for images, whether or not a program here reads them.
_IMAGE_SUFFIXES = frozenset(
    (
        '.png', '.apng', '.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.jp2', '.j2k', '.jpx', '.jxl', '.gif', '.webp',
        '.bmp', '.dib', '.tif', '.tiff', '.heic', '.heif', '.hif', '.avif', '.ppm', '.pgm', '.pbm', '.pnm', '.pfm',
        '.tga', '.exr', '.hdr', '.psd', '.ico', '.svg', '.dng', '.raw', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.rw2',
        '.raf', '.pef', '.srw',
    )
)  # fmt: skip


def is_leftover(name: str) -> bool:
    """Says whether a file or folder of this name is hidden, or what file managers and tools leave behind."""
    return name.startswith('.') or name.lower() in _LEFTOVERS


def looks_like_image(name: str) -> bool:
    """Says whether a file's name ends as that of an image does, of whatever format."""
    return os.path.splitext(name)[1].lower() in _IMAGE_SUFFIXES


def is_in_loop(folder: pathlib.Path) -> bool:
    """Says whether the path of a folder goes through a link to a folder that it is in already."""
    absolute = pathlib.Path(os.path.abspath(folder))
    return any(
        link.is_symlink() and os.path.realpath(link) in map(os.path.realpath, link.parents)
        for link in (absolute, *absolute.parents)
    )


@contextlib.contextmanager
def named_at_the_end(passed_over: list[str]) -> Iterator[None]:
    """Prints, once the block is done or has failed, how many files look like images and were not read, and which."""
    try:
        yield
    finally:
        if passed_over:
            rest = f' and {len(passed_over) - _LISTED:,} more' if len(passed_over) > _LISTED else ''
            formats = ', '.join(sorted({os.path.splitext(name)[1].lower() for name in passed_over}))
            print(
                f'Passed over: {len(passed_over):,} file(s) that look like images, since {formats} are not read: '
                f'{", ".join(passed_over[:_LISTED])}{rest}',
                flush=True,
            )


def files_below(folder: epath.PathLike, problems: list[str]) -> Iterator[str]:
    """Yields the files below a folder, leftovers left out; the folder itself is taken whatever it is called.

    Args:
      folder: on this machine or remote.
      problems: a line is appended for each folder that cannot be read, and for each link that leads nowhere.

    Yields:
      The path of each file below the folder, folders joined by '/'; neighbours come in the order of their names.
    """
    walk = _walk_remote(folder, problems) if files.is_remote(folder) else _walk_local(os.fspath(folder), problems)
    for below, names in walk:
        for name in sorted(names):
            yield f'{below}/{name}' if below else name


def _walk_local(folder: str, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder below another, '' the one itself, and the names of its files."""
    around = tuple(map(_identity, pathlib.Path(os.path.realpath(folder)).parents))
    waiting = [('', around)]
    while waiting:
        below, above = waiting.pop()
        path = os.path.join(folder, below)
        try:
            this = _identity(path)
            if this in above:  # a link led back
                continue
            with os.scandir(path) as listing:
                entries = [entry for entry in listing if not is_leftover(entry.name)]
        except OSError as error:
            problems.append(f'{path}: cannot be read ({error.strerror}). Check its permissions and the disk.')
            continue
        names, folders = [], []
        for entry in entries:
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    names.append(entry.name)
                elif entry.is_symlink():
                    os.stat(entry.path)
            except OSError as error:
                target = f'is a link to {os.readlink(entry.path)}, which' if entry.is_symlink() else 'it'
                problems.append(f'{entry.path}: {target} cannot be read ({error.strerror}). Mend or remove it.')
        yield below, names
        waiting += [(f'{below}/{name}' if below else name, (*above, this)) for name in sorted(folders, reverse=True)]


def _identity(path: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _walk_remote(folder: epath.PathLike, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The same of a folder on remote storage, where there are no links."""

    def note(error: Exception) -> None:
        problems.append(f'{folder}: cannot be read ({error}). Check its permissions.')

    root = _without_scheme(epath.Path(folder))
    for path, _, names in epath.Path(folder).walk(on_error=note):
        below = _without_scheme(path).removeprefix(root).strip('/')
        if not any(map(is_leftover, below.split('/') if below else ())):
            yield below, [name for name in names if not is_leftover(name)]


def _without_scheme(path: epath.Path) -> str:
    """What epath's walk yields where it goes through fsspec."""
    return os.fspath(path).rpartition('://')[2]
