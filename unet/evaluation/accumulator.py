"""What is counted over the images of a split, and all scores that follow from it.

    counts = accumulator.merge([accumulator.count_image('ulm_000000_000019', truth, prediction, table)], table)
    confusion = predict_split.as_matrix(counts.pairs, split, table)
    scores = accumulator.scores(counts, confusion, table)       # {'eval/miou': 0.71, ...}

Scores are not means over images: whoever scores a split, on however many processes, merges the counts of all images
first. `to_json` and `from_json` carry them between processes.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from data_prep import labels, source_files
from unet.evaluation import boundary_iou, instance_iou, metrics


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is counted over some images; n is `labels.num_ids` of their table.

    Attributes:
      pairs: int64 [n * n + 1], see `metrics.count_pairs`.
      edges: int64 [n + 1, n + 1], see `boundary_iou.count_pairs`.
      instances: int64 [k, 4], a row per instance, see `instance_iou.measure`; None if instances are not scored.
      images: per image id its own 'miou' and 'accuracy', NaN for an image without scored pixels.
    """

    pairs: np.ndarray
    edges: np.ndarray
    instances: np.ndarray | None
    images: dict[str, dict[str, float]]


def count_image(
    image_id: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    table: labels.Table,
    instance_files: Mapping[str, source_files.File] | None = None,
) -> Counts:
    """Counts what all scores need of one image.

    Args:
      image_id: its name.
      truth, prediction: uint8 [h, w], label ids.
      table: the label table.
      instance_files: each image's, of `instance_iou.find`; None: instances are not scored.

    Raises:
      UserError: BAD_DATA if the instance file cannot be used.
    """
    num_ids = labels.num_ids(table)
    pairs = metrics.count_pairs(truth, prediction, num_ids)
    own = metrics.scores(pairs[:-1].reshape(num_ids, num_ids), table)
    instances = None
    if instance_files is not None:
        instances = instance_iou.measure(instance_iou.read(instance_files[image_id], truth), prediction, table)
    return Counts(
        pairs=pairs,
        edges=boundary_iou.count_pairs(truth, prediction, table),
        instances=instances,
        images={image_id: {'miou': own['eval/miou'], 'accuracy': own['eval/accuracy']}},
    )


def merge(counts: Iterable[Counts], table: labels.Table) -> Counts:
    """Adds up the counts of images, or of groups of images, that have none in common."""
    num_ids = labels.num_ids(table)
    pairs, edges = np.zeros(num_ids * num_ids + 1, np.int64), np.zeros([num_ids + 1, num_ids + 1], np.int64)
    instances, images = [], {}
    for each in counts:
        pairs += each.pairs
        edges += each.edges
        if each.instances is not None:
            instances.append(each.instances)
        images |= each.images
    return Counts(pairs, edges, np.concatenate(instances) if instances else None, images)


def to_json(counts: Counts) -> dict[str, object]:
    """Returns the counts in the types of JSON."""
    instances = None if counts.instances is None else counts.instances.tolist()
    return {
        'pairs': counts.pairs.tolist(),
        'edges': counts.edges.tolist(),
        'instances': instances,
        'images': counts.images,
    }


def from_json(fields: Mapping[str, Any]) -> Counts:
    """Returns the counts of which `to_json` made `fields`."""
    instances = fields['instances']
    return Counts(
        pairs=np.array(fields['pairs'], np.int64),
        edges=np.array(fields['edges'], np.int64),
        instances=None if instances is None else np.array(instances, np.int64).reshape(-1, 4),
        images=fields['images'],
    )


def scores(counts: Counts, confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Returns the scores of `metrics`, of `boundary_iou` and, if instances were counted, of `instance_iou`, as
    fractions.

    Args:
      counts: of all images of a split.
      confusion: int64 [n, n], their `pairs` as `predict_split.as_matrix` checks and returns them.
      table: the label table.
    """
    found = metrics.scores(confusion, table) | boundary_iou.scores(counts.edges, table)
    if counts.instances is not None:
        found |= instance_iou.scores(counts.instances, confusion, table)
    return found
