"""What is counted over the predictions of a split, and all scores that follow from it.

share = accumulator.count(predict_split.predictions(...), split, table)     # plain lists, to be sent to other processes
total = accumulator.merge([share, ...], split, table)
scores = total.scores(table)                                    # {'eval/miou': 0.71, ...}
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from data_prep import labels, records
from unet.evaluation import boundary_iou, instance_iou, metrics, predict_split


@dataclasses.dataclass(frozen=True)
class Tally:
    """The counts of a whole split.

    Attributes:
      confusion: int64 [n, n], pixels by true and predicted label id.
      edges: int64 [n + 1, n + 1], of `boundaries.count_pairs`.
      instances: int64 [k, 4], of `instances.measure`; None if they were not asked for.
      images: per image id its own 'miou' and 'accuracy', NaN for an image without scored pixels.
    """

    confusion: np.ndarray
    edges: np.ndarray
    instances: np.ndarray | None
    images: dict[str, dict[str, float]]

    def scores(self, table: labels.Table) -> dict[str, float]:
        """Those of `metrics`, `boundaries` and, if counted, `instances`."""
        scores = metrics.scores(self.confusion, table) | boundary_iou.scores(self.edges, table)
        if self.instances is not None:
            scores |= instance_iou.scores(self.instances, self.confusion, table)
        return scores


def of_image(
    image_id: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    table: labels.Table,
    instance_files: Mapping[str, instance_iou.File] | None = None,
) -> dict[str, object]:
    """What is counted of one image.

    Args:
      image_id: its name.
      truth, prediction: uint8 [h, w], label ids.
      table: the label table.
      instance_files: each image's, of `instances.find`; None: instances are not scored.

    Returns:
      'pairs' of `metrics.count_pairs`, 'edges' of `boundaries.count_pairs`, 'instances' of `instances.measure` or None,
      and 'images', the image's own scores by its name.

    Raises:
      UserError: BAD_DATA if the instance file cannot be used.
    """
    num_ids = labels.num_ids(table)
    pairs = metrics.count_pairs(truth, prediction, num_ids)
    own = metrics.scores(pairs[:-1].reshape(num_ids, num_ids), table)
    rows = None
    if instance_files is not None:
        rows = instance_iou.measure(instance_iou.read(instance_files[image_id], truth), prediction, table)
    return {
        'pairs': pairs,
        'edges': boundary_iou.count_pairs(truth, prediction, table),
        'instances': rows,
        'images': {image_id: {'miou': own['eval/miou'], 'accuracy': own['eval/accuracy']}},
    }


def add(counts: Iterable[dict], table: labels.Table) -> dict[str, object]:
    """Adds up what `of_image`, or this function itself, returned: lists and dicts that JSON holds, for `whole`."""
    num_ids = labels.num_ids(table)
    pairs, edges = np.zeros(num_ids * num_ids + 1, np.int64), np.zeros([num_ids + 1, num_ids + 1], np.int64)
    rows, images = None, {}
    for each in counts:
        pairs += np.asarray(each['pairs'])
        edges += np.asarray(each['edges'])
        if each['instances'] is not None:
            rows = (rows or []) + np.asarray(each['instances']).tolist()
        images |= each['images']
    return {'pairs': pairs.tolist(), 'edges': edges.tolist(), 'instances': rows, 'images': images}


def whole(counts: dict[str, object], split: records.Split, table: labels.Table) -> Tally:
    """What `add` returned for all images of a split.

    Raises:
      UserError: BAD_DATA if the split holds label ids that are not in the table.
    """
    rows = counts['instances']
    return Tally(
        confusion=predict_split.as_matrix(np.array(counts['pairs']), split, labels.num_ids(table)),
        edges=np.array(counts['edges']),
        instances=None if rows is None else np.array(rows, np.int64).reshape(-1, 4),
        images=counts['images'],
    )
