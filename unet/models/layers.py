"""Layers of the U-Net."""

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers


class MaxPoolByReshape(layers.Layer):
    """2x2 maximum of non-overlapping windows, [b, h, w, c] -> [b, h/2, w/2, c], for XLA.

    XLA has no deterministic gradient of the max-pooling op (TensorFlow 2.21); that of a maximum over two axes is.
    Windows with equal maxima share the gradient instead of giving it to the first.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        batch, height, width = tf.unstack(tf.shape(x)[:3])
        windows = tf.reshape(x, tf.stack([batch, height // 2, 2, width // 2, 2, x.shape[3]]))
        return tf.reduce_max(windows, [2, 4])

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape[0], *(side and side // 2 for side in shape[1:3]), shape[3]


class BilinearDouble(layers.Layer):
    """Bilinear interpolation to twice the size, [b, h, w, c] -> [b, 2h, 2w, c], as tf.image.resize does it.

    Each new pixel lies a quarter from its nearest old one. Written as sums of shifted copies, whose gradients XLA
    compiles and are deterministic; those of the resize op are neither (TensorFlow 2.21).
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for axis in (1, 2):
            x = tf.experimental.numpy.swapaxes(x, 1, axis)
            before, after = tf.concat([x[:, :1], x[:, :-1]], 1), tf.concat([x[:, 1:], x[:, -1:]], 1)
            batch, size, other, channels = tf.unstack(tf.shape(x))
            pairs = tf.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], 2)
            x = tf.experimental.numpy.swapaxes(tf.reshape(pairs, [batch, 2 * size, other, channels]), 1, axis)
        return x

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape[0], *(side and 2 * side for side in shape[1:3]), shape[3]


class Part(layers.Layer):
    """A part of the network.

    Args:
      part: what it computes.
      in_training: computes the same from the same inputs, and takes its place in training.
    """

    def __init__(self, part: keras.Model, in_training: Callable | None = None, **kwargs):
        super().__init__(**kwargs)
        self.part = part
        self._in_training = in_training

    def call(self, inputs: list[tf.Tensor], training: bool = False) -> tf.Tensor:
        if training and self._in_training:
            return self._in_training(inputs)
        return self.part(inputs, training=training)

    def compute_output_shape(self, shapes: list[tuple[int | None, ...]]) -> tuple[int | None, ...]:
        return self.part.compute_output_shape(shapes)


def recomputed(part: keras.Model, inputs: list[tf.Tensor]) -> tf.Tensor | list[tf.Tensor]:
    """`part(inputs)` in training, whose activations are computed again in the backward pass, not kept.

    What is computed the second time leaves the running statistics of normalisation as they are.
    """
    statistics = [variable.value for variable in part.non_trainable_variables]
    before = []

    def forward(*inputs: tf.Tensor) -> tf.Tensor | list[tf.Tensor]:
        again = bool(before)
        before[:] = [[tf.identity(variable) for variable in statistics]]
        output = part(list(inputs), training=True)
        if again:
            for variable, value in zip(statistics, before[0], strict=True):
                variable.assign(value)
        return output

    return tf.recompute_grad(forward)(*inputs)
