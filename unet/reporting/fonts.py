"""Fonts for class names in pictures, whatever script they are written in.

    font = fonts.find([label.name for label in table])
    fonts.names(table, font)        # ['road', ...]; 'id 7' for a name whose letters no font of this host has

DejaVu Sans, which comes with Matplotlib, has Latin, Greek, Cyrillic and more; for the rest the fonts of the host are
looked through. A letter that a font lacks would be drawn as a box.
"""

import contextlib
import functools
from collections.abc import Iterable

from absl import logging
from matplotlib import font_manager, ft2font

from data_prep import labels


def find(texts: Iterable[str]) -> str:
    """Returns the file of the font that has the most of the texts' letters; DejaVu Sans unless another has more."""
    needed = _letters(''.join(texts))
    plain = font_manager.findfont('DejaVu Sans')
    if needed <= _letters_of(plain):
        return plain
    return max([plain, *sorted(font_manager.findSystemFonts())], key=lambda file: len(needed & _letters_of(file)))


def can_draw(text: str, font: str) -> bool:
    """Says whether a font file has all letters of a text."""
    return _letters(text) <= _letters_of(font)


def names(table: labels.Table, font: str) -> list[str]:
    """Returns the names of classes as a font can draw them; says once which it cannot."""
    foreign = [label.name for label in table if not can_draw(label.name, font)]
    if foreign:
        logging.log_first_n(
            logging.WARNING,
            'No font of this host has the letters of %s: pictures show the ids of such classes. Install one, e.g. '
            'apt-get install fonts-noto-cjk.',
            1,
            ', '.join(foreign[:4]),
        )
    return [f'id {label.id}' if label.name in foreign else label.name for label in table]


def _letters(text: str) -> set[int]:
    return {ord(letter) for letter in text if letter not in ' \n'}


@functools.cache
def _letters_of(file: str) -> frozenset[int]:
    with contextlib.suppress(OSError, RuntimeError):  # not a font, or a damaged one
        font = ft2font.FT2Font(file)
        if font.scalable:  # those of coloured bitmaps cannot be drawn at any size
            return frozenset(font.get_charmap())
    return frozenset()
