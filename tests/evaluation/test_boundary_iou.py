import numpy as np
import pytest

from data_prep import labels, synthetic_scene
from unet.evaluation import boundary_iou


def eroded(mask, times):
    """By definition: what stays after `times` erosions by a 3x3 square, with nothing beyond the border."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = np.ones_like(mask)
        for down in range(3):
            for across in range(3):
                mask &= padded[down : down + mask.shape[0], across : across + mask.shape[1]]
    return mask


def by_definition(truth, prediction, table):
    """The paper's formula, class by class."""
    distance = max(1, round(0.005 * np.hypot(*truth.shape)))
    counted = (labels.train_id_of_id(table) != labels.IGNORED)[truth]
    scores = {}
    for label in labels.classes(table):
        true, predicted = truth == label.id, prediction == label.id
        true_edge = true & ~eroded(true, distance) & counted
        predicted_edge = predicted & ~eroded(predicted, distance) & counted
        union = np.count_nonzero(true_edge | predicted_edge)
        both = np.count_nonzero(true_edge & predicted_edge)
        scores[label.name] = both / union if union else np.nan
    return scores


@pytest.mark.parametrize('size', [(128, 256), (301, 517), (64, 64), (9, 70)])
def test_boundary_iou_is_the_papers(size):
    rng = np.random.default_rng(0)
    truth = synthetic_scene.draw((max(size[0], 64), max(size[1], 64)), rng)[1][-size[0] :, : size[1]]
    prediction = np.roll(truth, (2, 3), (0, 1))
    prediction[rng.random(size) < 0.01] = 8
    found = boundary_iou.scores(boundary_iou.count_pairs(truth, prediction, labels.CITYSCAPES), labels.CITYSCAPES)
    expected = by_definition(truth, prediction, labels.CITYSCAPES)
    assert np.nanmean(list(expected.values())) < 1
    for name, value in expected.items():
        assert found[f'eval/boundary_iou/{name}'] == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert found['eval/boundary_iou'] == pytest.approx(np.nanmean(list(expected.values())))


def test_inside_of_large_areas_does_not_count():
    truth = np.full((200, 200), 7, np.uint8)
    prediction = truth.copy()
    prediction[90:110, 90:110] = 11  # a hole in the middle: the outline of the image is met, but not the hole's
    scores = boundary_iou.scores(boundary_iou.count_pairs(truth, prediction, labels.CITYSCAPES), labels.CITYSCAPES)
    rim, around_hole = 200**2 - 198**2, 22**2 - 20**2
    assert scores['eval/boundary_iou/road'] == pytest.approx(rim / (rim + around_hole))
    assert scores['eval/boundary_iou/building'] == 0
    assert np.isnan(scores['eval/boundary_iou/sky'])
