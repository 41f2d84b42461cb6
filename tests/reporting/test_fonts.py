"""Class names in any script: drawn where a font has their letters, and never as boxes."""

import dataclasses

import numpy as np
import pytest
from fontTools import ttLib
from matplotlib import font_manager

from data_prep import labels
from unet.reporting import confusion_plot, draw, fonts

IDS = np.arange(34, dtype=np.uint8).repeat(20)[None].repeat(24, 0)
PLAIN = font_manager.findfont('DejaVu Sans')


def table_with(name: str) -> labels.Table:
    return tuple(dataclasses.replace(label, name=name if label.id == 7 else label.name) for label in labels.CITYSCAPES)


def pictures(name: str) -> list[np.ndarray]:
    table = table_with(name)
    confusion = np.random.default_rng(0).integers(0, 9, (34, 34))
    return [
        draw.with_legend(draw.colorize(IDS, table), IDS, table),
        confusion_plot.draw(confusion, labels.classes(table), f'/runs/{name}/best'),
    ]


@pytest.fixture
def chinese(tmp_path):
    """A font file that has two letters which DejaVu lacks, and Latin."""
    font = ttLib.TTFont(PLAIN)
    font['cmap'].tables = [part for part in font['cmap'].tables if part.format == 4]
    for part in font['cmap'].tables:
        part.cmap = {code: name for code, name in part.cmap.items() if code < 128} | {0x9053: 'A', 0x8DEF: 'B'}
    font.save(tmp_path / 'chinese.ttf')
    (tmp_path / 'broken.ttf').write_bytes(b'no font')
    return [str(tmp_path / 'broken.ttf'), str(tmp_path / 'chinese.ttf')]


@pytest.mark.parametrize('name', ['дорога', 'οδός', '$x_{$ 5 $'])
def test_letters_of_the_plain_font_are_drawn(name):
    assert fonts.find([name, 'road']) == PLAIN and fonts.names(table_with(name), PLAIN)[7] == name
    for ours, plain in zip(pictures(name), pictures('road'), strict=True):
        assert ours.shape[2] == 3 and (ours.shape != plain.shape or (ours != plain).any())


def test_a_font_of_the_host_takes_over_and_without_one_the_id_is_shown(chinese, monkeypatch):
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: chinese)
    assert fonts.find(['道路', 'road']) == chinese[1]
    assert fonts.names(table_with('道路'), chinese[1])[7] == '道路'
    drawn = pictures('道路')
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: chinese[:1])
    assert fonts.find(['道路', 'road']) == PLAIN
    names = fonts.names(table_with('道路'), PLAIN)
    assert names[7] == 'id 7' and names[8] == 'sidewalk'
    for ours, ids in zip(drawn, pictures('道路'), strict=True):
        assert ours.shape != ids.shape or (ours != ids).any()
    np.testing.assert_array_equal(pictures('道路')[0], pictures('id 7')[0])
