"""The U-Net: an encoder that halves the image, a decoder that doubles it again, joined level by level.

    network = model.unet(19, width=64, depth=5)
    logits = network(images)     # [batch, height, width, 3] in [-1, 1] -> [batch, height, width, 19]

Sources: U-Net, https://arxiv.org/abs/1505.04597 (padding 'valid', skip 'concat', no normalisation is the paper's); FCN,
https://arxiv.org/abs/1411.4038 (skip 'add').
"""

import keras
import tensorflow as tf
from keras import layers

from unet import normalization

# Precision -> the dtype policy of the layers. Variables are float32 in all but float64.
POLICIES = {
    'float32': 'float32',
    'bfloat16': 'mixed_bfloat16',
    'float16': 'mixed_float16',
    'float64': 'float64',
}


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


def unet(
    num_classes: int,
    *,
    width: int = 64,
    depth: int = 5,
    skip: str = 'concat',
    padding: str = 'same',
    norm: str = 'batch',
    norm_momentum: float = 0.99,
    synchronized: bool = False,
    for_xla: bool = False,
    precision: str = 'float32',
) -> keras.Model:
    """Builds the network.

    Level i of `depth` has width * 2**i channels: [b, h, w, 3] -> [b, h, w, width] -> [b, h/2, w/2, 2 width] -> ... and
    back. With padding 'same', height and width must divide by 2**(depth - 1); with 'valid',
    `configs.default.output_size` tells which inputs fit and how large the output is.

    Args:
      num_classes: channels of the output.
      width: channels of the first level.
      depth: number of levels.
      skip: 'concat' or 'add', how the encoder's output joins the decoder.
      padding: 'same' or 'valid'; with 'valid' the skips are cropped at the centre.
      norm: 'batch' or 'none', after each ReLU.
      norm_momentum: of batch normalisation's running statistics.
      synchronized: batch statistics over all replicas; needs a strategy.
      for_xla: choose ops that XLA compiles well; changes rounding alone.
      precision: a key of `POLICIES`.

    Returns:
      A model from images in [-1, 1] to logits in float32 (float64 if that is the precision).
    """
    policy = POLICIES[precision]

    def normalise(x, name):
        if norm == 'none':
            return x
        return normalization.BatchNorm(norm_momentum, synchronized, dtype=policy, name=name)(x)

    def convolutions(x, channels, name):
        for part in ('a', 'b'):
            x = layers.Conv2D(
                channels,
                3,
                padding=padding,
                activation='relu',
                kernel_initializer='he_normal',
                dtype=policy,
                name=f'{name}_conv_{part}',
            )(x)
            x = normalise(x, f'{name}_norm_{part}')
        return x

    def up(x, channels, name):
        x = layers.Conv2DTranspose(
            channels, 2, strides=2, activation='relu', kernel_initializer='he_normal', dtype=policy, name=f'{name}_up'
        )(x)
        return normalise(x, f'{name}_up_norm')

    def pool(x, name):
        return (MaxPoolByReshape if for_xla else layers.MaxPooling2D)(dtype=policy, name=name)(x)

    def join(encoded, x, level):
        if padding == 'valid':
            encoded = layers.Cropping2D(_skip_margin(level, depth), dtype=policy, name=f'skip{level}_crop')(encoded)
        merge = layers.Concatenate if skip == 'concat' else layers.Add
        return merge(dtype=policy, name=f'skip{level}')([encoded, x])

    images = x = keras.Input((None, None, 3), name='images', dtype='float64' if precision == 'float64' else 'float32')
    encoded = []
    for level in range(depth):
        if level:
            encoded.append(x)
            x = pool(x, f'pool{level}')
        x = convolutions(x, width * 2**level, f'down{level}')
    for level in reversed(range(depth - 1)):
        x = up(x, width * 2**level, f'up{level}')
        x = convolutions(join(encoded[level], x, level), width * 2**level, f'up{level}')
    head = 'float64' if precision == 'float64' else 'float32'
    logits = layers.Conv2D(num_classes, 1, dtype=head, name='logits')(x)
    return keras.Model(images, logits, name='unet')


def _skip_margin(level: int, depth: int) -> int:
    """Pixels to cut off each side of a level's encoder output so that it fits the unpadded decoder.

    The bottom's two convolutions lose 4 of its pixels, which are 8 one level up: 4 on each side. Each further level
    adds the 2 + 2 pixels that its convolutions lose on each side going down and coming up, and doubles the whole.
    """
    margin = 4
    for _ in range(depth - 2 - level):
        margin = 2 * (margin + 4)
    return margin
