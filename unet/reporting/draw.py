"""Pictures of label ids: as colours, over images, side by side, with a legend.

    picture = draw.side_by_side(image, draw.overlay(image, prediction, table))
    draw.save(draw.with_legend(picture, prediction, table), 'pictures/ulm_000000_000019.png')

Pictures are uint8 [h, w, 3], and the colours are the label table's.
"""

import io
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep import labels, records
from launch import files
from unet.data import samples
from unet.reporting import fonts

_OPACITY = 0.5  # of the colours in an overlay
_GAP = 4  # pixels between pictures
_ROW_WIDTH = 640  # pixels of a picture in a row of pictures, at the most


def colorize(label_ids: np.ndarray, table: labels.Table) -> np.ndarray:
    """Colours label ids, uint8 [h, w], as the table says, and returns uint8 [h, w, 3]."""
    return labels.colors(table)[label_ids]


def overlay(image: np.ndarray, label_ids: np.ndarray, table: labels.Table) -> np.ndarray:
    """Lays the classes' colours over an image, uint8 [h, w, 3], which shows through by half."""
    colors = colorize(label_ids, table).astype(np.float32)
    return np.round((1 - _OPACITY) * image + _OPACITY * colors).astype(np.uint8)


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Puts pictures of one height, uint8 [h, w_i, 3], beside each other with a white gap between them."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    return np.concatenate(parts, axis=1)


def stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """Puts pictures, uint8 [h_i, w_i, 3], below each other, with white at the right of narrower ones."""
    width = max(picture.shape[1] for picture in pictures)
    rows = []
    for picture in pictures:
        rows.append(np.pad(picture, ((0, _GAP), (0, width - picture.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(rows)[:-_GAP]


def with_legend(picture: np.ndarray, label_ids: np.ndarray, table: labels.Table) -> np.ndarray:
    """Adds a strip below a picture that names the colours of the classes that occur in `label_ids`."""
    present = set(np.unique(label_ids).tolist())
    entries = [label for label in table if label.id in present]
    width = picture.shape[1]
    line = max(18, width // 100)  # pixels: readable when a large picture is seen as a whole
    file = fonts.find(label.name for label in entries)
    names, font = fonts.names(tuple(entries), file), ImageFont.truetype(file, line * 0.55)
    places, x, y = [], _GAP, _GAP
    for name in names:
        length = line + int(font.getlength(name)) + 3 * _GAP
        if x > _GAP and x + length > width:
            x, y = _GAP, y + line
        places.append((x, y))
        x += length
    legend = Image.new('RGB', (width, y + line), 'white')
    drawing = ImageDraw.Draw(legend)
    square = line * 2 // 3
    for label, name, (x, y) in zip(entries, names, places, strict=True):
        drawing.rectangle((x, y, x + square, y + square), fill=label.color, outline='black')
        drawing.text((x + line, y + square / 2), name, fill='black', font=font, anchor='lm')
    return np.concatenate([picture, np.asarray(legend)])


def rows_of_examples(
    predict: Callable[[np.ndarray], np.ndarray], split: records.Split, chosen: Sequence[int], table: labels.Table
) -> np.ndarray:
    """Draws some examples of a split as rows of image, truth and prediction, with a legend.

    Args:
      predict: a function of images, uint8 [1, h, w, 3] -> label ids uint8 [1, h, w].
      split: with labels.
      chosen: numbers of examples in the split.
      table: the label table.

    Returns:
      uint8 [h, w, 3], in which large images are shown at every second pixel, every third, ...
    """
    rows, seen = [], []
    for number in chosen:
        image, truth = samples.read(split, int(number))
        prediction = np.asarray(predict(image[None]))[0]
        every = -(-image.shape[1] // _ROW_WIDTH)
        shown = image, colorize(truth, table), colorize(prediction, table)
        rows.append(side_by_side(*(picture[::every, ::every] for picture in shown)))
        seen += [np.unique(truth), np.unique(prediction)]
    return with_legend(stacked(rows), np.concatenate(seen), table)


def save(picture: np.ndarray, path: str | pathlib.Path) -> None:
    """Writes a picture, uint8 [h, w, 3] or [h, w], as a PNG file, whose folder is made if need be."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.fromarray(picture).save(content, 'PNG')
    files.write_atomically(path, content.getvalue())
