"""Each loss against a formula written in NumPy for one image and pixel at a time."""

import numpy as np
import pytest
import tensorflow as tf

from configs.validation import LOSSES
from unet.training import losses

CLASSES = 4
CLASS_WEIGHTS = (0.5, 2.0, 1.0, 4.0)


def example(seed=0):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(3, 5, 6, CLASSES)) * 3, rng.integers(0, CLASSES, (3, 5, 6)).astype(np.uint8)
    target[0, :3] = 255
    target[1] = 255  # an image without a valid pixel
    return logits, target


def formula(name, logits, target):
    """(numerator, denominator)."""
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    numerator = denominator = 0.0
    for image in range(len(target)):
        pixels = [place for place in np.ndindex(target[image].shape) if target[image][place] != 255]
        losses = [-np.log(shares[image][place][target[image][place]]) for place in pixels]
        if name == 'cross_entropy':
            for place, value in zip(pixels, losses, strict=True):
                weight = CLASS_WEIGHTS[target[image][place]]
                spread = -np.log(shares[image][place]).mean()
                numerator += weight * (0.9 * value + 0.1 * spread)
                denominator += weight
        elif name == 'focal':
            numerator += sum((1 - np.exp(-value)) ** 1.5 * value for value in losses)
            denominator += len(losses)
        elif pixels:
            denominator += 1
            if name == 'ohem':
                hard = [value for value in losses if np.exp(-value) <= 0.3]
                least = int(np.ceil(0.4 * len(losses)))
                if len(hard) < least:
                    hard = sorted(losses)[-least:]
                numerator += np.mean(hard)
            else:
                coefficients = []
                for class_ in {target[image][place] for place in pixels}:
                    truth = np.array([target[image][place] == class_ for place in pixels], float)
                    share = np.array([shares[image][place][class_] for place in pixels])
                    coefficients.append(2 * (truth * share).sum() / (truth.sum() + share.sum()))
                numerator += 1 - np.mean(coefficients)
    return numerator, denominator


def make(name):
    weights = dict.fromkeys(LOSSES, 0.0) | {name: 1.0}
    ((_, numerator, denominator),) = losses.make_losses(
        weights,
        class_weights=CLASS_WEIGHTS,
        label_smoothing=0.1,
        focal_gamma=1.5,
        ohem_threshold=0.3,
        ohem_min_fraction=0.4,
    )
    return numerator, denominator


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('seed', range(3))
def test_loss_is_its_formula(name, seed):
    logits, target = example(seed)
    numerator, denominator = make(name)
    expected = formula(name, logits, target)
    np.testing.assert_allclose(numerator(tf.constant(logits), tf.constant(target)), expected[0], rtol=1e-10)
    np.testing.assert_allclose(denominator(tf.constant(target), tf.float64), expected[1], rtol=1e-12)


@pytest.mark.parametrize('name', LOSSES)
def test_parts_add_up_to_the_whole(name):
    """Whatever replica an image is on, sums of numerators and denominators are those of the whole batch."""
    logits, target = map(tf.constant, example())
    numerator, denominator = make(name)
    parts = [numerator(logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(sum(parts), numerator(logits, target), rtol=1e-12)
    parts = [denominator(target[i : i + 1], tf.float64) for i in range(3)]
    np.testing.assert_allclose(sum(parts), denominator(target, tf.float64), rtol=1e-12)


@pytest.mark.parametrize('name', LOSSES)
def test_all_ignored_is_zero_with_zero_gradient(name):
    numerator, denominator = make(name)
    logits, target = tf.Variable(tf.random.stateless_normal([2, 3, 3, CLASSES], [0, 0])), tf.fill([2, 3, 3], 255)
    with tf.GradientTape() as tape:
        value = numerator(logits, target)
    assert float(value) == 0.0 and not tape.gradient(value, logits).numpy().any()
    assert float(denominator(target, tf.float32)) == 0.0


@pytest.mark.parametrize('name', LOSSES)
def test_certain_and_wrong_stays_finite(name):
    numerator, _ = make(name)
    logits = tf.Variable(tf.one_hot(tf.zeros([1, 2, 2], tf.int32), CLASSES) * 1e4)
    with tf.GradientTape() as tape:
        value = numerator(logits, tf.ones([1, 2, 2], tf.int32))
    assert np.isfinite(float(value)) and np.isfinite(tape.gradient(value, logits)).all()


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_focal_loss_has_a_slope_where_the_network_is_sure(gamma):
    ((_, numerator, _),) = losses.make_losses(dict.fromkeys(LOSSES, 0.0) | {'focal': 1.0}, focal_gamma=gamma)
    logits = tf.Variable(tf.one_hot([[[0, 1, 2]]], CLASSES) * 200)  # where 1 - p is 0 in float32
    with tf.GradientTape() as tape:
        value = numerator(logits, tf.constant([[[0, 1, 3]]]))
    assert float(value) == pytest.approx(200) and np.isfinite(tape.gradient(value, logits)).all()


@pytest.mark.parametrize('name', LOSSES)
def test_adjusted_logits_are_what_the_losses_see(name):
    logits, target = map(tf.constant, example())
    weights = dict.fromkeys(LOSSES, 0.0) | {name: 1.0}
    (((_, plain, _),), ((_, adjusted, _),)) = (
        losses.make_losses(weights, class_weights=CLASS_WEIGHTS, logit_adjustment=tau) for tau in (0.0, 0.7)
    )
    shift = 0.7 * np.log(CLASS_WEIGHTS)
    np.testing.assert_allclose(adjusted(logits, target), plain(logits + shift, target), rtol=1e-12)


def test_adjusted_logits_tend_to_the_shares_of_the_classes():
    """Pixels that look the same are to 60, 30 and 10 % of three classes, and predicted so, whatever these weigh."""
    target = tf.constant(np.repeat([0, 1, 2], [6, 3, 1])[None, None])
    logits = tf.Variable(tf.zeros([3], tf.float64))
    ((_, numerator, denominator),) = losses.make_losses(
        dict.fromkeys(LOSSES, 0.0) | {'cross_entropy': 1.0}, class_weights=(0.5, 1.0, 6.0), logit_adjustment=1.0
    )
    for _ in range(400):
        with tf.GradientTape() as tape:
            loss = numerator(tf.tile(logits[None, None, None], [1, 1, 10, 1]), target) / denominator(target, tf.float64)
        logits.assign_sub(2 * tape.gradient(loss, logits))
    np.testing.assert_allclose(tf.nn.softmax(logits), [0.6, 0.3, 0.1], atol=1e-6)


def test_balanced_weights_raise_rare_classes_and_average_to_one():
    pixels = [9000, 900, 100]
    weights = losses.balanced_class_weights(pixels)
    assert weights[0] < weights[1] < weights[2]
    assert sum(w * n for w, n in zip(weights, pixels, strict=True)) / sum(pixels) == pytest.approx(1)
