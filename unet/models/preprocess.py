"""What happens to images on the device before the model sees them.

import tensorflow as tf
from unet.models import preprocess

image = preprocess.normalize(tf.zeros([2, 64, 96, 3], tf.uint8))
image = preprocess.color_jitter(image, color=tf.constant([[0.1, 0.0, 0.2]] * 2))
"""

import math

import tensorflow as tf

# What is drawn for each example, 0 for none: added brightness (a share of full scale), contrast and saturation (their
# factors less 1), the logarithm of gamma, and hue (a share of the colour circle).
COLOR_CHANGES = ('brightness', 'contrast', 'saturation', 'gamma', 'hue')


def normalize(image: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Brings images from uint8 0..255 to [-1, 1]."""
    return tf.cast(image, dtype) / 127.5 - 1.0


def color_jitter(image: tf.Tensor, color: tf.Tensor) -> tf.Tensor:
    """Applies each example's drawn colour change; runs on the accelerator.

    Args:
      image: [batch, h, w, 3] in [-1, 1].
      color: [batch, n], the first n of COLOR_CHANGES, three or all.

    Returns:
      [batch, h, w, 3] in [-1, 1].
    """
    brightness, contrast, saturation, *more = (color[:, i, None, None, None] for i in range(color.shape[1]))
    if more:
        image = _change_hue(_change_gamma(image, more[0]), more[1])
    mean = tf.reduce_mean(image, [1, 2, 3], keepdims=True)
    image = mean + (image - mean) * (1 + contrast)
    grey = tf.tensordot(image, tf.constant([0.299, 0.587, 0.114], image.dtype), 1)[..., None]  # ITU-R BT.601 luma
    image = grey + (image - grey) * (1 + saturation) + 2 * brightness
    return tf.clip_by_value(image, -1.0, 1.0)


def _change_gamma(image: tf.Tensor, gamma: tf.Tensor) -> tf.Tensor:
    return 2 * tf.maximum((image + 1) / 2, 1e-6) ** tf.exp(gamma) - 1


def _change_hue(image: tf.Tensor, hue: tf.Tensor) -> tf.Tensor:
    """Turns the colours around the axis of the greys, https://en.wikipedia.org/wiki/Rodrigues%27_rotation_formula."""
    angle = 2 * math.pi * hue
    red, green, blue = tf.split(image, 3, -1)
    crossed = tf.concat([blue - green, red - blue, green - red], -1) / math.sqrt(3)
    grey = tf.reduce_mean(image, -1, keepdims=True)
    return grey + tf.cos(angle) * (image - grey) + tf.sin(angle) * crossed


def resize_image(image: tf.Tensor, size: tuple[int, int], method: str) -> tf.Tensor:
    """Resizes images, uint8 [..., h, w, 3] -> uint8 [..., *size, 3].

    Args:
      image: uint8, or float32 in 0..255.
      size: height and width.
      method: 'bilinear' or 'nearest'.
    """
    resized = tf.image.resize(image, size, method)
    return resized if resized.dtype == tf.uint8 else tf.cast(tf.round(resized), tf.uint8)
