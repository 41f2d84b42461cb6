"""Instance-weighted IoU: a pixel of an object counts the more, the smaller the object is for its class.

    files = instance_iou.find('dataset', split.image_ids)
    rows = instance_iou.measure(instance_iou.read(files[split.image_ids[0]], truth), prediction, table)
    scores = instance_iou.scores(rows, confusion, table)     # {'eval/iiou': 0.42, ...}, of the rows of all images

iIoU = iTP / (iTP + FP + iFN), where a pixel of an instance weighs the average size of its class's instances divided by
the size of the instance, and FP are plain pixels, since a label map says nothing of the instances it sees.
Source: cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py; https://arxiv.org/abs/1604.01685, section 4.1.
"""

import io
import math
import os
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from data_prep import labels, source_files
from launch import entry
from unet.evaluation import metrics

# Pixels of the average instance in Cityscapes; constants of the official evaluator.
AVERAGE_SIZE = {
    'bicycle': 4672.3249222261,
    'caravan': 36771.8241758242,
    'motorcycle': 6298.7200839748,
    'rider': 3930.4788056518,
    'bus': 35732.1511111111,
    'train': 67583.7075812274,
    'car': 12794.0202738185,
    'person': 3462.4756337644,
    'truck': 27855.1264367816,
    'trailer': 16926.9763313609,
}
_PER_CLASS = 1000  # an instance's id is 1000 times its label id plus a number; a crowd has its plain label id
_KINDS = ('gtFine', 'gtCoarse')  # the first that has an image's file is used
_SUFFIX = '_instanceIds.png'


def find(cityscapes_dir: epath.PathLike, image_ids: Sequence[str]) -> dict[str, source_files.File]:
    """Finds the instance file of each image, in the extracted tree or in the zip files as they were downloaded.

    Args:
      cityscapes_dir: the folder that holds gtFine, or its zip.
      image_ids: the images.

    Returns:
      The file of each image by its id.

    Raises:
      UserError: MISSING_INPUT if there is no such folder or an image has no instance file in it, BAD_DATA if a zip file
        in it cannot be read.
    """
    root = epath.Path(cityscapes_dir)
    if not root.exists():
        raise entry.UserError(entry.MISSING_INPUT, f'--cityscapes_dir={root}: no such folder')
    problems: list[str] = []
    there = source_files.list_all(root, _KINDS, problems)
    found: dict[str, source_files.File] = {}
    for kind in _KINDS:
        suffix = f'_{kind}{_SUFFIX}'
        for name, location in there.items():
            if name.startswith(f'{kind}/') and name.endswith(suffix):
                image_id = name.rpartition('/')[2].removesuffix(suffix)
                found.setdefault(image_id, source_files.File(os.fspath(root), location))
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise entry.UserError(
            entry.MISSING_INPUT,
            f'--cityscapes_dir={root}: no {_KINDS[0]}/*/*/{missing[0]}_{_KINDS[0]}{_SUFFIX}; {len(missing)} of '
            f'{len(image_ids)} images lack their instance file. They come with gtFine_trainvaltest.zip; leave '
            '--cityscapes_dir out to score without instances.' + ''.join(f'\n{problem}' for problem in problems),
        )
    return {image_id: found[image_id] for image_id in image_ids}


def read(file: source_files.File, truth: np.ndarray) -> np.ndarray:
    """Reads an instance file and makes sure that it belongs to the image's labels.

    Args:
      file: of `find`.
      truth: uint8 [h, w], the image's label ids.

    Returns:
      int32 [h, w]: 1000 times the label id plus a number for a pixel of an instance, else the label id.

    Raises:
      UserError: BAD_DATA if it cannot be read or belongs to other labels.
    """
    try:
        instances = np.asarray(Image.open(io.BytesIO(file.read_bytes()))).astype(np.int32)
    except (*source_files.READ_ERRORS, ValueError, SyntaxError) as error:
        raise entry.UserError(entry.BAD_DATA, f'{file}: cannot be read ({error}). Copy it again.') from error
    if instances.shape != truth.shape:
        raise entry.UserError(
            entry.BAD_DATA,
            f'{file}: its shape is {instances.shape}, its image in the records has {truth.shape}. Instances are scored '
            'at the original size: build the records without --size.',
        )
    things = instances > _PER_CLASS
    others = np.count_nonzero(instances[things] // _PER_CLASS != truth[things])
    if others:
        raise entry.UserError(
            entry.BAD_DATA,
            f'{file}: {others} pixels of its instances have another class in the records. Were these built from other '
            'labels (gtCoarse, or an edited copy)?',
        )
    return instances


def check_classes(table: labels.Table) -> None:
    """Raises UserError BAD_DATA if the table has classes of instances whose average size is not known."""
    unknown = [label.name for label in _classes(table) if label.name not in AVERAGE_SIZE]
    if unknown or not _classes(table):
        raise entry.UserError(
            entry.BAD_DATA,
            'instance-weighted scores are defined for the classes of Cityscapes: this label table '
            + (f'has instances of {", ".join(unknown)}' if unknown else 'has no class with instances')
            + '. Leave --cityscapes_dir out.',
        )


def measure(instances: np.ndarray, prediction: np.ndarray, table: labels.Table) -> np.ndarray:
    """Counts how much of each instance of an image was found.

    Args:
      instances: int32 [h, w].
      prediction: uint8 [h, w], label ids.
      table: the label table.

    Returns:
      int64 [n, 4], a row per instance of a scored class: label id, pixels, pixels predicted as its class, pixels
      predicted as any class of its category.
    """
    group = np.zeros(256, np.uint8)
    for number, ids in enumerate(_categories(table).values(), 1):
        group[ids] = number
    pixels = np.flatnonzero(instances > _PER_CLASS)
    instance, predicted = instances.ravel()[pixels], prediction.ravel()[pixels]
    label = instance // _PER_CLASS
    columns = [
        np.bincount(instance[chosen], minlength=instance.max(initial=0) + 1)
        for chosen in (..., predicted == label, group[predicted] == group[label])
    ]
    found = np.flatnonzero(columns[0])
    rows = np.stack([found // _PER_CLASS, *(column[found] for column in columns)], 1)
    return rows[np.isin(rows[:, 0], [label.id for label in _classes(table)])]


def scores(rows: np.ndarray, confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Returns the instance-weighted scores, as fractions.

    Args:
      rows: int64 [n, 4], the instances of all images as `measure` gives them.
      confusion: int64 [ids, ids], of the same images.
      table: the label table.

    Returns:
      'eval/iiou' and 'eval/iiou_categories', the official means; 'eval/iiou/<class>' of the classes that have instances
      and 'eval/category_iiou/<category>' of the categories all of whose classes have.
    """
    weight = np.zeros(256)
    for label in _classes(table):
        weight[label.id] = AVERAGE_SIZE[label.name]

    def weighted(of: list[int], column: int, ids: list[int]) -> float:
        label, pixels, hits = rows[np.isin(rows[:, 0], of)][:, [0, 1, column]].T
        each = weight[label] / pixels
        # fsum: the same to the last digit in whatever order the images came
        found, missed = math.fsum(each * hits), math.fsum(each * (pixels - hits))
        return metrics.iou(found, missed, metrics.false_positives(confusion, table, ids))

    by_class = {label.name: weighted([label.id], 2, [label.id]) for label in _classes(table)}
    by_category = {name: weighted(ids, 3, ids) for name, ids in _categories(table).items()}
    return {
        'eval/iiou': metrics.mean(by_class.values()),
        'eval/iiou_categories': metrics.mean(by_category.values()),
        **{f'eval/iiou/{name}': value for name, value in by_class.items()},
        **{f'eval/category_iiou/{name}': value for name, value in by_category.items()},
    }


def _classes(table: labels.Table) -> labels.Table:
    return tuple(label for label in labels.classes(table) if label.has_instances)


def _categories(table: labels.Table) -> dict[str, list[int]]:
    """The label ids of each category all of whose classes have instances: ignored ids too, by the official rules."""
    members = {name: [label for label in table if label.category == name] for name in metrics.categories(table)}
    return {
        name: [label.id for label in among] for name, among in members.items() if all(a.has_instances for a in among)
    }
