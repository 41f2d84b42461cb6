"""Finds the images and label files of a dataset in the Cityscapes layout and pairs them by name.

leftImg8bit/<split>/<city>/<stem>_leftImg8bit.png
gtFine/<split>/<city>/<stem>_gtFine_labelIds.png
"""

import collections
import dataclasses

from etils import epath

from launch import entry

IMAGES, LABELS = 'leftImg8bit', 'gtFine'
_IMAGE_SUFFIXES = tuple(f'_{IMAGES}{suffix}' for suffix in ('.png', '.jpg', '.jpeg'))
_LABEL_SUFFIX = f'_{LABELS}_labelIds.png'
SPLITS = {'train': 'train', 'val': 'validation', 'test': 'test'}  # folder -> split
_LISTED = 20  # problems shown before the rest is only counted


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its label file.

    Attributes:
      split: 'train', 'validation' or 'test'.
      image_id: the stem that both file names share, unique in the dataset.
      image: path of the image below the dataset's folder.
      label: path of the label ids below the dataset's folder; None for a test image without labels.
      size: bytes of both files.
    """

    split: str
    image_id: str
    image: str
    label: str | None
    size: int


def find_pairs(cityscapes_dir: epath.PathLike) -> list[Pair]:
    """All pairs, by split and image id.

    Raises:
      Failure: MISSING_INPUT if the folder is not a dataset in this layout; BAD_DATA with all images that lack a label,
        labels that lack an image, and names that stand twice.
    """
    root = epath.Path(cityscapes_dir)
    if not (root / IMAGES).exists():
        found = (
            ', '.join(sorted(path.name for path in root.iterdir())[:8]) if root.exists() else 'the folder is not there'
        )
        raise entry.Failure(
            entry.MISSING_INPUT,
            f'{root}: expected {IMAGES}/<split>/<city>/*_{IMAGES}.png; found: {found or "nothing"}. Pass '
            '--cityscapes_dir, the folder that holds leftImg8bit and gtFine, or make a synthetic one with '
            'python -m data_prep.synthesize.',
        )
    pairs, problems = [], []
    for folder, split in SPLITS.items():
        images = _by_stem(root, IMAGES, folder, _IMAGE_SUFFIXES, problems)
        found = _by_stem(root, LABELS, folder, (_LABEL_SUFFIX,), problems)
        for stem, (image, size) in sorted(images.items()):
            label, label_size = found.pop(stem, (None, 0))
            if label is None and split != 'test':
                problems.append(f'{image}: no label file {stem}{_LABEL_SUFFIX} under {LABELS}/{folder}. Copy it again.')
                continue
            pairs.append(Pair(split, stem, image, label, size + label_size))
        problems += [
            f'{label}: no image {stem}_{IMAGES}.png under {IMAGES}/{folder}. Copy it again.'
            for stem, (label, _) in sorted(found.items())
        ]
    counts = collections.Counter(pair.image_id for pair in pairs)
    problems += [
        f'{stem}: this name stands in two splits; image ids must be unique.' for stem in counts if counts[stem] > 1
    ]
    report(root, problems)
    if not pairs:
        raise entry.Failure(
            entry.MISSING_INPUT,
            f'{root / IMAGES}: no images; expected folders {", ".join(SPLITS)} with a folder per city in each.',
        )
    return pairs


def report(root: epath.PathLike, problems: list[str]) -> None:
    """Raises Failure BAD_DATA with the first problems and the number of the rest, if there are any."""
    if problems:
        rest = f'\n... and {len(problems) - _LISTED} more' if len(problems) > _LISTED else ''
        listed = '\n'.join(problems[:_LISTED])
        raise entry.Failure(
            entry.BAD_DATA, f'{root}: {len(problems)} problem(s); nothing was finished.\n{listed}{rest}'
        )


def _by_stem(
    root: epath.Path, kind: str, folder: str, suffixes: tuple[str, ...], problems: list[str]
) -> dict[str, tuple[str, int]]:
    """Stem -> (path below the root, bytes) of the files of one kind in one split's folder."""
    found = {}
    if not (root / kind / folder).exists():
        return found
    for city in sorted((root / kind / folder).iterdir()):
        if not city.is_dir():
            continue
        for file in sorted(city.iterdir()):
            suffix = next((suffix for suffix in suffixes if file.name.endswith(suffix)), None)
            if suffix is None:
                continue
            stem, path = file.name.removesuffix(suffix), f'{kind}/{folder}/{city.name}/{file.name}'
            if stem in found:
                problems.append(f'{path}: {found[stem][0]} has the same name; image ids must be unique.')
            found[stem] = path, file.stat().length
    return found
