"""Losses as sums: each returns what is to be added up over all replicas and divided once."""

import tensorflow as tf

from data_prep.labels import IGNORED


def cross_entropy(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Sum of the cross entropy over the valid pixels; the mean over pixels is this divided by `valid_pixels`.

    Args:
      logits: [batch, height, width, classes].
      target: int32 [batch, height, width], classes 0..K-1, or 255 for pixels that do not count.

    Returns:
      Scalar; 0 if no pixel is valid.
    """
    valid = target != IGNORED
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(valid, target, 0), logits)
    return tf.reduce_sum(tf.where(valid, losses, 0))


def valid_pixels(target: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Scalar: the number of pixels that count."""
    return tf.reduce_sum(tf.cast(target != IGNORED, dtype))
