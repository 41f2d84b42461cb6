"""Batch normalisation over the global batch.

Keras's layer computes the same from many full-size intermediates (a third of the U-Net's step on a CPU). Here they are
four pieces without intermediates, between which lie the sums over the replicas, with the ReLU before the normalisation
among them: together they read and write 8 times what the input holds. One replica takes TensorFlow's fused op instead,
unless XLA compiles the pieces for bfloat16, in which they are faster.

    import tensorflow as tf
    from unet.models import batch_norm

    norm = batch_norm.BatchNorm(momentum=0.99)
    norm(tf.random.uniform([2, 8, 8, 3]), training=True)  # each channel has mean 0 and variance 1
"""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from unet.distributed import sums

EPSILON = 1e-3


class BatchNorm(keras.layers.Layer):
    """Normalises each channel to mean 0 and variance 1 over the batch, then scales and shifts it.

    [batch, h, w, channels] -> the same, in the layer's compute dtype; statistics are taken in at least float32. In
    evaluation the running statistics are used, which are updated as `momentum * running + (1 - momentum) * batch`, with
    the biased variance.

    Source: https://arxiv.org/abs/1502.03167.

    Args:
      momentum: of the running statistics.
      relu: what is normalised is the input's ReLU.
      synchronized: the batch is that of all replicas, which must hold equally many pixels, not the replica's own.
      jit_compile: XLA compiles the pieces.
    """

    def __init__(
        self, momentum: float, *, relu: bool = False, synchronized: bool = False, jit_compile: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self._momentum = momentum
        self._relu = relu
        self._synchronized = synchronized
        self._jit_compile = jit_compile

    def build(self, shape: tuple[int | None, ...]) -> None:
        channels = (shape[-1],)
        self.gamma = self.add_weight(shape=channels, initializer='ones', name='gamma', autocast=False)
        self.beta = self.add_weight(shape=channels, initializer='zeros', name='beta', autocast=False)
        self.moving_mean = self.add_weight(
            shape=channels, initializer='zeros', name='moving_mean', trainable=False, autocast=False
        )
        self.moving_variance = self.add_weight(
            shape=channels, initializer='ones', name='moving_variance', trainable=False, autocast=False
        )

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        gamma, beta = tf.convert_to_tensor(self.gamma.value), tf.convert_to_tensor(self.beta.value)
        if not training:
            scale, shift = self.scale_and_shift()
            return tf.cast(_widened(x, scale.dtype, self._relu) * scale + shift, x.dtype)
        running = [tf.convert_to_tensor(moving.value) for moving in (self.moving_mean, self.moving_variance)]
        in_pieces = self._synchronized or (self._jit_compile and x.dtype == tf.bfloat16)
        if in_pieces or x.dtype == tf.float64:  # which the fused op does not know
            y, running = normalize(
                x,
                gamma,
                beta,
                running,
                momentum=self._momentum,
                relu=self._relu,
                replicas=tf.distribute.get_replica_context().num_replicas_in_sync if self._synchronized else 1,
                jit_compile=self._jit_compile,
            )
        else:
            x = tf.nn.relu(x) if self._relu else x
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=EPSILON)
            pixels = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
            variance *= (pixels - 1) / pixels  # it returns the unbiased one
            running = _updated(running, [mean, variance], self._momentum)
        for moving, value in zip((self.moving_mean, self.moving_variance), running, strict=True):
            moving.value.assign(value)
        return y

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what evaluation multiplies with and adds, [channels] each."""
        scale = self.gamma.value * tf.math.rsqrt(self.moving_variance.value + EPSILON)
        return scale, self.beta.value - self.moving_mean.value * scale


def normalize(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    running: list[tf.Tensor],
    *,
    momentum: float,
    relu: bool,
    replicas: int,
    jit_compile: bool,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Normalises over all replicas, each of which calls this.

    Args:
      x: [batch, h, w, channels], kept for the backward pass, the only such tensor of its size.
      gamma, beta: [channels], of the dtype that statistics are taken in.
      running: mean and variance, [channels] each.
      momentum: of the running statistics.
      relu: what is normalised is relu(x).
      replicas: their number.
      jit_compile: whether XLA compiles the four pieces between the sums over replicas.

    Returns:
      The output, and the running statistics after this batch.
    """
    piece = functools.partial(make_piece, relu=relu, jit_compile=jit_compile)

    @tf.custom_gradient
    def norm(x, gamma, beta):
        totals = sums.over_replicas(piece(moments)(x, gamma), replicas)
        y, *statistics = piece(apply, replicas=replicas, momentum=momentum)(x, gamma, beta, totals, *running)

        def gradient(dy, *_):
            own = piece(backward_sums, replicas=replicas)(x, dy, totals)
            of_all = sums.over_replicas(own, replicas)
            return piece(backward_apply, replicas=replicas)(x, dy, gamma, totals, own, of_all)

        return (y, *statistics), gradient

    y, *statistics = norm(x, gamma, beta)
    return y, statistics


@functools.cache
def make_piece(function: Callable, *, jit_compile: bool, **settings: float) -> Callable:
    """Returns one of the functions below with these settings; there is one compilation of it per shape, whichever layer
    calls it."""

    def piece(*tensors: tf.Tensor) -> tf.Tensor | tuple[tf.Tensor, ...]:
        return function(*tensors, **settings)

    return tf.function(piece, jit_compile=True, autograph=False) if jit_compile else piece


def _widened(x: tf.Tensor, dtype: tf.DType, relu: bool) -> tf.Tensor:
    return tf.cast(tf.nn.relu(x) if relu else x, dtype)


def _pixels(x: tf.Tensor, replicas: int, dtype: tf.DType) -> tf.Tensor:
    """The number of values per channel on all replicas."""
    return tf.cast(tf.size(x) // x.shape[-1] * replicas, dtype)


def _mean_and_variance(x: tf.Tensor, totals: tf.Tensor, replicas: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance of each channel, by the sums over all replicas of `moments`."""
    mean, mean_square = tf.unstack(totals / _pixels(x, replicas, totals.dtype))
    return mean, tf.maximum(mean_square - mean**2, 0)


def _sum_per_channel(x: tf.Tensor) -> tf.Tensor:
    """[batch, h, w, channels] -> [channels]: first rows as they are, then the pixels of their sum. XLA's code for CPUs
    would else work on vectors of no more than the channels."""
    shape = tf.shape(x)
    rows = tf.reshape(x, [-1, shape[2] * shape[3]])
    return tf.reduce_sum(tf.reshape(tf.reduce_sum(rows, 0), [-1, shape[3]]), 0)


def _updated(running: list[tf.Tensor], batch: list[tf.Tensor], momentum: float) -> list[tf.Tensor]:
    return [momentum * old + (1 - momentum) * new for old, new in zip(running, batch, strict=True)]


def moments(x: tf.Tensor, gamma: tf.Tensor, *, relu: bool) -> tf.Tensor:
    """Returns the sums of the values and of their squares, [2, channels]."""
    wide = _widened(x, gamma.dtype, relu)
    return tf.stack([_sum_per_channel(wide), _sum_per_channel(wide * wide)])


def apply(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    totals: tf.Tensor,
    running_mean: tf.Tensor,
    running_variance: tf.Tensor,
    *,
    relu: bool,
    replicas: int,
    momentum: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the output, and the running statistics."""
    mean, variance = _mean_and_variance(x, totals, replicas)
    scale = gamma * tf.math.rsqrt(variance + EPSILON)
    y = _widened(x, gamma.dtype, relu) * scale + (beta - mean * scale)
    return tf.cast(y, x.dtype), *_updated([running_mean, running_variance], [mean, variance], momentum)


def backward_sums(x: tf.Tensor, dy: tf.Tensor, totals: tf.Tensor, *, relu: bool, replicas: int) -> tf.Tensor:
    """Returns the sums of dy and of dy times the normalised values, [2, channels]: the gradients of beta and gamma."""
    mean, variance = _mean_and_variance(x, totals, replicas)
    normalized = (_widened(x, mean.dtype, relu) - mean) * tf.math.rsqrt(variance + EPSILON)
    dy = tf.cast(dy, mean.dtype)
    return tf.stack([_sum_per_channel(dy), _sum_per_channel(dy * normalized)])


def backward_apply(
    x: tf.Tensor,
    dy: tf.Tensor,
    gamma: tf.Tensor,
    totals: tf.Tensor,
    own_sums: tf.Tensor,
    total_sums: tf.Tensor,
    *,
    relu: bool,
    replicas: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the gradients of the input, gamma and beta, by this replica's `backward_sums` and those of all."""
    mean, variance = _mean_and_variance(x, totals, replicas)
    inverse_std = tf.math.rsqrt(variance + EPSILON)
    normalized = (_widened(x, gamma.dtype, relu) - mean) * inverse_std
    mean_dy, mean_dy_normalized = tf.unstack(total_sums / _pixels(x, replicas, gamma.dtype))
    dx = gamma * inverse_std * (tf.cast(dy, gamma.dtype) - mean_dy - normalized * mean_dy_normalized)
    dx = tf.cast(tf.where(x > 0, dx, 0) if relu else dx, x.dtype)
    return dx, own_sums[1], own_sums[0]  # those of gamma and beta are summed with all others
