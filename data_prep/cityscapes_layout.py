"""Finds the images and label files of a dataset in the Cityscapes layout and pairs them by name.

    leftImg8bit/<split>/<city>/<stem>_leftImg8bit.png (or .jpg)
    gtFine/<split>/<city>/<stem>_gtFine_labelIds.png (or, without it, <stem>_gtFine_polygons.json); likewise gtCoarse

The files lie in a tree, in zip files (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip and so on, read in place),
or some here and some there: see source_files.py for what a location is.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib

from etils import epath

from data_prep import images, source_files
from launch import entry, folders

IMAGES, FINE, COARSE = 'leftImg8bit', 'gtFine', 'gtCoarse'
SPLITS = {'train': 'train', 'val': 'validation', 'test': 'test', 'train_extra': 'train_extra'}  # folder -> split

_IMAGE_SUFFIXES = tuple(f'_{IMAGES}{suffix}' for suffix in ('.png', '.jpg', '.jpeg'))
_LABEL_SUFFIXES = ('_labelIds.png', '_polygons.json')  # the first of them that is there is used
_MADE_OF_LABELS = (f'_{FINE}_', f'_{COARSE}_')  # in the names of all that Cityscapes and its scripts make of them
_UNLABELLED = 'demoVideo'  # frames that Cityscapes offers beside its splits
_PICTURES = ('.png', '.jpg', '.jpeg')
_LISTED = 20  # problems shown before the rest is only counted
_READERS = 32  # threads that read file headers, so that remote storage is not waited for file by file


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its label file.

    Attributes:
      split: 'train', 'validation', 'test' or 'train_extra'.
      image_id: the stem that both file names share, or the image's path without suffix; unique in the dataset.
      image: location of the image.
      label: location of the label ids or polygons; None for a test image without labels.
      size: bytes of both files.
    """

    split: str
    image_id: str
    image: str
    label: str | None
    size: int

    @property
    def listing(self) -> list:
        """Returns what identifies the pair's files, wherever they lie: [split, image name, label name, bytes]."""
        return [
            self.split,
            source_files.name_of(self.image),
            self.label and source_files.name_of(self.label),
            self.size,
        ]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A dataset in the Cityscapes layout, as a build is told of it.

    Attributes:
      root: the dataset's folder, below which the pairs' files are.
      annotations: 'gtFine' or 'gtCoarse'.
    """

    root: str
    annotations: str = FINE

    @property
    def flags(self) -> list[str]:
        """Returns the flags that stand for it."""
        return [f'--cityscapes_dir={self.root}']

    def scan(self, folders: tuple[str, ...] = tuple(SPLITS), masks_are: str | None = None) -> 'Scan':
        """Returns what `scan` finds."""
        return scan(self.root, self.annotations, folders, masks_are)


@dataclasses.dataclass
class Scan:
    """What names and headers show.

    Attributes:
      pairs: the usable ones, by split and image id.
      problems: one line each: file, what is wrong, likely cause, remedy.
      warnings: one line each.
      passed_over: locations of files that look like images, of a kind that is not read.
      foreign: locations of other files that are not part of the dataset.
    """

    pairs: list[Pair]
    problems: list[str]
    warnings: list[str]
    passed_over: list[str] = dataclasses.field(default_factory=list)
    foreign: list[str] = dataclasses.field(default_factory=list)


def digest(pairs: list[Pair]) -> str:
    """Returns the SHA-256 of the pairs' names and sizes."""
    return hashlib.sha256('\n'.join(str(pair.listing) for pair in pairs).encode()).hexdigest()


def scan(
    cityscapes_dir: epath.PathLike,
    annotations: str = FINE,
    folders: tuple[str, ...] = tuple(SPLITS),
    masks_are: str | None = None,
) -> Scan:
    """Pairs up all files by name and reads their headers.

    Args:
      cityscapes_dir: the dataset's folder.
      annotations: 'gtFine' (train_extra, which has none, takes gtCoarse) or 'gtCoarse'.
      folders: the split folders to read, keys of SPLITS.
      masks_are: what label files hold, see `masks.to_label_ids`.

    Raises:
      UserError: MISSING_INPUT if the folder is not a dataset in this layout.
    """
    root, result = epath.Path(cityscapes_dir), Scan([], [], [])
    found = source_files.list_all(root, (IMAGES, FINE, COARSE), result.problems) if root.is_dir() else {}
    if not any(name.startswith(f'{IMAGES}/') for name in found):
        raise_problems(root, result.problems)
        raise entry.UserError(entry.MISSING_INPUT, _wrong_folder(root))
    kind_of = {folder: COARSE if folder == 'train_extra' else annotations for folder in folders}
    by_place = _sort_out(found, kind_of, result)
    for folder in folders:
        found_images = _by_stem(by_place[IMAGES, folder], _IMAGE_SUFFIXES, result)
        suffixes = tuple(f'_{kind_of[folder]}{suffix}' for suffix in _LABEL_SUFFIXES)
        found_labels = _by_stem(by_place[kind_of[folder], folder], suffixes, result)
        if found_images:
            _pair_up(folder, kind_of[folder], found_images, found_labels, result)
        elif (root / IMAGES / folder).is_dir():
            result.problems.append(
                f'{IMAGES}/{folder}: no images, probably an interrupted copy. Copy them again, or remove the folder.'
            )
        elif found_labels:
            result.warnings.append(
                f'{kind_of[folder]}/{folder}: {len(found_labels):,} label files, no {IMAGES}/{folder}; split left out.'
            )
    if result.foreign:
        rest = f' and {len(result.foreign) - 3:,} more' if len(result.foreign) > 3 else ''
        result.warnings.append(f'not part of the dataset, passed over: {", ".join(result.foreign[:3])}{rest}.')
    drop_repeated(result)
    check_headers(root, result, masks_are)
    if not result.pairs and not result.problems:
        raise entry.UserError(
            entry.MISSING_INPUT,
            f'{root / IMAGES}: no images in {", ".join(folders)}. Pass --splits, or copy them again.',
        )
    return result


def raise_problems(root: epath.PathLike, problems: list[str], outcome: str = 'nothing was finished.') -> None:
    """Raises UserError BAD_DATA with the first problems and the number of the rest, if there are any."""
    if problems:
        raise entry.UserError(entry.BAD_DATA, f'{root}: {len(problems)} problem(s); {outcome}\n{shorten(problems)}')


def shorten(lines: list[str]) -> str:
    """Returns the first lines and the number of the rest."""
    rest = [f'... and {len(lines) - _LISTED} more'] if len(lines) > _LISTED else []
    return '\n'.join(lines[:_LISTED] + rest)


def _wrong_folder(root: epath.Path) -> str:
    if not root.is_dir():
        there = 'no such folder'
    else:
        names = sorted(path.name for path in root.iterdir())
        there = f'found: {", ".join(names[:8]) or "nothing"}'
        if root.name in (IMAGES, FINE, COARSE):
            there += f' (pass the folder above: {root.parent})'
        inside = [name for name in names if (root / name / IMAGES).exists()]
        if inside:
            there += f' (did you mean {root / inside[0]}?)'
    return (
        f'{root}: expected {IMAGES}/<split>/<city>/*_{IMAGES}.png, or {IMAGES}_trainvaltest.zip; {there}. Pass '
        '--cityscapes_dir, or make a synthetic dataset with python -m data_prep.synthesize.'
    )


def _sort_out(found: dict[str, str], kind_of: dict[str, str], result: Scan) -> dict[tuple[str, str], list[str]]:
    """(kind, split folder) -> locations of the images, or label files, two folders below; notes what lies anywhere
    else, and what is neither."""
    places, flat, unknown = collections.defaultdict(list), collections.Counter(), collections.Counter()
    for name, location in found.items():
        kind, *above, file = name.split('/')
        if kind != IMAGES and kind not in kind_of.values() or above[:1] == [_UNLABELLED]:
            continue
        if not file.endswith(_IMAGE_SUFFIXES if kind == IMAGES else _LABEL_SUFFIXES):
            if any(part in file for part in _MADE_OF_LABELS):
                continue
            if not file.lower().endswith(_PICTURES):
                (result.passed_over if folders.looks_like_image(file) else result.foreign).append(location)
                continue
        if above and above[0] not in SPLITS:
            unknown[f'{kind}/{above[0]}'] += 1
        elif len(above) != 2:
            flat['/'.join([kind, *above])] += 1
        else:
            places[kind, above[0]].append(location)
    result.problems += [
        f'{folder}: {count} file(s), but this is not a split. Expected {", ".join(SPLITS)}: rename the folder.'
        for folder, count in unknown.items()
    ]
    result.problems += [
        f'{folder}: {count} file(s) lie directly in it; expected {folder.split("/")[0]}/<split>/<city>/<file>. '
        'Move them into a folder per split and city (any name will do).'
        for folder, count in flat.items()
    ]
    return places


def _by_stem(locations: list[str], suffixes: tuple[str, ...], result: Scan) -> dict[str, str]:
    """Stem -> location of the files with one of the suffixes, the first suffix going before the others."""
    found = {}
    for location in locations:
        file = location.rpartition('/')[2]
        suffix = next((suffix for suffix in suffixes if file.endswith(suffix)), None)
        if suffix is None:
            result.problems.append(
                f'{location}: stray file, its name should end in {suffixes[0]}. Rename it, or move it away.'
            )
            continue
        if not is_utf8(location):
            result.problems.append(f'{location!a}: its name is not UTF-8, as image ids are. Rename it (convmv does).')
            continue
        stem = file.removesuffix(suffix)
        earlier = found.get(stem)
        if earlier is None or suffixes != _IMAGE_SUFFIXES and suffix == suffixes[0] and earlier.endswith(suffixes[1]):
            found[stem] = location
        elif suffix == suffixes[0] or suffixes == _IMAGE_SUFFIXES:
            result.problems.append(f'{location}: {earlier} has the same stem; image ids must be unique. Rename one.')
    return found


def _pair_up(folder: str, kind: str, found_images: dict[str, str], found_labels: dict[str, str], result: Scan) -> None:
    """Joins images and labels of one split by stem."""
    if not found_labels and folder != 'test':
        remedy = f'pass --annotations={COARSE}' if kind == FINE else 'leave the split out with --splits'
        result.problems.append(
            f'{IMAGES}/{folder}: {len(found_images)} images, but no *_{kind}_labelIds.png or *_{kind}_polygons.json '
            f'under {kind}/{folder}. Copy the labels, or {remedy}.'
        )
        return
    labels_left = dict(found_labels)
    for stem, image in sorted(found_images.items()):
        label = labels_left.pop(stem, None)
        if label is None and folder != 'test':
            result.problems.append(
                f'{image}: no label file {stem}_{kind}_labelIds.png (or _polygons.json) under {kind}/{folder}. Was it '
                'forgotten in the copy? Copy it, or remove the image.'
            )
        else:
            result.pairs.append(Pair(SPLITS[folder], stem, image, label, 0))
    unread = {location.rpartition('/')[2].rpartition('.')[0]: location for location in result.passed_over}
    for stem, label in sorted(labels_left.items()):
        other = unread.get(f'{stem}_{IMAGES}')
        cause = f'{other} is not read: save it as PNG or JPEG' if other else 'Was it forgotten in the copy? Copy it'
        result.problems.append(
            f'{label}: no image {stem}_{IMAGES}.png under {IMAGES}/{folder}. {cause}, or remove the label.'
        )


def is_utf8(name: str) -> bool:
    """Says whether a file's name is text; Python lets surrogates stand for other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def drop_repeated(result: Scan) -> None:
    """Notes image ids that stand in several splits, and leaves them out."""
    places = collections.defaultdict(list)
    for pair in result.pairs:
        places[pair.image_id].append(pair.image)
    result.problems += [
        f'{image}: {found[image == found[0]]} has the same stem; image ids must be unique. Rename one.'
        for found in places.values()
        if len(found) > 1
        for image in found
    ]
    result.pairs = [pair for pair in result.pairs if len(places[pair.image_id]) == 1]


def check_headers(root: epath.PathLike, result: Scan, masks_are: str | None) -> None:
    """Reads sizes and first bytes of all files; notes pairs that these show to be unusable, and leaves them out."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        checked = list(pool.map(functools.partial(_check_pair, root, masks_are), result.pairs))
    result.problems += [problem for _, problem in checked if problem]
    result.pairs = [pair for pair, problem in checked if not problem]


def _check_pair(root: epath.PathLike, masks_are: str | None, pair: Pair) -> tuple[Pair, str | None]:
    """The pair with its size in bytes, and what is wrong with it by its headers, if anything."""
    total, sizes = 0, []
    for location in filter(None, (pair.image, pair.label)):
        try:
            total += source_files.size_of(root, location)
            if not location.endswith('.json'):
                head = source_files.read(root, location, images.HEADER_BYTES)
                sizes.append(images.check_header(head, location, location == pair.label, masks_are))
        except ValueError as error:
            return pair, f'{location}: {error}'
        except source_files.READ_ERRORS as error:
            return pair, source_files.unreadable(location, error)
    # An EXIF orientation, which may stand far behind the header, exchanges height and width.
    if len(sizes) == 2 and None not in sizes and sorted(sizes[0]) != sorted(sizes[1]):
        return pair, f'{pair.label}: {images.size_mismatch(sizes[0], sizes[1])}'
    return dataclasses.replace(pair, size=total), None
