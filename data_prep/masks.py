"""Reads mask files: what a dataset holds for its labels becomes label ids, by its label table.

    content = pathlib.Path('gt/train/1.png').read_bytes()
    label = masks.to_label_ids(content, 'gt/train/1.png', masks.COLORS, labels.find('camvid'))

A table says what files hold for each class, see `labels.Mask`; without that, it is the class's own id, name and colour.
"""

import functools

import numpy as np

from data_prep import images, labels
from launch import entry

IDS, COLORS = images.IDS, images.COLORS

_UNKNOWN = 255  # which no label id is
_SHOWN = 8  # colours in a message
_MANY = 50  # more unknown colours than that come from resizing or compression


def check_table(table: labels.Table, masks_are: str | None) -> None:
    """Raises UserError BAD_DATA if a table cannot be used with such masks: COLORS, and two classes share a colour."""
    if masks_are == COLORS:
        _id_of_color(table)


def to_label_ids(encoded: bytes, name: str, masks_are: str | None, table: labels.Table) -> bytes | np.ndarray:
    """Reads a mask file.

    Args:
      encoded: a PNG file.
      name: of the file.
      masks_are: IDS: grey values or palette indices are ids; COLORS: colours stand for classes; None: grey values are
        ids, and nothing else is read.
      table: the label table.

    Returns:
      The file itself, if the records may hold it as it is; else its label ids, uint8 [h, w].

    Raises:
      ValueError: if the file is damaged, of another kind, or holds ids or colours that the table does not know.
    """
    images.check_header(encoded[: images.HEADER_BYTES], name, is_label=True, masks_are=masks_are)
    if masks_are == COLORS:
        images.check_png(encoded)
        rgb, _ = images.as_rgb(images.decode(encoded))
        return _ids_of_pixels(np.asarray(rgb), table)
    ids = labels.ids_in_files(table)
    has_palette = encoded[25] == 3
    if not has_palette and all(value == id_ for value, id_ in ids.items()):
        return encoded
    if has_palette:
        images.check_png(encoded)
        label = np.asarray(images.decode(encoded))
    else:
        label = images.read_label(encoded)
    images.check_label_counts(images.count_pixels(label), set(ids))
    return np.array([ids.get(value, _UNKNOWN) for value in range(256)], np.uint8)[label]


def _ids_of_pixels(pixels: np.ndarray, table: labels.Table) -> np.ndarray:
    """uint8 [h, w] label ids of uint8 [h, w, 3] colours; raises ValueError with the colours that are unknown."""
    packed = pixels[..., 0].astype(np.uint32) << 16 | pixels[..., 1].astype(np.uint32) << 8 | pixels[..., 2]
    ids = _id_of_color(table)[packed]
    unknown = ids == _UNKNOWN
    if unknown.any():
        found, counts = np.unique(packed[unknown], return_counts=True)
        most = np.argsort(-counts, kind='stable')[:_SHOWN]
        shown = [
            f'{labels.color_text((int(color) >> 16, int(color) >> 8 & 255, int(color) & 255))} ({count:,} pixels)'
            for color, count in zip(found[most], counts[most].tolist(), strict=True)
        ]
        cause = (
            'Was it resized with smoothing, or a JPEG once? Export it again.'
            if len(found) > _MANY
            else 'Add them to the label table, or mend the file.'
        )
        raise ValueError(
            f'holds {len(found):,} colour(s) that are not in the label table: {", ".join(shown)}'
            f'{", ..." if len(found) > _SHOWN else ""}. {cause}'
        )
    return ids


@functools.lru_cache(maxsize=2)
def _id_of_color(table: labels.Table) -> np.ndarray:
    """uint8 [1 << 24]: the label id of each colour, red in the highest byte.

    Of ignored ids with one colour it is the first.

    Raises:
      UserError: BAD_DATA if a colour stands for two classes, one of which counts.
    """
    found: dict[labels.Color, labels.Label] = {}
    ids = np.full(1 << 24, _UNKNOWN, np.uint8)
    for label in table:
        for color in label.in_files('color'):
            other = found.setdefault(color, label)
            if other != label and not (other.ignored and label.ignored):
                raise entry.UserError(
                    entry.BAD_DATA,
                    f'--masks_are=colors: the label table gives {other.name} and {label.name} the same colour, '
                    f'{labels.color_text(color)}, so that colours do not tell them apart. Use masks of ids, or a table '
                    'that gives one of them another color, or "masks": [] if no mask holds it.',
                )
            red, green, blue = color
            ids[red << 16 | green << 8 | blue] = other.id
    return ids
