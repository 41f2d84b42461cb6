"""Scores from one confusion matrix in label ids, which is exact for any batch, order and number of replicas.

    confusion = metrics.count_pairs(truth, prediction, num_ids)[:-1].reshape(num_ids, num_ids)
    scores = metrics.scores(confusion, table)     # {'eval/miou': 0.71, ...}

Source of the official rules: cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py.
"""

from collections.abc import Iterable

import numpy as np

from data_prep import labels

_BLOCK = 1 << 16  # pixels counted at a time, so that what is made of them stays in the processor's cache


def count_pairs(truth: np.ndarray, prediction: np.ndarray, num_ids: int) -> np.ndarray:
    """Counts pixels by true and predicted label id.

    Args:
      truth: uint8 [h, w]. Values of `num_ids` and above (255 in void images) are counted in an extra bin.
      prediction: uint8 [h, w], below `num_ids`.
      num_ids: n, one more than the largest label id.

    Returns:
      int64 [n * n + 1]: the matrix in row-major order, rows true ids, and the number of pixels of the extra bin.

    Raises:
      ValueError: if shapes or types are wrong or a predicted id is not below `num_ids`.
    """
    if truth.shape != prediction.shape or not truth.dtype == prediction.dtype == np.uint8:
        raise ValueError(
            f'truth is {truth.dtype} {truth.shape}, prediction {prediction.dtype} {prediction.shape}: must be uint8'
        )
    if prediction.max(initial=0) >= num_ids:
        raise ValueError(f'predicted id {prediction.max()}, but ids end at {num_ids - 1}')
    truth, prediction = truth.ravel(), prediction.ravel()
    bins = num_ids * num_ids
    counts = np.zeros(256 * num_ids + 1, np.int64)  # for every value that a true id may have, and an extra bin at least
    for first in range(0, truth.size, _BLOCK):
        pairs = truth[first : first + _BLOCK] * np.uint16(num_ids)  # below 256 * num_ids, so that 16 bits hold them
        pairs += prediction[first : first + _BLOCK]
        counts += np.bincount(pairs, minlength=len(counts))
    counts[bins] = counts[bins:].sum()
    return counts[: bins + 1]


def iou(hits: float, missed: float, false: float) -> float:
    """Returns the intersection over union; NaN where there is nothing to find and nothing was found."""
    union = hits + missed + false
    return float(hits / union) if union else float('nan')


def class_iou(confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Returns the intersection over union of each scored class, by the official rules; NaN for a class that neither
    occurs nor is predicted.

    True pixels of ignored ids do not make false positives; a pixel of a scored class that is predicted as an ignored id
    is a miss.

    Args:
      confusion: int64 [n, n], rows true ids, columns predicted ids.
      table: the label table.
    """
    scores = {}
    for label in labels.classes(table):
        hits = confusion[label.id, label.id]
        missed = confusion[label.id].sum() - hits
        scores[label.name] = iou(hits, missed, false_positives(confusion, table, [label.id]))
    return scores


def false_positives(confusion: np.ndarray, table: labels.Table, predicted: list[int]) -> int:
    """Returns the pixels predicted as one of the ids `predicted` whose true id is scored and is none of these."""
    others = [label.id for label in labels.classes(table) if label.id not in predicted]
    return confusion[np.ix_(others, predicted)].sum()


def categories(table: labels.Table) -> dict[str, list[int]]:
    """Returns the scored label ids of each category, categories in the order of the table; without those that score
    none."""
    names = dict.fromkeys(label.category for label in table if label.category and not label.ignored)
    return {name: [label.id for label in table if label.category == name and not label.ignored] for name in names}


def category_iou(confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Returns the intersection over union of each category, whose scored classes are taken for one class; see
    `class_iou`."""
    scores = {}
    for name, ids in categories(table).items():
        hits = confusion[np.ix_(ids, ids)].sum()
        missed = confusion[ids].sum() - hits
        scores[name] = iou(hits, missed, false_positives(confusion, table, ids))
    return scores


def scores(confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Returns all scores that a confusion matrix holds, as fractions.

    Returns:
      'eval/miou': the official mean over the scored classes, left out are classes that neither occur nor are predicted;
      'eval/miou_present': the mean over the scored classes that occur in the ground truth;
      'eval/miou_all_ids': the mean over all label ids that occur or are predicted, void ones too;
      'eval/miou_categories': the official mean over the categories;
      'eval/accuracy': share of the scored pixels that are right;
      'eval/accuracy_all_ids': share of all pixels that are right, void ones too;
      'eval/class_accuracy': the mean over the scored classes that occur of the share of their pixels that is right;
      'eval/iou/<class>', 'eval/class_accuracy/<class>', 'eval/category_iou/<category>': of each, NaN where it does not
        exist.
    """
    by_class, by_category = class_iou(confusion, table), category_iou(confusion, table)
    present = [by_class[label.name] for label in labels.classes(table) if confusion[label.id].any()]
    hits = np.diag(confusion)
    scored = [label.id for label in labels.classes(table)]
    recall = {label.name: _share(hits[label.id], confusion[label.id].sum()) for label in labels.classes(table)}
    return {
        'eval/miou': mean(by_class.values()),
        'eval/miou_present': mean(present),
        'eval/miou_all_ids': mean(iou_of_all_ids(confusion, table).values()),
        'eval/miou_categories': mean(by_category.values()),
        'eval/accuracy': _share(hits[scored].sum(), confusion[scored].sum()),
        'eval/accuracy_all_ids': _share(hits.sum(), confusion.sum()),
        'eval/class_accuracy': mean(recall.values()),
        **{f'eval/iou/{name}': value for name, value in by_class.items()},
        **{f'eval/class_accuracy/{name}': value for name, value in recall.items()},
        **{f'eval/category_iou/{name}': value for name, value in by_category.items()},
    }


def iou_of_all_ids(confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Returns the intersection over union of every label id by its name, all ids counting alike, void ones too: the
    plain mean over a model's own 34 outputs that the blog post scored by. NaN for an id that neither occurs nor is
    predicted."""
    names = {label.id: label.name for label in table}
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return {
        names.get(id_, str(id_)): iou(hits[id_], true[id_] - hits[id_], predicted[id_] - hits[id_])
        for id_ in range(len(confusion))
    }


def mean(values: Iterable[float]) -> float:
    """Returns the mean of the values that exist; NaN if none does."""
    values = [value for value in values if not np.isnan(value)]
    return float(sum(values) / len(values)) if values else float('nan')


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else float('nan')
