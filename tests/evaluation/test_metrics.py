import numpy as np
import pytest

from data_prep import labels
from unet.evaluation import metrics


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


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (37, 1), (30, 64), (29, 61), (270, 301), (0, 5), (5, 0)])
@pytest.mark.parametrize('grain', [1, 6])
def test_counting_matches_a_loop_and_keeps_unknown_ids_apart(size, grain):
    """Any width, smooth label maps and noise."""
    rng = np.random.default_rng(0)

    def draw(ids):
        coarse = rng.integers(0, ids, (-(-size[0] // grain), -(-size[1] // grain))).astype(np.uint8)
        return coarse.repeat(grain, 0).repeat(grain, 1)[: size[0], : size[1]]

    truth, prediction = draw(6), draw(5)
    truth = np.where(truth == 5, np.uint8(255), truth)
    expected = np.zeros((5, 5), np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t < 5:
            expected[t, p] += 1
    counts = metrics.count_pairs(truth, prediction, 5)
    np.testing.assert_array_equal(counts[:-1].reshape(5, 5), expected)
    assert counts[-1] == (truth == 255).sum()


def test_counting_refuses_what_it_cannot_count():
    truth = np.zeros((20, 16), np.uint8)
    with pytest.raises(ValueError, match='predicted id 7'):
        metrics.count_pairs(truth, np.where(np.arange(16) < 9, truth, np.uint8(7)), 7)
    with pytest.raises(ValueError, match='prediction'):
        metrics.count_pairs(truth, truth[:, :8], 7)
    with pytest.raises(ValueError, match='int64'):
        metrics.count_pairs(truth.astype(np.int64), truth, 7)


def test_all_ids_and_parts_of_arrays_are_counted():
    rng = np.random.default_rng(3)
    for grain in (1, 5, 40):
        truth, prediction = rng.integers(0, 256, (2, 60, 80)).astype(np.uint8).repeat(grain, 2)[:, ::2, 3:-5]
        counts = metrics.count_pairs(truth, prediction, 256)
        pairs = truth.astype(int) * 256 + prediction
        np.testing.assert_array_equal(counts, np.bincount(pairs.ravel(), minlength=256 * 256 + 1))


def test_a_model_of_all_ids_is_scored_over_its_own_classes_too():
    road, void = 7, 0
    confusion = np.zeros((34, 34), np.int64)
    confusion[void, void], confusion[void, road], confusion[road, road] = 30, 10, 60
    own = metrics.iou_of_all_ids(confusion, labels.CITYSCAPES)
    assert own['unlabeled'] == 0.75 and own['road'] == pytest.approx(60 / 70) and np.isnan(own['car'])
    scores = metrics.scores(confusion, labels.CITYSCAPES)
    assert scores['eval/miou_all_ids'] == pytest.approx((0.75 + 60 / 70) / 2) and scores['eval/miou'] == 1.0
    assert scores['eval/accuracy_all_ids'] == 0.9 and scores['eval/accuracy'] == 1.0


def test_accuracies():
    road, building, car, void = 7, 11, 26, 0
    confusion = np.zeros((34, 34), np.int64)
    confusion[road, road], confusion[road, car] = 90, 10
    confusion[building, building], confusion[building, void] = 10, 10
    scores = metrics.scores(confusion, labels.CITYSCAPES)
    assert scores['eval/accuracy'] == pytest.approx(100 / 120)
    assert scores['eval/class_accuracy'] == pytest.approx((0.9 + 0.5) / 2)  # of the classes that occur
    assert np.isnan(scores['eval/class_accuracy/car'])
    empty = metrics.scores(np.zeros((34, 34), np.int64), labels.CITYSCAPES)
    assert all(np.isnan(value) for value in empty.values())
