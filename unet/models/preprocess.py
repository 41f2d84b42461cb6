"""What happens to images on the device before the model sees them.

import tensorflow as tf
from unet.models import preprocess

image = preprocess.normalize(tf.zeros([2, 64, 96, 3], tf.uint8))
image = preprocess.color_jitter(image, color=tf.constant([[0.1, 0.0, 0.2]] * 2))
"""

import tensorflow as tf


def normalize(image: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Brings images from uint8 0..255 to [-1, 1]."""
    return tf.cast(image, dtype) / 127.5 - 1.0


def color_jitter(image: tf.Tensor, color: tf.Tensor) -> tf.Tensor:
    """Applies each example's drawn colour change; runs on the accelerator.

    Args:
      image: [batch, h, w, 3] in [-1, 1].
      color: [batch, 3]: brightness added (a share of full scale), contrast and saturation changes, 0 for none.

    Returns:
      [batch, h, w, 3] in [-1, 1].
    """
    brightness, contrast, saturation = (color[:, i, None, None, None] for i in range(3))
    mean = tf.reduce_mean(image, [1, 2, 3], keepdims=True)
    image = mean + (image - mean) * (1 + contrast)
    grey = tf.tensordot(image, tf.constant([0.299, 0.587, 0.114], image.dtype), 1)[..., None]  # ITU-R BT.601 luma
    image = grey + (image - grey) * (1 + saturation) + 2 * brightness
    return tf.clip_by_value(image, -1.0, 1.0)


def resize_image(image: tf.Tensor, size: tuple[int, int], method: str) -> tf.Tensor:
    """Resizes images, uint8 [..., h, w, 3] -> uint8 [..., *size, 3].

    Args:
      image: uint8, or float32 in 0..255.
      size: height and width.
      method: 'bilinear' or 'nearest'.
    """
    resized = tf.image.resize(image, size, method)
    return resized if resized.dtype == tf.uint8 else tf.cast(tf.round(resized), tf.uint8)
