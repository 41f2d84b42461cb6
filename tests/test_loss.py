import numpy as np
import tensorflow as tf

from unet import loss


def test_cross_entropy_against_its_formula():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 5, (2, 3, 4))
    target[0, 1] = 255
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    valid = target != 255
    expected = -np.log(np.take_along_axis(shares, np.where(valid, target, 0)[..., None], -1)[..., 0])[valid].sum()
    target = tf.constant(target, tf.int32)
    np.testing.assert_allclose(loss.cross_entropy(tf.constant(logits), target), expected, rtol=1e-12)
    assert float(loss.valid_pixels(target)) == valid.sum()


def test_all_ignored_is_zero_with_zero_gradient():
    logits = tf.Variable(tf.random.stateless_normal([1, 2, 2, 3], [0, 0]))
    with tf.GradientTape() as tape:
        value = loss.cross_entropy(logits, tf.fill([1, 2, 2], 255))
    assert float(value) == 0.0 and not tape.gradient(value, logits).numpy().any()
