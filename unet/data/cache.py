"""Keeps decoded examples, in memory or on this host's disk, whatever the order they are asked for.

    load = cache.on_disk(load, shapes, folder='/scratch')
    image, label = load(17)     # decoded the first time, read back the second

Each process keeps its own copies. The file on disk has no name: it is gone when the process ends, however it ends.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable

import numpy as np

from launch import entry, files

Load = Callable[[int], tuple[np.ndarray, np.ndarray]]  # example -> image uint8 [h, w, 3], label uint8 [h, w, 1]

_CHANNELS = 4  # bytes per pixel: three of the image, one of the label
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def in_memory(load: Load) -> Load:
    """Makes of `load` a function that keeps in memory what it returns."""
    examples: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def cached(example: int) -> tuple[np.ndarray, np.ndarray]:
        if example not in examples:
            examples[example] = load(example)
        return examples[example]

    return cached


def on_disk(load: Load, shapes: np.ndarray, folder: str) -> Load:
    """Makes of `load` a function that keeps what it returns in a nameless file on disk.

    The file's space is reserved at once, so that no run fails for it later.

    Args:
      load: decodes an example, see `Load`.
      shapes: int [examples, 2], height and width of what it returns.
      folder: on a local disk.

    Raises:
      UserError: NO_STORAGE if the folder cannot hold all examples.
    """
    sizes = shapes.astype(np.int64).prod(1) * _CHANNELS
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    try:
        free = shutil.disk_usage(folder).free
        if total > free:  # or else reserving would fill the disk before it fails
            raise OSError(errno.ENOSPC, f'{free / 1e9:,.1f} GB are free')
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (open as long as it is read)
        if hasattr(os, 'posix_fallocate'):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, total)
    except OSError as error:
        why = error.strerror if error.errno in _FULL else f'it cannot be written to: {error.strerror}'
        raise entry.UserError(
            entry.NO_STORAGE,
            f'{folder}: config.data.cache=disk needs {total / 1e9:,.1f} GB for {len(shapes):,} examples; {why}. '
            "Set TMPDIR to a local disk that holds them, or config.data.cache='none'.",
        ) from error
    written = np.zeros(len(shapes), bool)

    @files.naming(folder)
    def cached(example: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = int(ends[example] - sizes[example]), int(ends[example])
        if not written[example]:
            image, label = load(example)
            for part in (image, label):
                view = memoryview(np.ascontiguousarray(part)).cast('B')
                while view:
                    done = os.pwrite(file.fileno(), view, first)
                    view, first = view[done:], first + done
            written[example] = True  # after the last byte: other threads read what is written
            return image, label
        height, width = shapes[example].tolist()
        pixels = np.empty(last - first, np.uint8)
        view = memoryview(pixels)
        while view:
            done = os.preadv(file.fileno(), [view], last - len(view))
            if not done:
                raise OSError(errno.EIO, 'the cache of decoded examples ends too early')
            view = view[done:]
        border = height * width * 3
        return pixels[:border].reshape(height, width, 3), pixels[border:].reshape(height, width, 1)

    return cached
