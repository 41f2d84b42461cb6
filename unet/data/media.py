"""Reads images, in order, from files, folders, globs and videos.

    problems, passed_over = [], []
    sources = media.find(['photos', 'drive.mp4', 'more/*.jpg'], problems, passed_over)
    for name, image in media.read(sources, problems):
        ...     # 'ulm/ulm_1', uint8 [h, w, 3]; 'drive/000000', ...

What cannot be read is passed over and named in `problems`, so that one bad file does not cost the rest.
"""

import collections
import concurrent.futures
import contextlib
import fnmatch
import glob
import io
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from data_prep import orientation, png
from launch import entry, folders, host

IMAGES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.ppm')
RESULT = '.png'  # what the name of a result ends in
VIDEOS = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg')


def find(
    patterns: Iterable[str], problems: list[str], passed_over: list[str], *, leave_out: Iterable[pathlib.Path] = ()
) -> dict[str, pathlib.Path]:
    """Finds the images and videos that files, folders (with their subfolders) and globs stand for.

    Links are followed; what tools leave behind is passed over, see `folders`.

    Args:
      patterns: a path or a glob each. A file that is named as it stands is taken whatever its suffix, and so are the
        files of a glob that names their suffix.
      problems: a line is appended for each folder that cannot be read and each link that leads nowhere.
      passed_over: files that look like images, of a kind that is not read, are appended.
      leave_out: folders to pass over, so that results are not taken for images.

    Returns:
      Files by the name of their results, sorted; see `_names`.

    Raises:
      UserError: MISSING_INPUT if a pattern finds nothing, BAD_USAGE if two results would have one name.
    """
    found: set[pathlib.Path] = set()
    leave_out = [folder.resolve() for folder in leave_out]
    for pattern in patterns:
        path, troubles = pathlib.Path(pattern), len(problems)
        if path.is_dir():
            others = [folder for folder in leave_out if not path.resolve().is_relative_to(folder)]
            there = [path / name for name in folders.files_below(path, problems)]
            files = _wanted([file for file in there if not _is_below(file, others)], passed_over)
        elif path.exists() or path.is_symlink():
            files = [path]
        else:
            files = _glob(pattern, problems)
            if glob.has_magic(path.suffix) or not path.suffix:
                files = _wanted(files, passed_over)
        if not files and len(problems) == troubles:
            if not path.exists() and not glob.has_magic(pattern):
                raise entry.UserError(
                    entry.MISSING_INPUT, f'--images={pattern}: no images there: no such file or folder'
                )
            raise entry.UserError(
                entry.MISSING_INPUT,
                f'--images={pattern}: no images there (looked for {", ".join((*IMAGES, *VIDEOS))}). Quote a glob, so '
                'that the shell leaves it alone.',
            )
        found.update(_absolute(file) for file in files)
    return _names(found)


def _wanted(there: list[pathlib.Path], passed_over: list[str]) -> list[pathlib.Path]:
    """The images and videos among files; appends to `passed_over` what looks like another image."""
    passed_over += [
        str(file) for file in there if file.suffix.lower() not in IMAGES and folders.looks_like_image(file.name)
    ]
    return [file for file in there if file.suffix.lower() in IMAGES + VIDEOS]


def _is_below(file: pathlib.Path, others: list[pathlib.Path]) -> bool:
    return bool(others) and any(file.resolve().is_relative_to(folder) for folder in others)


def _absolute(file: pathlib.Path) -> pathlib.Path:
    """The path from the root; `..` after a link is what the system takes it for."""
    return file.parent.resolve() / file.name if '..' in file.parts else pathlib.Path(os.path.abspath(file))


def _glob(pattern: str, problems: list[str]) -> list[pathlib.Path]:
    """The files that a glob stands for, leftovers left out unless it names them; `**` follows links, but no loops."""
    parts = pattern.split('/')
    if '**' in parts:
        place = parts.index('**')
        bases = glob.glob('/'.join([*parts[:place], ''])) if place else ['']
        below = [(base, name) for base in bases for name in folders.files_below(base or '.', problems)]
        found = [pathlib.Path(base, name) for base, name in below if _matches(name.split('/'), parts[place:])]
    else:
        found = [file for file in map(pathlib.Path, glob.glob(pattern)) if file.is_file() or file.is_symlink()]
    # What begins with a dot no pattern stands for that does not begin with one itself.
    left = {part for file in found for part in file.parts if folders.is_leftover(part.lstrip('.'))} - {*parts}
    loops = set(filter(folders.is_in_loop, {file.parent for file in found}))
    return [file for file in found if left.isdisjoint(file.parts) and file.parent not in loops]


def _matches(names: list[str], patterns: list[str]) -> bool:
    """Says whether folders and file fit a glob's parts, of which `**` stands for any number of folders."""
    if not names or not patterns:
        return not names and all(part == '**' for part in patterns)
    if patterns[0] == '**':
        return _matches(names, patterns[1:]) or _matches(names[1:], patterns)
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _names(files: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Names the results of files, sorted by file: the path below the folder that all have in common, without the suffix
    unless results would then overwrite each other.

    An image's result is one file; those of a video's frames are files in a folder of its name.

    Raises:
      UserError: BAD_USAGE if with suffixes, too, two would have one name.
    """
    files = sorted(files)
    if not files:
        return {}
    root = os.path.commonpath([file.parent for file in files])
    names = {file: str(file.relative_to(root).with_suffix('')) for file in files}
    while True:
        images, videos = collections.defaultdict(list), collections.defaultdict(list)
        for file, name in names.items():
            (videos if _is_video(file) else images)[name if _is_video(file) else f'{name}{RESULT}'].append(file)
        parents = {str(parent) for name in (*images, *videos) for parent in pathlib.PurePath(name).parents}
        clashing = {
            file
            for results, others in ((images, parents | videos.keys()), (videos, parents | images.keys()))
            for name, sharing in results.items()
            if len(sharing) > 1 or name in others
            for file in sharing
        }
        if not clashing:  # then a video and an image may still have one name
            used = collections.Counter(names.values())
            clashing = {file for file, name in names.items() if used[name] > 1}
        if not clashing:
            return {name: file for file, name in names.items()}
        longer = names | {file: str(file.relative_to(root)) for file in clashing}
        if longer == names:
            one = min(clashing)
            raise entry.UserError(entry.BAD_USAGE, f'--images: another result would overwrite that of {one}; rename it')
        names = longer


def count(sources: dict[str, pathlib.Path]) -> int:
    """Counts the images of the sources, as far as videos say beforehand."""
    total = 0
    for file in sources.values():
        frames = 1
        if _is_video(file):
            with contextlib.suppress(OSError, ValueError), _video(file) as (_, stream):
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
            except entry.UserError:
                raise
            except Exception as error:  # of a damaged file Pillow and PyAV raise whatever they stumble over
                problems.append(f'{file}: {_reason(error)}')


def _reason(error: Exception) -> str:
    said = getattr(error, 'strerror', None) or str(error)
    return said if isinstance(error, OSError | ValueError | SyntaxError) and said else f'damaged ({error!r})'


def read_image(file: pathlib.Path) -> np.ndarray:
    """Reads an image file as uint8 [h, w, 3], turned upright by its EXIF orientation; its alpha is ignored.

    Raises:
      OSError: if it is not to be had.
      ValueError: if it is not a whole image.
    """
    encoded = file.read_bytes()
    with png.pillow_errors(), Image.open(io.BytesIO(encoded)) as image:
        png.check_pixels(image)
        deep = png.has_16_bits(image)
        image.load()  # which turns a TIFF already
        exif = image.info.get('exif', b'')
        is_ours = image.format in ('PNG', 'JPEG', 'MPO')
        turned = orientation.read(encoded) if is_ours else orientation.of_exif(exif, 0, len(exif))
        image = orientation.turn(image, turned)
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
