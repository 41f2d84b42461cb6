"""Batch normalisation over the global batch.

Keras's layer computes the same from many full-size intermediates (a third of the U-Net's step on a CPU); this one uses
TensorFlow's fused op on one replica, and on several keeps one tensor for the backward pass besides its input.

    import tensorflow as tf
    from unet.models import batch_norm

    norm = batch_norm.BatchNorm(momentum=0.99, synchronized=False)
    norm(tf.random.uniform([2, 8, 8, 3]), training=True)  # each channel has mean 0 and variance 1
"""

import keras
import tensorflow as tf

EPSILON = 1e-3


class BatchNorm(keras.layers.Layer):
    """Normalises each channel to mean 0 and variance 1 over the global batch, then scales and shifts it.

    [batch, h, w, channels] -> the same, in the layer's compute dtype; statistics are taken in at least float32. All
    replicas must hold equally many pixels. In evaluation the running statistics are used, which are updated as
    `momentum * running + (1 - momentum) * batch`, with the biased variance.

    Source: https://arxiv.org/abs/1502.03167.
    """

    def __init__(self, momentum: float, synchronized: bool, **kwargs):
        super().__init__(**kwargs)
        self._momentum = momentum
        self._synchronized = synchronized

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
            return x * tf.cast(scale, x.dtype) + tf.cast(shift, x.dtype)
        if self._synchronized or x.dtype == tf.float64:  # which the fused op does not know
            y, mean, variance = _synchronized_norm(x, gamma, beta)
        else:
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=EPSILON)
            pixels = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
            variance *= (pixels - 1) / pixels  # it returns the unbiased one
        for running, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            running.value.assign(self._momentum * running.value + (1 - self._momentum) * batch)
        return y

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what evaluation multiplies with and adds, [channels] each."""
        scale = self.gamma.value * tf.math.rsqrt(self.moving_variance.value + EPSILON)
        return scale, self.beta.value - self.moving_mean.value * scale


def _synchronized_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Output, mean and biased variance per channel over all replicas."""
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync

    def mean_over_replicas(values: tf.Tensor) -> tf.Tensor:
        """Turns [k, channels], sums over the replica's pixels, into means over the pixels of all replicas."""
        if replicas > 1:
            values = context.all_reduce(tf.distribute.ReduceOp.SUM, values)
        return values / tf.cast(tf.size(x) // x.shape[-1] * replicas, values.dtype)

    @tf.custom_gradient
    def norm(x, gamma, beta):
        wide = tf.cast(x, gamma.dtype)
        moments = mean_over_replicas(tf.stack([tf.reduce_sum(wide, [0, 1, 2]), tf.reduce_sum(wide * wide, [0, 1, 2])]))
        mean, variance = moments[0], tf.maximum(moments[1] - moments[0] ** 2, 0)
        inverse_std = tf.math.rsqrt(variance + EPSILON)
        y = wide * (gamma * inverse_std) + (beta - mean * gamma * inverse_std)

        def gradient(dy, *_):
            wide, dy = tf.cast(x, gamma.dtype), tf.cast(dy, gamma.dtype)
            centered = (wide - mean) * inverse_std
            local = tf.stack([tf.reduce_sum(dy, [0, 1, 2]), tf.reduce_sum(dy * centered, [0, 1, 2])])
            means = mean_over_replicas(tf.identity(local))
            dx = gamma * inverse_std * (dy - means[0] - centered * means[1])
            return tf.cast(dx, x.dtype), local[1], local[0]  # those of gamma and beta are summed with all others

        return (tf.cast(y, x.dtype), mean, variance), gradient

    return norm(x, gamma, beta)
