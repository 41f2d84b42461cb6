"""Boundary IoU: how well the outlines of classes are met, whatever their size.

    counts = boundary_iou.count_pairs(truth, prediction, table)      # of each image; add them up
    scores = boundary_iou.scores(counts, table)                      # {'eval/boundary_iou': 0.55, ...}

Of each class only the pixels within a distance of its outline count, in the truth and in the prediction; the border of
the image is part of the outline. Intersections and unions are summed over all images, and truth that is ignored counts
for nothing. Source: https://arxiv.org/abs/2103.16562, with its distance for Cityscapes, 0.5 % of the image's diagonal.
"""

import math

import numpy as np

from data_prep import labels
from unet.evaluation import metrics

_DISTANCE = 0.005  # of the diagonal


def count_pairs(truth: np.ndarray, prediction: np.ndarray, table: labels.Table) -> np.ndarray:
    """Counts pixels by true and predicted label id, with one more id for what lies far from the outline of its class.

    Args:
      truth: uint8 [h, w], label ids.
      prediction: uint8 [h, w], label ids.
      table: the label table.

    Returns:
      int64 [n + 1, n + 1] with n = `labels.num_ids(table)`: rows true ids, columns predicted ids, the last of each for
      pixels that are not near an outline or whose truth is ignored.
    """
    far = labels.num_ids(table)
    distance = max(1, round(_DISTANCE * math.hypot(*truth.shape)))
    counted = np.zeros(truth.shape, bool)
    for label in labels.classes(table):  # several times faster than looking every pixel up in a table
        counted |= truth == label.id
    near = []
    for label_ids in (truth, prediction):
        near.append(np.where(counted & ~far_from_outline(label_ids, distance), label_ids, np.uint8(far)))
    return metrics.count_pairs(near[0], near[1], far + 1)[:-1].reshape(far + 1, far + 1)


def far_from_outline(label_ids: np.ndarray, distance: int) -> np.ndarray:
    """Finds the pixels that are far from the outline of their class.

    They are what is left of each class eroded `distance` times by a 3x3 square, found in one pass for all classes.

    Args:
      label_ids: uint8 [h, w].
      distance: pixels.

    Returns:
      bool [h, w]: True where the square of `distance` pixels to each side lies in the image and is of one class.
    """
    inner = np.zeros(label_ids.shape, bool)
    side = 2 * distance + 1
    if min(label_ids.shape) >= side:
        even_rows = _all_of(label_ids[:, 1:] == label_ids[:, :-1], side - 1, axis=1)
        even_columns = _all_of(label_ids[1:] == label_ids[:-1], side - 1, axis=0)
        inner[distance:-distance, distance:-distance] = (
            _all_of(even_rows, side, axis=0) & even_columns[:, distance:-distance]
        )
    return inner


def _all_of(flags: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Whether `length` neighbours along an axis are all True, for each place where so many are left."""
    flags, joined = np.moveaxis(flags, axis, 0), 1
    while joined < length:
        step = min(joined, length - joined)
        flags = flags[:-step] & flags[step:]
        joined += step
    return np.moveaxis(flags, 0, axis)


def scores(counts: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Scores the outlines of all images together, as fractions.

    Args:
      counts: int64 [n + 1, n + 1], the sum of what `count_pairs` gives for each image.
      table: the label table.

    Returns:
      'eval/boundary_iou/<class>' of each scored class, NaN for one that neither occurs nor is predicted, and their mean
      'eval/boundary_iou' over the others.
    """
    by_class = {}
    for label in labels.classes(table):
        hits = counts[label.id, label.id]
        by_class[label.name] = metrics.iou(hits, counts[label.id].sum() - hits, counts[:, label.id].sum() - hits)
    return {
        'eval/boundary_iou': metrics.mean(by_class.values()),
        **{f'eval/boundary_iou/{name}': value for name, value in by_class.items()},
    }
