"""Losses as sums over the global batch.

Each loss is a numerator over a denominator. The denominator depends on the labels alone: it is summed over all replicas
first, and each replica then divides its own numerator by it. So the sum of the replicas' losses is the loss of the
global batch, however it is shared out.

    loss             numerator, summed over                          denominator
    cross_entropy    pixels: weight of the class x cross entropy     sum of those weights over valid pixels
    focal            pixels: (1 - p)^gamma x cross entropy           valid pixels
    ohem             images: mean cross entropy of its hard pixels   images with a valid pixel
    dice             images: 1 - mean Dice of the classes in it      images with a valid pixel

Sources: focal loss, https://arxiv.org/abs/1708.02002; OHEM (online hard example mining, bootstrapped cross
entropy), https://arxiv.org/abs/1605.06885; Dice, https://arxiv.org/abs/1606.04797; label smoothing,
https://arxiv.org/abs/1512.00567; logit adjustment, https://arxiv.org/abs/2007.07314.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from configs.validation import LOSSES
from data_prep.labels import IGNORED

# (logits [batch, h, w, classes], target int32 [batch, h, w] with 255 for pixels that do not count) -> scalar
Numerator = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Denominator = Callable[[tf.Tensor, tf.DType], tf.Tensor]

_LEAST_DOUBT = 1e-12  # 1 - p, in the focal loss
_LEAST_WEIGHT = 1e-6  # of a class, when its logarithm is taken


def make_losses(
    weights: dict[str, float],
    *,
    class_weights: tuple[float, ...] = (),
    logit_adjustment: float = 0.0,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    ohem_threshold: float = 0.7,
    ohem_min_fraction: float = 0.1,
) -> list[tuple[float, Numerator, Denominator]]:
    """Makes the losses of weight above zero, as (weight, numerator, denominator).

    Args:
      weights: of each of `validation.LOSSES` in the total.
      class_weights: one per class, of its pixels in the cross entropy; empty for all 1.
      logit_adjustment: the losses see each class's logit with this times the logarithm of its weight added. With 1 the
        logits themselves tend to what they would be without weights, and the classes that weigh much are learnt all
        the same, but not predicted where others are likelier.
      label_smoothing: share of the target's probability that is spread over all classes, in the cross entropy.
      focal_gamma: exponent of the focal loss.
      ohem_threshold: a pixel is hard if its true class is given less probability than this ...
      ohem_min_fraction: ... and at least this share of each image's valid pixels, the worst ones, counts as hard.
    """

    def class_weight(target: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return _valid_weight(target, class_weights, dtype)

    def adjusted(numerator: Numerator) -> Numerator:
        if not (class_weights and logit_adjustment):
            return numerator
        shift = [logit_adjustment * math.log(max(weight, _LEAST_WEIGHT)) for weight in class_weights]
        return lambda logits, target: numerator(logits + tf.constant(shift, logits.dtype), target)

    def cross_entropy(logits, target):
        return tf.reduce_sum(class_weight(target, logits.dtype) * pixel_losses(logits, target, label_smoothing))

    def focal(logits, target):
        losses = pixel_losses(logits, target)
        # Above 0, where a power below 1 has no slope: 1 - p is exactly 0 where the model is sure.
        doubt = tf.maximum(-tf.math.expm1(-losses), tf.cast(_LEAST_DOUBT, losses.dtype))
        return tf.reduce_sum(doubt**focal_gamma * losses)

    def ohem(logits, target):
        return _ohem(pixel_losses(logits, target), target != IGNORED, ohem_threshold, ohem_min_fraction)

    pixels = lambda target, dtype: tf.reduce_sum(tf.cast(target != IGNORED, dtype))  # noqa: E731
    images = lambda target, dtype: tf.reduce_sum(tf.cast(_valid_images(target), dtype))  # noqa: E731
    known = {
        'cross_entropy': (cross_entropy, lambda target, dtype: tf.reduce_sum(class_weight(target, dtype))),
        'focal': (focal, pixels),
        'ohem': (ohem, images),
        'dice': (_dice, images),
    }
    return [(weights[name], adjusted(known[name][0]), known[name][1]) for name in LOSSES if weights[name] > 0]


def pixel_losses(logits: tf.Tensor, target: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns the cross entropy of each pixel, [batch, h, w]; 0 where the target is 255."""
    classes = logits.shape[-1]
    others = label_smoothing / classes
    # In deterministic mode the op that takes class numbers has a gradient that scatters pixel by pixel, which XLA does
    # one after the other on a GPU.
    truth = tf.one_hot(target, classes, 1 - label_smoothing + others, others, dtype=logits.dtype)
    losses = tf.nn.softmax_cross_entropy_with_logits(truth, logits)
    return tf.where(target != IGNORED, losses, tf.zeros_like(losses))


def _valid_weight(target: tf.Tensor, class_weights: tuple[float, ...], dtype: tf.DType) -> tf.Tensor:
    """The weight of each pixel, [batch, h, w]; 0 where the target is 255."""
    if not class_weights:
        return tf.cast(target != IGNORED, dtype)
    weights = tf.constant([*class_weights, *[0.0] * (IGNORED + 1 - len(class_weights))], dtype)
    return tf.gather(weights, tf.cast(target, tf.int32))


def _valid_images(target: tf.Tensor) -> tf.Tensor:
    """bool [batch]: images with at least one valid pixel."""
    return tf.reduce_any(target != IGNORED, [1, 2])


def _ohem(losses: tf.Tensor, valid: tf.Tensor, threshold: float, min_fraction: float) -> tf.Tensor:
    """Sum over images of the mean loss of their hard pixels."""
    batch = tf.shape(losses)[0]
    losses, valid = tf.reshape(losses, [batch, -1]), tf.reshape(valid, [batch, -1])
    count = tf.reduce_sum(tf.cast(valid, tf.int32), 1)
    worst_first = tf.sort(losses, 1, 'DESCENDING')
    least = tf.cast(tf.math.ceil(min_fraction * tf.cast(count, losses.dtype)), tf.int32)
    bound = tf.gather(worst_first, tf.maximum(least - 1, 0), axis=1, batch_dims=1)[:, None]
    hard = valid & (losses >= tf.stop_gradient(tf.minimum(bound, -tf.math.log(tf.cast(threshold, losses.dtype)))))
    hard = tf.cast(hard, losses.dtype)
    return tf.reduce_sum(tf.reduce_sum(hard * losses, 1) / tf.maximum(tf.reduce_sum(hard, 1), 1))


def _dice(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Sum over images of 1 - the mean Dice coefficient of the classes that occur in the image."""
    classes = logits.shape[-1]
    valid = tf.cast(target != IGNORED, logits.dtype)[..., None]
    truth = tf.one_hot(target, classes, dtype=logits.dtype)  # all zero where the target is 255
    share = tf.nn.softmax(logits) * valid
    overlap = tf.reduce_sum(share * truth, [1, 2])
    size = tf.reduce_sum(share, [1, 2]) + tf.reduce_sum(truth, [1, 2])
    present = tf.reduce_any(truth > 0, [1, 2])
    dice = tf.where(present, 2 * overlap / tf.where(present, size, tf.ones_like(size)), tf.zeros_like(size))
    count = tf.reduce_sum(tf.cast(present, logits.dtype), 1)
    mean = tf.reduce_sum(dice, 1) / tf.maximum(count, 1)
    return tf.reduce_sum(tf.where(count > 0, 1 - mean, tf.zeros_like(mean)))


def balanced_class_weights(pixels: list[int], power: float = 1.0) -> tuple[float, ...]:
    """Returns the class weights from the training pixels of each class: 1 / ln(1.02 + share) to a power, scaled so that
    the mean pixel has 1.

    Source: https://arxiv.org/abs/1606.02147, section 5.1.
    """
    total = sum(pixels)
    raw = [math.log(1.02 + count / total) ** -power for count in pixels]
    mean = sum(weight * count for weight, count in zip(raw, pixels, strict=True)) / total
    return tuple(weight / mean for weight in raw)
