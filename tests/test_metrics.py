import numpy as np
import pytest

from data_prep import labels
from unet import metrics


def official_scores(confusion):
    """cityscapesScripts' own numbers for a 34 x 34 matrix."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    official.args.evalLabels = list(range(34))
    matrix = confusion.astype(np.uint64)
    by_class = {
        label.name: official.getIouScoreForLabel(label.id, matrix, official.args)
        for label in labels.classes(labels.CITYSCAPES)
    }
    return by_class, official.getScoreAverage(by_class, official.args)


@pytest.mark.parametrize('seed', range(20))
def test_iou_is_the_official_one(seed):
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 1 << 40, (34, 34)) * (rng.random((34, 34)) < 0.4)
    confusion[rng.random(34) < 0.3] = 0  # classes that do not occur
    confusion[:, rng.random(34) < 0.3] = 0  # classes that are never predicted
    by_class, mean = official_scores(confusion)
    ours = metrics.class_iou(confusion, labels.CITYSCAPES)
    np.testing.assert_allclose([ours[name] for name in by_class], list(by_class.values()), rtol=0, atol=1e-12)
    assert metrics.scores(confusion, labels.CITYSCAPES)['eval/miou'] == pytest.approx(mean, rel=0, abs=1e-12)


def test_void_is_not_counted_but_predicting_it_costs():
    road, void, car = 7, 0, 26
    confusion = np.zeros((34, 34), np.int64)
    confusion[road, road] = 60
    confusion[void, road] = 1000  # the truth is void: no false positive
    assert metrics.class_iou(confusion, labels.CITYSCAPES)['road'] == 1.0
    confusion[road, void] = 40  # road taken for void: missed
    assert metrics.class_iou(confusion, labels.CITYSCAPES)['road'] == 0.6
    confusion[void, car] = 5  # neither occurs nor counts as predicted
    scores = metrics.scores(confusion, labels.CITYSCAPES)
    assert np.isnan(scores['eval/iou/car']) and scores['eval/miou'] == 0.6
    confusion[road, car] = 1  # absent but predicted: 0 in the official mean, left out of the mean over those present
    scores = metrics.scores(confusion, labels.CITYSCAPES)
    assert scores['eval/iou/car'] == 0.0 and scores['eval/miou'] == pytest.approx(60 / 101 / 2)
    assert scores['eval/miou_present'] == pytest.approx(60 / 101)


def test_counting_matches_a_loop_and_keeps_unknown_ids_apart():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 6, 500).astype(np.uint8), rng.integers(0, 5, 500).astype(np.uint8)
    truth[truth == 5] = 255
    counts = metrics.confusion_matrix(truth, prediction, 5).numpy()
    expected = np.zeros((5, 5), np.int64)
    for t, p in zip(truth, prediction, strict=True):
        if t < 5:
            expected[t, p] += 1
    np.testing.assert_array_equal(counts[:-1].reshape(5, 5), expected)
    assert counts[-1] == (truth == 255).sum()
