"""Every score equals the official evaluator's, to 1e-12."""

import numpy as np
import pytest

from data_prep import labels, records, synthetic_scene
from tests import official, tiny
from unet.evaluation import instance_iou, metrics, predict_split

SIZES = [(128, 256), (96, 200), (75, 131)]


@pytest.fixture(scope='module')
def scenes():
    """Label ids and instance ids of synthetic scenes of mixed sizes, and an image that is all void."""
    drawn = [synthetic_scene.draw(size, np.random.default_rng(seed))[1:] for seed, size in enumerate(SIZES * 3)]
    return [*drawn, (np.zeros((64, 128), np.uint8), np.zeros((64, 128), np.int32))]


def scored_from_records(folder, images, mirrored):
    """The scores as `unet.evaluate` gets them: records, batches of one size, two devices. The red of an image says what
    the model is to see in it."""
    pairs = [(np.repeat(predicted[..., None], 3, 2), label_ids) for label_ids, _, predicted in images]
    split = records.read_split(tiny.write_folder(folder, validation=pairs), 'validation')
    confusion, rows = np.zeros((34, 34), np.int64), []
    for example, truth, predicted in predict_split.predictions(
        mirrored(2), lambda batch: batch[..., 0], split, batch=2
    ):
        confusion += metrics.count_pairs(truth, predicted, 34)[:-1].reshape(34, 34)
        rows.append(instance_iou.measure(images[example][1].astype(np.int32), predicted, labels.CITYSCAPES))
    scores = metrics.scores(confusion, labels.CITYSCAPES)
    return confusion, scores | instance_iou.scores(np.concatenate(rows), confusion, labels.CITYSCAPES)


def test_fifty_prediction_sets(tmp_path, scenes, mirrored):
    """Absent classes, predictions of void, images of all void, mixed sizes."""
    rng = np.random.default_rng(0)
    trains = instances_scored = 0
    for number in range(50):
        chosen = [scenes[place] for place in rng.integers(0, len(scenes), rng.integers(1, 5))]
        predictions = official.predictions_for([label_ids for label_ids, _ in chosen], rng)
        images = [(*scene, predicted) for scene, predicted in zip(chosen, predictions, strict=True)]
        folder = tmp_path / str(number)
        folder.mkdir()
        matrix, theirs = official.scores(folder, images)
        found = [official.our_scores(images)]
        if number % 10 == 0:
            found.append(scored_from_records(folder / 'records', images, mirrored))
        for confusion, ours in found:
            np.testing.assert_array_equal(confusion, matrix)
            assert official.largest_difference(theirs, ours) < 1e-12
        trains += np.isfinite(theirs['eval/iou/train'])
        instances_scored += np.isfinite(theirs['eval/iiou'])
    assert 0 < trains < 50  # sets with and without that class
    assert instances_scored > 40  # the instance part had something to do


def test_a_difference_would_be_noticed(scenes):
    images = [(*scenes[0], np.roll(scenes[0][0], 2))]
    _, scores = official.our_scores(images)
    name = next(name for name, value in scores.items() if name.startswith('eval/iiou/') and value > 0)
    assert official.largest_difference(scores, scores | {name: scores[name] + 1e-9}) > 1e-12
    assert official.largest_difference(scores, scores | {name: np.nan}) == np.inf


def test_a_full_size_scene(tmp_path):
    label_ids, instance_ids = synthetic_scene.draw((1024, 2048), np.random.default_rng(5))[1:]
    images = [(label_ids, instance_ids, np.roll(label_ids, (4, -7), (0, 1)))]
    matrix, theirs = official.scores(tmp_path, images)
    confusion, ours = official.our_scores(images)
    np.testing.assert_array_equal(confusion, matrix)
    assert official.largest_difference(theirs, ours) < 1e-12


def test_counting_speed_measures_both_on_the_same_predictions(scenes):
    pairs = [(label_ids, np.roll(label_ids, 3)) for label_ids, _ in scenes[:2]]
    speed = official.counting_speed(pairs, rounds=3)
    assert set(speed) == {'ours', 'official python'} and min(speed.values()) > 0
