"""Void is one thing from the build to the score, whatever the label table."""

import dataclasses
import json

import numpy as np
import pytest

from data_prep import build, images, labels, polygons, records, shards, verification
from launch import entry
from tests import tiny, trees
from unet.evaluation import predict_split
from unet.models import build as model_build

HEIGHT, WIDTH = trees.SIZE
ALL_SCORED = tuple(labels.Label(id_, f'class {id_}', id_, (id_, 0, 0)) for id_ in range(4))
WITH_GAPS = tuple(dataclasses.replace(label, id=3 * label.id + 1) for label in ALL_SCORED)
TABLES = {'all scored': ALL_SCORED, 'with gaps': WITH_GAPS, 'Cityscapes': labels.CITYSCAPES}


def build_labels(tmp_path, table, arrays, polygon=None) -> None:
    """Builds records of label arrays; of the first image by its polygons, if any."""
    stems = [f'x_{number}' for number in range(len(arrays) - 1)]
    source = trees.write_tree(tmp_path / 'source', {'train': stems, 'val': ['y_0']})
    for stem, array in zip([*stems, 'y_0'], arrays, strict=True):
        split = 'train' if stem in stems else 'val'
        trees.write(source, f'gtFine/{split}/{stem[0]}/{stem}_gtFine_labelIds.png', tiny.png(array))
    if polygon:
        (source / 'gtFine/train/x/x_0_gtFine_labelIds.png').unlink()
        trees.write(source, 'gtFine/train/x/x_0_gtFine_polygons.json', json.dumps(polygon).encode())
    settings = shards.Settings(str(source), str(tmp_path / 'records'), table, images.Encoding(), False)
    build.build(settings, lambda todo: [shards.write_shard(shard, settings) for shard in todo])
    verification.check(tmp_path / 'records', str(source), workers=1)


@pytest.mark.process
@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_void_pixels_are_built_not_learnt_and_not_scored(tmp_path, capfd, mirrored, table):
    ids, void = [label.id for label in labels.classes(table)], labels.void_ids(table)[0]
    arrays = [np.full(trees.SIZE, ids[number % len(ids)], np.uint8) for number in range(5)]
    for array in arrays:
        array[:7] = void
    polygon = {'label': table[-1].name, 'polygon': [[0, 0], [9, 0], [9, 9], [0, 9]]}
    build_labels(tmp_path, table, arrays, {'imgWidth': WIDTH, 'imgHeight': HEIGHT, 'objects': [polygon]})
    assert ('Note: 255 is void' in capfd.readouterr().out) == (void == 255)
    for learnt in ('train_ids', 'label_ids'):
        counts = model_build.class_of_id(learnt, table) != labels.IGNORED
        assert counts[ids].all() and counts[void] == (learnt == 'label_ids' and void != 255)

    def predict(batch):
        import tensorflow as tf

        return tf.fill(tf.shape(batch)[:3], tf.constant(ids[0], tf.uint8))

    for name in ('train', 'validation'):
        split = records.read_split(tmp_path / 'records', name)
        confusion = predict_split.confusion_of_split(mirrored(1), predict, split, table, batch=1)
        stored = records.class_pixels(tmp_path / 'records', (name,))
        np.testing.assert_array_equal(confusion.sum(1)[ids], stored[ids])
        assert stored[void] >= 7 * WIDTH * (len(split) - 1) and confusion.sum() == stored[: len(confusion)].sum()


def test_polygons_leave_void_where_no_object_is():
    annotation = {'imgWidth': 8, 'imgHeight': 6, 'objects': [{'label': 'class 2', 'polygon': [[0, 0], [3, 0], [3, 5]]}]}
    for table in (ALL_SCORED, WITH_GAPS):
        drawn = np.asarray(polygons.draw(json.dumps(annotation).encode(), table, labels.void_ids(table)[0]))
        assert {255, next(label.id for label in table if label.name == 'class 2')} == set(np.unique(drawn).tolist())


@pytest.mark.process
@pytest.mark.parametrize('background', [0, 1])
def test_masks_that_mark_a_class_by_255_are_refused(tmp_path, background):
    """Their class would be void, and all of the rest one class."""
    mask = np.full(trees.SIZE, background, np.uint8)
    mask[5:20, 8:30] = 255
    with pytest.raises(entry.UserError, match=f'hold {background} and 255 alone') as failure:
        build_labels(tmp_path, ALL_SCORED[:2], [mask] * 4)
    assert failure.value.status == entry.BAD_DATA and not (tmp_path / 'records' / records.MANIFEST).exists()


@pytest.mark.process
def test_what_the_table_cannot_say_is_refused_and_one_class_is_warned_of(tmp_path, capfd):
    array = np.zeros(trees.SIZE, np.uint8)
    array[:3] = 255
    with_void = (dataclasses.replace(ALL_SCORED[0], train_id=255), dataclasses.replace(ALL_SCORED[1], train_id=0))
    with pytest.raises(entry.UserError, match='255'):  # the table has an id for void already
        build_labels(tmp_path / 'other', with_void, [array] * 3)
    build_labels(tmp_path / 'one', ALL_SCORED[:1], [array] * 3)
    assert 'class 0 is the only class that is scored' in capfd.readouterr().out
