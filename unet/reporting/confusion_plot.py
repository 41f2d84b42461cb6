"""A picture of a confusion matrix.

    picture = confusion_plot.draw(confusion, labels.classes(table), title='step 1000')     # uint8 [h, w, 3]

Shares are of the true class, so that rare classes are seen as well as others.
"""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from data_prep import labels
from unet.reporting import fonts

_WRITTEN = 0.005  # shares below this are left blank
_DARK = 0.5  # shares above this are written in white


def draw(confusion: np.ndarray, shown: labels.Table, title: str) -> np.ndarray:
    """Draws where the pixels of each class went, in per cent of the class, as uint8 [h, w, 3].

    Args:
      confusion: int64 [n, n] in label ids, rows true ids, columns predicted ids.
      shown: the classes to draw, in this order; predictions of all others share a last column.
      title: of the picture.
    """
    ids = [label.id for label in shown]
    rows = confusion[ids]
    counts = np.concatenate([rows[:, ids], rows.sum(1, keepdims=True) - rows[:, ids].sum(1, keepdims=True)], 1)
    file = fonts.find([title, *(label.name for label in shown)])
    names, font = fonts.names(shown, file), FontProperties(fname=file)
    columns = [*names, 'any other']
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    pixels = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(pixels, 1)

    side = 2.6 + 0.36 * len(ids)  # inches
    figure = Figure(figsize=(side + 0.9, side), layout='constrained', dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(np.where(pixels > 0, shares, np.nan), cmap='Blues', vmin=0, vmax=1)
    axes.set_facecolor('0.93')  # rows of classes that do not occur
    axes.set_xticks(range(len(columns)), columns, rotation=90, font=font, parse_math=False)
    axes.set_yticks(range(len(ids)), names, font=font, parse_math=False)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    title = title if fonts.can_draw(title, file) else title.encode('ascii', 'backslashreplace').decode()
    axes.set_title(title.replace('$', r'\$'), wrap=True, font=font, fontsize='large')  # which is no formula
    for row, column in np.argwhere(shares >= _WRITTEN):
        share = shares[row, column]
        color = 'white' if share > _DARK else 'black'
        axes.text(column, row, f'{100 * share:.0f}', ha='center', va='center', fontsize=7, color=color)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label('share of the true class')
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
