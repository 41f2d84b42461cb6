"""What is counted over the predictions of a split, by each process for its share, and all scores that follow from it.

share = tally.count(scoring.predictions(...), split, table)     # plain lists, to be sent to other processes
total = tally.merge([share, ...], split, table)
scores = total.scores(table)                                    # {'eval/miou': 0.71, ...}
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from data_prep import labels, records
from unet import boundaries, instances, metrics, scoring


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
        scores = metrics.scores(self.confusion, table) | boundaries.scores(self.edges, table)
        if self.instances is not None:
            scores |= instances.scores(self.instances, self.confusion, table)
        return scores


def count(
    found: Iterable[tuple[int, np.ndarray, np.ndarray]],
    split: records.Split,
    table: labels.Table,
    *,
    instance_files: Mapping[str, instances.File] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, object]:
    """Counts what one process predicts.

    Args:
      found: of `scoring.predictions`.
      split: what is predicted.
      table: the label table.
      instance_files: each image's, of `instances.find`; None: instances are not scored.
      tick: called after each image.

    Returns:
      Lists and dicts that JSON holds, for `merge`.

    Raises:
      Failure: BAD_DATA if an instance file cannot be used.
    """
    num_ids = labels.num_ids(table)
    pairs = np.zeros(num_ids * num_ids + 1, np.int64)
    edges = np.zeros([num_ids + 1, num_ids + 1], np.int64)
    rows, images = [], {}
    for example, truth, prediction in found:
        image_id = split.image_ids[example]
        counts = metrics.count_pairs(truth, prediction, num_ids)
        pairs += counts
        edges += boundaries.count_pairs(truth, prediction, table)
        if instance_files is not None:
            instance_ids = instances.read(instance_files[image_id], truth)
            rows += instances.measure(instance_ids, prediction, table).tolist()
        own = metrics.scores(counts[:-1].reshape(num_ids, num_ids), table)
        images[image_id] = {'miou': own['eval/miou'], 'accuracy': own['eval/accuracy']}
        tick()
    return {
        'pairs': pairs.tolist(),
        'edges': edges.tolist(),
        'instances': None if instance_files is None else rows,
        'images': images,
    }


def merge(shares: list[dict], split: records.Split, table: labels.Table) -> Tally:
    """The whole of what `count` returned in each process.

    Raises:
      Failure: BAD_DATA if the split holds label ids that are not in the table.
    """
    pairs = np.sum([share['pairs'] for share in shares], 0)
    rows = None
    if shares[0]['instances'] is not None:
        rows = np.array([row for share in shares for row in share['instances']], np.int64).reshape(-1, 4)
    return Tally(
        confusion=scoring.as_matrix(pairs, split, labels.num_ids(table)),
        edges=np.sum([share['edges'] for share in shares], 0),
        instances=rows,
        images={image_id: own for share in shares for image_id, own in share['images'].items()},
    )
