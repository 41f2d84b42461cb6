"""Scores from one confusion matrix in label ids, which is exact for any batch, order and number of replicas.

Source of the official rules: cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py.
"""

import numpy as np
import tensorflow as tf

from data_prep import labels


def confusion_matrix(truth: tf.Tensor, prediction: tf.Tensor, num_ids: int) -> tf.Tensor:
    """Counts pixels by true and predicted label id, in graph.

    Args:
      truth: uint8, any shape. Values of `num_ids` and above (255 in void images) are counted in an extra bin.
      prediction: uint8, the same shape, below `num_ids`.
      num_ids: n, one more than the largest label id.

    Returns:
      int64 [n * n + 1]: the matrix in row-major order, rows true ids, and the number of pixels of the extra bin.
    """
    truth, prediction = tf.cast(tf.reshape(truth, [-1]), tf.int32), tf.cast(tf.reshape(prediction, [-1]), tf.int32)
    bins = num_ids * num_ids
    with tf.device('/cpu:0'):  # bincount on a GPU is refused in deterministic mode
        pair = tf.where(truth < num_ids, truth * num_ids + prediction, bins)
        counts = tf.math.bincount(pair, minlength=bins + 1, maxlength=bins + 1, dtype=tf.int32)
        return tf.cast(counts, tf.int64)


def class_iou(confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """Intersection over union of each scored class, by the official rules; NaN for a class that neither occurs nor is
    predicted.

    True pixels of ignored ids do not make false positives; a pixel of a scored class that is predicted as an ignored id
    is a miss.

    Args:
      confusion: int64 [n, n], rows true ids, columns predicted ids.
      table: the label table.
    """
    scored = [label.id for label in labels.classes(table)]
    scores = {}
    for label in labels.classes(table):
        hits = confusion[label.id, label.id]
        missed = confusion[label.id].sum() - hits
        false = confusion[scored, label.id].sum() - hits
        union = hits + missed + false
        scores[label.name] = float(hits / union) if union else float('nan')
    return scores


def scores(confusion: np.ndarray, table: labels.Table) -> dict[str, float]:
    """All scores of an evaluation, as fractions.

    Returns:
      'eval/miou': the official mean over the scored classes, left out are classes that neither occur nor are predicted;
      'eval/miou_present': the mean over the scored classes that occur in the ground truth;
      'eval/miou_all_ids': the mean over all label ids that occur or are predicted, void ones too;
      'eval/accuracy': share of the scored pixels that are right;
      'eval/iou/<class>': of each class, NaN where it does not exist.
    """
    by_class = class_iou(confusion, table)
    present = [by_class[label.name] for label in labels.classes(table) if confusion[label.id].any()]
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    scored = [label.id for label in labels.classes(table)]
    return {
        'eval/miou': mean(by_class.values()),
        'eval/miou_present': mean(present),
        'eval/miou_all_ids': mean((hits[union > 0] / union[union > 0]).tolist()),
        'eval/accuracy': mean([hits[scored].sum() / max(confusion[scored].sum(), 1)]),
        **{f'eval/iou/{name}': value for name, value in by_class.items()},
    }


def mean(values) -> float:
    """The mean of the values that exist; NaN if none does."""
    values = [value for value in values if not np.isnan(value)]
    return float(sum(values) / len(values)) if values else float('nan')


def table_of_classes(confusion: np.ndarray, table: labels.Table) -> str:
    """A text table: per class its IoU in per cent and its share of the ground truth's scored pixels."""
    by_class = class_iou(confusion, table)
    scored = sum(confusion[label.id].sum() for label in labels.classes(table))
    lines = [f'{"class":<16}{"IoU %":>8}{"pixels %":>10}']
    for label in labels.classes(table):
        value, pixels = by_class[label.name], confusion[label.id].sum()
        shown = '-' if np.isnan(value) else f'{100 * value:.2f}'
        lines.append(f'{label.name:<16}{shown:>8}{100 * pixels / max(scored, 1):>10.2f}')
    return '\n'.join(lines)
