"""Finds the images and masks of a dataset in any layout: listed in a CSV file, or named by two patterns.

    found = pair_list.CsvFile('pairs.csv').scan()
    found = pair_list.Patterns('in/{split}/{name}.png', 'gt/{split}/{name}.png').scan()

A CSV file has the columns image, label and split, of paths relative to the file; the label is empty for test images
without one. In a pattern, {split} stands for a split and {name} for anything, folders too; all else stands for itself.
An image's id is its path without suffix.
"""

import collections
import csv
import dataclasses
import io
import os
import posixpath
import re
from collections.abc import Iterator

from etils import epath

from data_prep import cityscapes_layout
from data_prep.cityscapes_layout import SPLITS, Pair, Scan
from launch import entry
from launch import folders as launch_folders

_COLUMNS = ('image', 'label', 'split')
# What lists and folders call the splits -> what the flag --splits calls them.
_FOLDERS = {name: name for name in SPLITS} | {
    'training': 'train',
    'valid': 'val',
    'validation': 'val',
    'testing': 'test',
}
_POSSIBLE = f'Possible are {", ".join(_FOLDERS)}.'


@dataclasses.dataclass(frozen=True)
class CsvFile:
    """A dataset whose pairs a CSV file lists."""

    path: str
    annotations = None

    @property
    def root(self) -> str:
        """Returns the folder that the paths in the file start from."""
        return os.path.dirname(self.path) or '.'

    @property
    def flags(self) -> list[str]:
        """Returns the flags that stand for it."""
        return [f'--pairs={self.path}']

    def scan(self, folders: tuple[str, ...] = tuple(SPLITS), masks_are: str | None = None) -> Scan:
        """Reads the list, and the headers of all files in it.

        Args:
          folders: the splits to read, keys of SPLITS.
          masks_are: what masks hold, see `masks.to_label_ids`.

        Raises:
          UserError: MISSING_INPUT if there is no such file, BAD_DATA if it is not such a list.
        """
        result, row_of = Scan([], [], []), {}
        for number, row in _rows(self.path):
            image, label, split = (row[column] for column in _COLUMNS)
            image, label = _tidy(image) if image else '', _tidy(label) if label else None
            folder, place = _FOLDERS.get(split.lower()), f'row {number} of {self.path}'
            if not image:
                result.problems.append(f'{place}: names no image. Name one, or remove the row.')
            elif folder is None:
                result.problems.append(f'{image}: {place}: {split!r} is not a split. {_POSSIBLE}')
            elif image in row_of:
                result.problems.append(f'{image}: {place}: stands in row {row_of[image]} too. Remove one of them.')
            elif label == image:
                result.problems.append(f'{image}: {place}: is its own label. Name the mask.')
            elif label is None and folder != 'test':
                result.problems.append(f'{image}: {place}: no label; only images of the split test may go without.')
            elif folder in folders:
                if label in row_of:
                    result.warnings.append(f'{label}: {place}: is the label in row {row_of[label]} too.')
                result.pairs.append(Pair(SPLITS[folder], _image_id(image), image, label, 0))
            for file in filter(None, (image, label)):
                row_of.setdefault(file, number)
        known = len(result.problems)
        if not result.pairs and not result.problems:
            raise entry.UserError(entry.MISSING_INPUT, f'--pairs={self.path}: lists no images of {", ".join(folders)}.')
        _finish(self.root, result, masks_are)
        for at, problem in enumerate(result.problems[known:], known):
            file, _, text = problem.partition(': ')
            result.problems[at] = f'{file}: row {row_of[file]} of {self.path}: {text}' if file in row_of else problem
        return result


@dataclasses.dataclass(frozen=True)
class Patterns:
    """A dataset whose images and masks are named by patterns.

    Attributes:
      images: e.g. 'in/{split}/{name}.jpg'.
      masks: e.g. 'gt/{split}/{name}.png'; if it has no {split}, names are unique over all splits.
    """

    images: str
    masks: str
    annotations = None

    @property
    def root(self) -> str:
        """Returns the folder that both patterns have in common."""
        parts = os.path.commonprefix([_folder(pattern).split('/') for pattern in (self.images, self.masks)])
        return '/'.join(parts) or '/'

    @property
    def flags(self) -> list[str]:
        """Returns the flags that stand for it."""
        return [f'--images={self.images}', f'--masks={self.masks}']

    def scan(self, folders: tuple[str, ...] = tuple(SPLITS), masks_are: str | None = None) -> Scan:
        """Finds the files, pairs them up by split and name, and reads their headers.

        Args:
          folders: the splits to read, keys of SPLITS.
          masks_are: what masks hold, see `masks.to_label_ids`.

        Raises:
          UserError: BAD_USAGE if a pattern cannot work, MISSING_INPUT if no image has such a name.
        """
        _check_patterns(self.images, self.masks)
        prefix, result = f'{self.root.rstrip("/")}/', Scan([], [], [])
        of_images, of_masks = (_anchored(pattern).removeprefix(prefix) for pattern in (self.images, self.masks))
        files = set()
        for place in {_folder(pattern) for pattern in (self.images, self.masks)}:
            below = launch_folders.files_below(place, result.problems) if epath.Path(place).is_dir() else ()
            files |= {f'{place}/{name}'.removeprefix(prefix) for name in below}
        images, masks = _named(of_images, files, result), _named(of_masks, files, result)
        matching = [re.compile(_expression(pattern), re.DOTALL).fullmatch for pattern in (of_images, of_masks)]
        rest = sorted(file for file in files if not any(matches(file) for matches in matching))
        result.passed_over += [file for file in rest if launch_folders.looks_like_image(file) and not _is_read(file)]
        if rest := [file for file in rest if file not in result.passed_over]:
            result.warnings.append(f'{len(rest):,} file(s) match neither pattern, the first: {rest[0]}; passed over.')
        mask_of = {
            (folder, name): masks.get((folder if '{split}' in of_masks else '', name)) for folder, name in images
        }
        # A pattern like {name}.png matches the masks {name}_mask.png too, and the other way round.
        taken = {mask for key, mask in mask_of.items() if mask != images[key]}
        images = {key: image for key, image in sorted(images.items()) if image not in taken and key[0] in folders}
        if not images and not result.problems:
            place = f'{_folder(self.images)}/'
            inside = sorted(path for file in files if (path := f'{prefix}{file}').startswith(place))
            there = f'there is {inside[0]}, for example' if inside else f'{place} holds no files'
            raise entry.UserError(
                entry.MISSING_INPUT, f'--images={self.images}: no such file of {", ".join(folders)}; {there}.'
            )
        image_of: dict[str, str] = {}
        for key, image in images.items():
            mask = mask_of[key] if mask_of[key] != image else None
            if mask is None and key[0] != 'test':
                wanted = _renamed(image, of_images, of_masks)
                result.problems.append(f'{image}: no mask {wanted}. Copy it there, or remove the image.')
            elif mask in image_of:
                result.problems.append(
                    f'{image}: {image_of[mask]} has the same name, and {mask} is of one of them. Rename one, or list '
                    'the pairs in a file: --pairs.'
                )
            else:
                result.pairs.append(Pair(SPLITS[key[0]], _image_id(image), image, mask, 0))
                image_of |= {mask: image} if mask else {}
        known = taken | set(images.values())
        result.problems += [
            f'{mask}: no image {_renamed(mask, of_masks, of_images)}. Copy it there, or remove the mask.'
            for key, mask in sorted(masks.items())
            if key[0] in ('', *folders) and mask not in known
        ]
        _finish(self.root, result, masks_are)
        return result


def _is_read(file: str) -> bool:
    return file.lower().endswith(('.png', '.jpg', '.jpeg'))


def _rows(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers and fields, by column, of the rows of a CSV file; raises UserError if it is not such a list."""

    def refuse(problem: str) -> entry.UserError:
        return entry.UserError(entry.BAD_DATA, f'{path}: {problem}')

    file = epath.Path(path)
    if not file.is_file():
        raise entry.UserError(entry.MISSING_INPUT, f'--pairs={path}: no such file')
    try:
        text = file.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise refuse('is not UTF-8 text. Save it as CSV in UTF-8.') from error
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith('sep=')), '')
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=max(',;\t', key=first.count), skipinitialspace=True)
    header: list[str] = []
    try:
        for row in reader:
            fields, number = [field.strip() for field in row], reader.line_num
            if not any(fields) or fields[0].startswith('sep='):  # of Excel
                continue
            if not header:
                header = [field.lower() for field in fields]
                if missing := [column for column in _COLUMNS if column not in header]:
                    raise refuse(
                        f'row {number}: no column {", ".join(missing)}; found {", ".join(header)}. The first row '
                        f'names the columns: {",".join(_COLUMNS)}.'
                    )
            elif len(fields) < len(header) or any(fields[len(header) :]):
                raise refuse(
                    f'row {number}: {len(fields)} fields, and {len(header)} columns. Put names that hold a comma into '
                    'double quotes.'
                )
            else:
                yield number, dict(zip(header, fields, strict=False))
    except csv.Error as error:
        raise refuse(f'row {reader.line_num}: {error}.') from error
    if not header:
        raise refuse(f'is empty. The first row names the columns: {",".join(_COLUMNS)}.')


def _tidy(path: str) -> str:
    """A path as it is compared with others; Windows's own are understood."""
    return path if '://' in path else posixpath.normpath(path.replace('\\', '/'))


def _image_id(location: str) -> str:
    return re.sub(r'^(\.{0,2}/)+', '', posixpath.splitext(location)[0])


def _check_patterns(images: str, masks: str) -> None:
    """Raises UserError BAD_USAGE if the patterns cannot work."""
    for flag, pattern, remedy in (
        ('images', images, 'Without it, images to train on and to score are not told apart: list them with --pairs.'),
        ('masks', masks, ''),
    ):
        needed = ['{split}', '{name}'] if remedy else ['{name}']
        if missing := [place for place in needed if place not in pattern]:
            raise entry.UserError(
                entry.BAD_USAGE, f'--{flag}={pattern}: has no {missing[0]}. {remedy if missing[0] == "{split}" else ""}'
            )
    if images == masks or images.startswith('/') != masks.startswith('/'):
        raise entry.UserError(
            entry.BAD_USAGE,
            f'--masks={masks}: must differ from --images, and be relative if that is, or absolute if that is.',
        )


def _anchored(pattern: str) -> str:
    """A pattern that begins with ./ if it is relative."""
    tidy = _tidy(pattern)
    return tidy if tidy.startswith('/') or '://' in tidy else f'./{tidy}'


def _folder(pattern: str) -> str:
    """The folder that all files of a pattern are below."""
    return re.split(r'\{(?:split|name)\}', _anchored(pattern))[0].rpartition('/')[0]


def _expression(pattern: str) -> str:
    """The regular expression of a pattern; a placeholder stands for the same text wherever it is repeated."""
    found, seen = '', set()
    for piece in re.split(r'(\{(?:split|name)\})', pattern):
        if piece not in ('{split}', '{name}'):
            found += re.escape(piece)
        elif piece in seen:
            found += f'(?P={piece[1:-1]})'
        else:
            found += '(?P<split>[^/]+?)' if piece == '{split}' else '(?P<name>.+?)'
            seen.add(piece)
    return found


def _named(pattern: str, files: set[str], result: Scan) -> dict[tuple[str, str], str]:
    """(Split folder, '' where the pattern has none; name) -> file, of those that match; notes what cannot be used."""
    found: dict[tuple[str, str], str] = {}
    unknown: dict[str, list[str]] = collections.defaultdict(list)
    for file in sorted(files):
        match = re.fullmatch(_expression(pattern), file, re.DOTALL)
        if match is None:
            continue
        split = match.groupdict().get('split', '')
        key = _FOLDERS.get(split.lower(), ''), match['name']
        if split and not key[0]:
            unknown[split].append(file)
        elif not cityscapes_layout.is_utf8(file):
            result.problems.append(f'{file!a}: its name is not UTF-8, as image ids are. Rename it (convmv does).')
        elif key in found:
            result.problems.append(f'{file}: {found[key]} has the same name in the same split. Rename one.')
        else:
            found[key] = file
    result.problems += [
        f'{first}: {split!r} is not a split ({len(rest) + 1:,} file(s)). {_POSSIBLE} Rename it, or list the pairs in a '
        'file: --pairs.'
        for split, (first, *rest) in unknown.items()
    ]
    return found


def _renamed(file: str, pattern: str, other: str) -> str:
    """What a file of one pattern is called by another."""
    for place, text in re.fullmatch(_expression(pattern), file, re.DOTALL).groupdict().items():
        other = other.replace(f'{{{place}}}', text)
    return other


def _finish(root: str, result: Scan, masks_are: str | None) -> None:
    """Brings the pairs into order, and checks that ids are unique, and the headers of all files."""
    splits = list(SPLITS.values())
    result.pairs.sort(key=lambda pair: (splits.index(pair.split), pair.image_id))
    cityscapes_layout.drop_repeated(result)
    cityscapes_layout.check_headers(root, result, masks_are)
