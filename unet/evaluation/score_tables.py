"""Scores as text tables, in per cent.

    print(score_tables.of_classes(scores, confusion, table))

Scores are those of `accumulator.scores`; what was not scored has no column.
"""

import numpy as np

from data_prep import labels
from unet.evaluation import metrics

_CLASS_COLUMNS = {
    'IoU %': 'eval/iou/',
    'iIoU %': 'eval/iiou/',
    'boundary %': 'eval/boundary_iou/',
    'accuracy %': 'eval/class_accuracy/',
}
_CATEGORY_COLUMNS = {'IoU %': 'eval/category_iou/', 'iIoU %': 'eval/category_iiou/'}
_MEANS = {
    'categories': 'eval/miou_categories',
    'iIoU': 'eval/iiou',
    'iIoU of categories': 'eval/iiou_categories',
    'boundary IoU': 'eval/boundary_iou',
    'mean class accuracy': 'eval/class_accuracy',
    'pixel accuracy': 'eval/accuracy',
}


def of_classes(scores: dict[str, float], confusion: np.ndarray, table: labels.Table) -> str:
    """Returns the scores of each scored class, and its share of the ground truth's scored pixels.

    Args:
      scores: fractions by name, see `accumulator.scores`.
      confusion: int64 [n, n], rows true ids, columns predicted ids.
      table: the label table.
    """
    classes = labels.classes(table)
    pixels = np.array([confusion[label.id].sum() for label in classes])
    shares = pixels / max(pixels.sum(), 1)
    return _table('class', [label.name for label in classes], scores, _CLASS_COLUMNS, shares)


def of_categories(scores: dict[str, float], table: labels.Table) -> str:
    """Returns the scores of each category; '' if the label table has no categories."""
    names = list(metrics.categories(table))
    return _table('category', names, scores, _CATEGORY_COLUMNS) if names else ''


def of_all_ids(confusion: np.ndarray, table: labels.Table) -> str:
    """Returns the plain IoU of each label id that occurs or is predicted, void ones too, and its share of all
    pixels."""
    found = {name: value for name, value in metrics.iou_of_all_ids(confusion, table).items() if not np.isnan(value)}
    pixels = {label.name: confusion[label.id].sum() for label in table}
    shares = np.array([pixels[name] for name in found]) / max(confusion.sum(), 1)
    return _table('label id', list(found), found, {'IoU %': ''}, shares)


def of_means(scores: dict[str, float]) -> str:
    """Returns the means other than mIoU, on one line."""
    return '  '.join(f'{name} {_per_cent(scores[key])} %' for name, key in _MEANS.items() if key in scores)


def _table(
    what: str, names: list[str], scores: dict[str, float], columns: dict[str, str], shares: np.ndarray | None = None
) -> str:
    """A line per name; columns that hold nothing are left out."""
    columns = {title: prefix for title, prefix in columns.items() if any(prefix + name in scores for name in names)}
    wide = max(16, *(len(name) + 2 for name in names))
    end = [f'{"pixels %":>10}'] if shares is not None else []
    lines = [f'{what:<{wide}}' + ''.join([f'{title:>12}' for title in columns] + end)]
    for place, name in enumerate(names):
        cells = [f'{_per_cent(scores.get(prefix + name, np.nan)):>12}' for prefix in columns.values()]
        end = [f'{100 * shares[place]:>10.2f}'] if shares is not None else []
        lines.append(f'{name:<{wide}}' + ''.join(cells + end))
    return '\n'.join(lines)


def _per_cent(fraction: float) -> str:
    return '-' if np.isnan(fraction) else f'{100 * fraction:.2f}'
