import json

import numpy as np
import pytest

from data_prep import labels
from launch import entry


def test_table_is_the_official_one():
    from cityscapesscripts.helpers import labels as official

    theirs = {label.id: label for label in official.labels if label.id >= 0}
    assert len(theirs) == len(labels.CITYSCAPES)
    for label in labels.CITYSCAPES:
        same = theirs[label.id]
        assert (label.name, label.train_id, label.color) == (same.name, same.trainId, same.color)
        assert (label.category, label.has_instances, label.ignored) == (
            same.category,
            same.hasInstances,
            same.ignoreInEval,
        )


def test_train_ids_and_back():
    back = labels.id_of_train_id(labels.CITYSCAPES)
    assert back.shape == (19,)
    np.testing.assert_array_equal(labels.train_id_of_id(labels.CITYSCAPES)[back], np.arange(19))
    assert (labels.train_id_of_id(labels.CITYSCAPES) == labels.IGNORED).sum() == 256 - 19


def test_a_table_survives_its_file(tmp_path):
    (tmp_path / 'labels.json').write_text(labels.to_json(labels.CITYSCAPES))
    assert labels.read(tmp_path / 'labels.json') == labels.CITYSCAPES


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_numbers_and_texts_may_be_written_as_other_programs_do(tmp_path, encoding):
    rows = json.loads(labels.to_json(labels.CITYSCAPES))['labels']
    for row in rows:
        row |= {'id': float(row['id']), 'train_id': float(row['train_id']), 'color': list(map(float, row['color']))}
    rows[7] |= {'name': '道路', 'category': None, 'has_instances': None}
    (tmp_path / 'labels.json').write_text(json.dumps({'labels': rows}, ensure_ascii=False), encoding=encoding)
    table = labels.read(tmp_path / 'labels.json')
    assert table[8:] == labels.CITYSCAPES[8:] and isinstance(labels.num_ids(table), int)
    assert table[7] == labels.Label(7, '道路', 0, (128, 64, 128))


@pytest.mark.parametrize('content', [b'', b'[]', b'{}', b'7', b'{"labels": 7}', b'{"labels": null}', b'\xff\xfe{'])
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / 'labels.json').write_bytes(content)
    with pytest.raises(entry.UserError, match='not a label table') as failure:
        labels.read(tmp_path / 'labels.json')
    assert failure.value.status == entry.BAD_DATA


@pytest.mark.parametrize(
    'change, text',
    [
        (lambda rows: rows[0].update(id=300), 'entry 1'),
        (lambda rows: rows[1].update(id=0), 'more than once'),
        (lambda rows: rows[7].update(train_id=5), '0..K-1'),
        (lambda rows: rows[0].pop('name'), 'needs id, name'),
        (lambda rows: rows[0].update(color=[1, 2]), 'color'),
        (lambda rows: rows[0].update(color=[1, 2, 0.5]), 'color must be a whole number 0..255, not 0.5'),
        (lambda rows: [row.update(color=[value / 255 > 0.5 for value in row['color']]) for row in rows], 'not False'),
        (lambda rows: [row.update(color=[1.0 * (value > 99) for value in row['color']]) for row in rows], 'multiply'),
        (lambda rows: rows[0].update(name=None), 'name must be a text'),
        (lambda rows: rows[0].update(name=' '), 'name must be a text'),
        (lambda rows: rows[0].update(name='a\tb'), 'name must be a text'),
        (lambda rows: rows[0].update(id=7.5), '7.5'),
        (lambda rows: rows[0].update(id='7'), "'7'"),
        (lambda rows: rows[0].update(id=float('nan')), 'nan'),
        (lambda rows: rows[0].update(id=255), 'leave 255 out'),
        (lambda rows: rows[0].update(train_id=None), 'train_id must be a whole number'),
        (lambda rows: rows[0].update(train_id=-1), 'not -1'),
        (lambda rows: rows.insert(0, None), 'entry 1'),
        (lambda rows: rows.insert(0, 'road'), 'entry 1'),
        (lambda rows: rows.clear(), '0..K-1'),
    ],
)
def test_an_unusable_table_is_refused(tmp_path, change, text):
    rows = json.loads(labels.to_json(labels.CITYSCAPES))['labels']
    change(rows)
    (tmp_path / 'classes.json').write_text(json.dumps({'labels': rows}))
    with pytest.raises(entry.UserError, match=text) as failure:
        labels.read(tmp_path / 'classes.json')
    assert failure.value.status == entry.BAD_DATA


@pytest.mark.parametrize('name', labels.shipped())
def test_shipped_tables(name):
    """Each is whole, names its source, and says without doubt what files hold; a copy of it is a table of one's own."""
    table = labels.find(name)
    assert len(labels.ids_in_files(table)) >= len(labels.classes(table))
    if table is not labels.CITYSCAPES:
        content = (labels.SHIPPED / f'{name}.json').read_text()
        assert 'http' in json.loads(content)['source']
    assert labels.find(name) == table


def test_a_table_with_masks_survives_its_file(tmp_path):
    for name in ('camvid11', 'mapillary_to_cityscapes', 'idd'):
        (tmp_path / 'labels.json').write_text(labels.to_json(labels.find(name)))
        assert labels.find(str(tmp_path / 'labels.json')) == labels.find(name)


def test_camvid_has_32_colors_and_the_11_classes_are_made_of_them():
    camvid, eleven = labels.find('camvid'), labels.find('camvid11')
    colors = {label.color for label in camvid}
    assert len(camvid) == len(colors) == 32 and len(labels.classes(camvid)) == 31
    of_masks = {color: label.name for label in eleven for color in label.in_files('color')}
    assert of_masks.keys() - colors == {(60, 40, 222), (255, 69, 0)} and colors <= of_masks.keys()  # SegNet's own two
    assert len(labels.classes(eleven)) == 11 and of_masks[0, 0, 0] == 'Unlabelled'
    assert {of_masks[label.color] for label in camvid if 'LaneMkgs' in label.name} == {'Road'}


def test_voc_has_the_colors_of_the_development_kit():
    """VOClabelcolormap.m spreads the bits of an id over those of red, green and blue, the highest first."""
    for label in labels.find('voc'):
        value = 255 if label.ignored else label.id
        spread = [sum((value >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)]
        assert label.color == tuple(spread) and label.in_files('id') == [value]


def test_tables_for_cityscapes_classes_hold_them():
    classes = [(label.name, label.color) for label in labels.classes(labels.CITYSCAPES)]
    for name in ('kitti', 'bdd100k', 'mapillary_to_cityscapes'):
        assert [(label.name, label.color) for label in labels.classes(labels.find(name))] == classes
    vistas = labels.ids_in_files(labels.find('mapillary_to_cityscapes'))
    assert sorted(vistas) == list(range(66))
    assert labels.find('bdd100k')[-1].in_files('id') == labels.find('idd')[-1].in_files('id') == [255]


def test_polygons_of_idd_are_drawn_by_its_names():
    ids = labels.names_in_files(labels.find('idd'))
    assert len(ids) == 40 and ids['non-drivable fallback'] == ids['rail track'] == 3 and ids['ego vehicle'] == 26


def test_a_name_that_is_no_table_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(entry.UserError, match='--labels=camvit: no such label table.*camvid, camvid11, ') as failure:
        labels.find('camvit')
    assert failure.value.status == entry.MISSING_INPUT


@pytest.mark.parametrize(
    'masks, text',
    [
        ([{'id': 8}], 'id in masks 8 stands more than once'),
        ([{'name': 'car'}], "name in masks 'car' stands more than once"),
        ([{'id': 300}], 'entry 8 .*id of masks must be a whole number 0..255, not 300'),
        ([{'color': [1, 2]}], 'entry 8 .*color must be three values'),
        ([{}], 'entry 8 .*each of masks must be an object with some of id, name and color'),
        ([{'ids': 8}], 'entry 8 .*each of masks must be an object'),
        (7, 'entry 8'),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(tmp_path, masks, text):
    rows = json.loads(labels.to_json(labels.CITYSCAPES))['labels']
    rows[7]['masks'] = masks
    (tmp_path / 'classes.json').write_text(json.dumps({'labels': rows}))
    with pytest.raises(entry.UserError, match=text) as failure:
        labels.read(tmp_path / 'classes.json')
    assert failure.value.status == entry.BAD_DATA
