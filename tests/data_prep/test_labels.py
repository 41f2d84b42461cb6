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


@pytest.mark.parametrize(
    'change, text',
    [
        (lambda rows: rows[0].update(id=300), 'entry 1'),
        (lambda rows: rows[1].update(id=0), 'more than once'),
        (lambda rows: rows[7].update(train_id=5), '0..K-1'),
        (lambda rows: rows[0].pop('name'), 'needs id, name'),
        (lambda rows: rows[0].update(color=[1, 2]), 'color'),
    ],
)
def test_an_unusable_table_is_refused(tmp_path, change, text):
    rows = json.loads(labels.to_json(labels.CITYSCAPES))['labels']
    change(rows)
    (tmp_path / 'classes.json').write_text(json.dumps({'labels': rows}))
    with pytest.raises(entry.UserError, match=text) as failure:
        labels.read(tmp_path / 'classes.json')
    assert failure.value.status == entry.BAD_DATA
