"""Reads images, in order, from files, folders, globs and videos.

    sources = media.find(['photos', 'drive.mp4', 'more/*.jpg'], leave_out=[pathlib.Path('predictions/colors')])
    problems = []
    for name, image in media.read(sources, problems):
        ...     # 'ulm/ulm_1', uint8 [h, w, 3]; 'drive/000000', ...

What cannot be read is passed over and named in `problems`, so that one bad file does not cost the rest.
"""

import collections
import concurrent.futures
import contextlib
import glob
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageOps

from data_prep import png
from launch import entry, host

IMAGES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.ppm')
VIDEOS = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg')

# Pillow and PyAV raise these for what is wrong with a file: not an image, cut off, damaged.
_READ_ERRORS = (OSError, ValueError, SyntaxError)


def find(patterns: Iterable[str], *, leave_out: Iterable[pathlib.Path] = ()) -> dict[str, pathlib.Path]:
    """Finds the images and videos that files, folders (with their subfolders) and globs stand for.

    Args:
      patterns: a path or a glob each. A file that is named as it stands is taken whatever its suffix.
      leave_out: folders to pass over, so that results are not taken for images.

    Returns:
      Files by the name of their results, sorted: the path below the folder that all have in common, without the suffix
      unless that would give two files one name.

    Raises:
      UserError: MISSING_INPUT if a pattern finds nothing, BAD_USAGE if two results would have one name.
    """
    found: set[pathlib.Path] = set()
    leave_out = [folder.resolve() for folder in leave_out]
    for pattern in patterns:
        path = pathlib.Path(pattern)
        if path.is_dir():
            others = [folder for folder in leave_out if not path.resolve().is_relative_to(folder)]
            files = [file for file in path.rglob('*') if _is_wanted(file, others)]
        elif path.exists():
            files = [path]
        else:
            files = [file for file in map(pathlib.Path, glob.glob(pattern, recursive=True)) if file.is_file()]
        if not files:
            if not path.exists() and not glob.has_magic(pattern):
                raise entry.UserError(
                    entry.MISSING_INPUT, f'--images={pattern}: no images there: no such file or folder'
                )
            raise entry.UserError(
                entry.MISSING_INPUT,
                f'--images={pattern}: no images there (looked for {", ".join((*IMAGES, *VIDEOS))}). Quote a glob, so '
                'that the shell leaves it alone.',
            )
        found.update(pathlib.Path(os.path.abspath(file)) for file in files)
    root = os.path.commonpath([file.parent for file in found])
    short = collections.Counter(file.with_suffix('') for file in found)
    sources = {}
    for file in sorted(found):
        name = file if short[file.with_suffix('')] > 1 else file.with_suffix('')
        sources[str(name.relative_to(root))] = file
    if len(sources) < len(found):
        raise entry.UserError(
            entry.BAD_USAGE, f'--images: two files of {root} would give results of one name; rename one'
        )
    return sources


def _is_wanted(file: pathlib.Path, leave_out: list[pathlib.Path]) -> bool:
    known = file.suffix.lower() in IMAGES + VIDEOS and not file.name.startswith('.')
    return known and file.is_file() and not any(file.resolve().is_relative_to(folder) for folder in leave_out)


def count(sources: dict[str, pathlib.Path]) -> int:
    """Counts the images of the sources, as far as videos say beforehand."""
    total = 0
    for file in sources.values():
        frames = 1
        if _is_video(file):
            with contextlib.suppress(*_READ_ERRORS), _video(file) as (_, stream):
                frames = stream.frames
        total += frames
    return total


def read(sources: dict[str, pathlib.Path], problems: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and images, uint8 [h, w, 3], in order; files are decoded ahead, on all cores.

    Args:
      sources: files by name. A video's frames get its name and their number, from 000000 on.
      problems: what could not be read is appended, a line per file.

    Raises:
      UserError: BAD_USAGE if there is a video and no library to read it.
    """
    ahead = min(2 * host.cores(), 16)  # images in memory
    with concurrent.futures.ThreadPoolExecutor(host.cores()) as pool:
        waiting = collections.deque()
        for name, file in itertools.chain(sources.items(), itertools.repeat(('', None), ahead)):
            still = file is not None and not _is_video(file)
            waiting.append((name, file, pool.submit(read_image, file) if still else None))
            if len(waiting) <= ahead:
                continue
            name, file, decoded = waiting.popleft()
            try:
                if decoded is not None:
                    yield name, decoded.result()
                elif file is not None:
                    for number, frame in enumerate(_read_video(file)):
                        yield os.path.join(name, f'{number:06d}'), frame
            except _READ_ERRORS as error:
                problems.append(f'{file}: {error}')


def read_image(file: pathlib.Path) -> np.ndarray:
    """Reads an image file as uint8 [h, w, 3], turned upright by its EXIF orientation; its alpha is ignored.

    Raises:
      OSError, ValueError, SyntaxError: if it is not a whole image.
    """
    with Image.open(file) as image:
        png.check_pixels(image)
        deep = png.has_16_bits(image)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I;16'):  # which convert() would clip at 255
            grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            pixels = np.repeat(grey[..., None], 3, axis=-1)
        elif image.mode in ('I', 'F'):
            raise ValueError(f'its pixels are {image.mode!r}, 32 bits of unknown range; save it with 8 or 16 bits')
        else:
            pixels = np.asarray(image.convert('RGB'))
        if deep:
            png.check_16_bits(pixels.max())
        return pixels


def _is_video(file: pathlib.Path) -> bool:
    return file.suffix.lower() in VIDEOS


@contextlib.contextmanager
def _video(file: pathlib.Path) -> Iterator:
    """The opened video, a PyAV container, and its first picture stream; PyAV's errors become ValueErrors."""
    try:
        import av
    except ImportError as error:
        raise entry.UserError(
            entry.BAD_USAGE, f"{file}: videos are read by PyAV ({error}): pip install 'unet-cityscapes[video]'"
        ) from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError('holds no pictures, only sound or text')
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror or str(error)) from error


def _read_video(file: pathlib.Path) -> Iterator[np.ndarray]:
    with _video(file) as (container, stream):
        stream.thread_type = 'AUTO'
        done = 0
        for frame in container.decode(stream):
            upright = np.rot90(frame.to_ndarray(format='rgb24'), frame.rotation // 90)  # as phones note it
            yield np.ascontiguousarray(upright)
            done += 1
        if done < stream.frames:
            raise ValueError(f'ends after {done} of the {stream.frames} frames that it says it has')


def batched(images: Iterable[tuple[str, np.ndarray]], most: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields neighbours of one size together: names, and uint8 [b, h, w, 3] with b from 1 to `most`."""
    for _, group in itertools.groupby(images, key=lambda item: item[1].shape):
        while part := list(itertools.islice(group, most)):
            names, pictures = zip(*part, strict=True)
            yield list(names), np.stack(pictures)
