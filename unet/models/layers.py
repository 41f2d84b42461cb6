"""The layers of the U-Net that Keras lacks.

import tensorflow as tf
from unet.models import layers

layers.BilinearDouble()(tf.zeros([1, 4, 6, 3])).shape  # (1, 8, 12, 3)
"""

import dataclasses

import keras
import tensorflow as tf


class MaxPoolByReshape(keras.layers.Layer):
    """Takes the maximum of non-overlapping 2x2 windows, [b, h, w, c] -> [b, h/2, w/2, c], in ops that suit XLA.

    XLA has no deterministic gradient of the max-pooling op (TensorFlow 2.21); that of a maximum over two axes is.
    Windows with equal maxima share the gradient instead of giving it to the first.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        batch, height, width = tf.unstack(tf.shape(x)[:3])
        windows = tf.reshape(x, tf.stack([batch, height // 2, 2, width // 2, 2, x.shape[3]]))
        return tf.reduce_max(windows, [2, 4])

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape[0], *(side and side // 2 for side in shape[1:3]), shape[3]


class BilinearDouble(keras.layers.Layer):
    """Interpolates to twice the size, [b, h, w, c] -> [b, 2h, 2w, c], as bilinear tf.image.resize does.

    Each new pixel lies a quarter from its nearest old one. Written as sums of shifted copies, whose gradients XLA
    compiles and are deterministic; those of the resize op are neither (TensorFlow 2.21).

    Args:
      jit_compile: XLA compiles it, in training.
    """

    def __init__(self, jit_compile: bool = False, **kwargs):
        super().__init__(**kwargs)
        self._jit_compile = jit_compile

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return _jit_bilinear_double(x) if training and self._jit_compile else _bilinear_double(x)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape[0], *(side and 2 * side for side in shape[1:3]), shape[3]


def _bilinear_double(x: tf.Tensor) -> tf.Tensor:
    for axis in (1, 2):
        x = tf.experimental.numpy.swapaxes(x, 1, axis)
        before, after = tf.concat([x[:, :1], x[:, :-1]], 1), tf.concat([x[:, 1:], x[:, -1:]], 1)
        batch, size, other, channels = tf.unstack(tf.shape(x))
        pairs = tf.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], 2)
        x = tf.experimental.numpy.swapaxes(tf.reshape(pairs, [batch, 2 * size, other, channels]), 1, axis)
    return x


_jit_bilinear_double = tf.function(_bilinear_double, jit_compile=True, autograph=False)


class GroupNorm(keras.layers.GroupNormalization):
    """Group normalisation, see Keras.

    Args:
      jit_compile: XLA compiles it, in training.
    """

    def __init__(self, *args, jit_compile: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self._jit_call = tf.function(super().call, jit_compile=True, autograph=False) if jit_compile else None

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self._jit_call(x) if training and self._jit_call else super().call(x)


@dataclasses.dataclass(frozen=True)  # no layer, so that Keras does not save its models a second time
class Recomputation:
    """How training computes a `RecomputeBlock`: in two stages.

    Attributes:
      recomputed: the stage whose activations are not kept, from the block's inputs to its own outputs, which are.
      kept: the stage after it, from these outputs to the block's output; None if there is none.
    """

    recomputed: keras.Model
    kept: keras.Model | None = None


class RecomputeBlock(keras.layers.Layer):
    """A level of the U-Net as one layer, whose activations the backward pass can recompute.

    Args:
      part: the level, from a list of inputs to one output. The attribute's name is in the keys of checkpoints.
      level: the level's number.
      stride: how many times smaller than the U-Net's its images are.
      recomputation: the same layers as training computes them; None: training keeps all activations.
    """

    def __init__(
        self, part: keras.Model, level: int, stride: int, recomputation: Recomputation | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        self.part = part
        self.level = level
        self.stride = stride
        self.recomputation = recomputation

    def call(self, inputs: list[tf.Tensor], training: bool = False) -> tf.Tensor:
        if not training or not self.recomputation:
            return self.part(inputs, training=training)
        outputs = recompute_activations(self.recomputation.recomputed, inputs)
        return self.recomputation.kept(outputs, training=True) if self.recomputation.kept else outputs

    def compute_output_shape(self, shapes: list[tuple[int | None, ...]]) -> tuple[int | None, ...]:
        return self.part.compute_output_shape(shapes)


def recompute_activations(model: keras.Model, inputs: list[tf.Tensor]) -> tf.Tensor | list[tf.Tensor]:
    """Computes `model(inputs)` in training and recomputes its activations in the backward pass instead of keeping them.

    The second computation leaves the running statistics of normalisation as they are.

    Source: https://arxiv.org/abs/1604.06174.
    """
    statistics = [variable.value for variable in model.non_trainable_variables]
    before = []

    def forward(*inputs: tf.Tensor) -> tf.Tensor | list[tf.Tensor]:
        again = bool(before)
        before[:] = [[tf.identity(variable) for variable in statistics]]
        output = model(list(inputs), training=True)
        if again:
            for variable, value in zip(statistics, before[0], strict=True):
                variable.assign(value)
        return output

    return tf.recompute_grad(forward)(*inputs)
