"""The U-Net: an encoder that halves the image, a decoder that doubles it again, joined level by level.

    network = model.unet(19, width=64, depth=5)
    logits = network(images)     # [batch, height, width, 3] in [-1, 1] -> [batch, height, width, 19]

Sources: U-Net, https://arxiv.org/abs/1505.04597 (padding 'valid', skip 'concat', no normalisation is the paper's); FCN,
https://arxiv.org/abs/1411.4038 (skip 'add'); residual blocks, https://arxiv.org/abs/1512.03385; auxiliary head,
https://arxiv.org/abs/1409.5185; dropout of whole channels, https://arxiv.org/abs/1411.4280; recomputed activations,
https://arxiv.org/abs/1604.06174.
"""

import functools
import math

import keras
import tensorflow as tf
from keras import layers

from unet.models import batch_norm
from unet.models import layers as blocks

# Precision -> the dtype policy of the layers. Variables are float32 in all but float64.
POLICIES = {
    'float32': 'float32',
    'bfloat16': 'mixed_bfloat16',
    'float16': 'mixed_float16',
    'float64': 'float64',
}

AUXILIARY_CHANNELS = 64
LAST_LEVEL = 'up0'
_GROUPS = 16  # of group normalisation, or as many as divide the channels


def unet(
    num_classes: int,
    *,
    width: int = 64,
    depth: int = 5,
    skip: str = 'concat',
    padding: str = 'same',
    up: str = 'transpose',
    residual: bool = False,
    norm: str = 'batch',
    norm_momentum: float = 0.99,
    dropout: bool = False,
    auxiliary: bool = False,
    synchronized: bool = False,
    recompute: bool = False,
    for_xla: bool = False,
    precision: str = 'float32',
) -> keras.Model:
    """Builds the network for training; `for_inference` makes of it a function of images alone.

    Level i of `depth` has width * 2**i channels: [b, h, w, 3] -> [b, h, w, width] -> [b, h/2, w/2, 2 width] -> ... and
    back. With padding 'same', height and width must divide by 2**(depth - 1); with 'valid',
    `configs.default.output_size` tells which inputs fit and how large the output is.

    Args:
      num_classes: channels of the output.
      width: channels of the first level.
      depth: number of levels.
      skip: 'concat' or 'add', how the encoder's output joins the decoder.
      padding: 'same' or 'valid'; with 'valid' the skips are cropped at the centre.
      up: 'transpose', a 2x2 transposed convolution, or 'resize', bilinear interpolation and a 1x1 convolution.
      residual: a level's input is added to what its two convolutions make of it.
      norm: 'batch', 'group' or 'none', after each ReLU.
      norm_momentum: of batch normalisation's running statistics.
      dropout: a second input, [b, 1, 1, bottom_channels], is multiplied with the bottom level's output.
      auxiliary: a second output, logits at half the resolution, from the second level of the decoder.
      synchronized: batch statistics over all replicas; needs a strategy.
      recompute: compute the levels' activations again in the backward pass instead of keeping them, all but those of
        the last convolution.
      for_xla: choose ops that XLA compiles well; changes rounding alone.
      precision: a key of `POLICIES`.

    Returns:
      A model from images in [-1, 1] to logits in float32 (float64 if that is the precision).
    """
    policy = POLICIES[precision]
    head = 'float64' if precision == 'float64' else 'float32'

    def normalise(x, name):
        if norm == 'batch':
            return batch_norm.BatchNorm(norm_momentum, synchronized, dtype=policy, name=name)(x)
        if norm == 'group':
            return layers.GroupNormalization(math.gcd(_GROUPS, x.shape[-1]), dtype=policy, name=name)(x)
        return x

    def convolution(x, channels, size, name, activation=None):
        return layers.Conv2D(
            channels,
            size,
            padding=padding,
            activation=activation,
            kernel_initializer='he_normal',
            dtype=policy,
            name=name,
        )(x)

    def convolutions(x, channels, name):
        """The output, and what the second half of this is computed from."""
        shortcut = x
        x = normalise(convolution(x, channels, 3, f'{name}_conv_a', 'relu'), f'{name}_norm_a')
        if not residual:
            return normalise(convolution(x, channels, 3, f'{name}_conv_b', 'relu'), f'{name}_norm_b'), [x]
        y = convolution(x, channels, 3, f'{name}_conv_b')
        if padding == 'valid':
            shortcut = layers.Cropping2D(2, dtype=policy, name=f'{name}_shortcut_crop')(shortcut)
        if shortcut.shape[-1] != channels:
            shortcut = convolution(shortcut, channels, 1, f'{name}_shortcut')
        y = layers.Add(dtype=policy, name=f'{name}_sum')([y, shortcut])
        return normalise(layers.ReLU(dtype=policy, name=f'{name}_relu')(y), f'{name}_norm_b'), [x, shortcut]

    def pool(x, name):
        return (blocks.MaxPoolByReshape if for_xla else layers.MaxPooling2D)(dtype=policy, name=name)(x)

    def double(x, channels, name):
        if up == 'resize':
            x = blocks.BilinearDouble(dtype=policy, name=f'{name}_resize')(x)
            x = convolution(x, channels, 1, f'{name}_up', 'relu')
        else:
            x = layers.Conv2DTranspose(
                channels,
                2,
                strides=2,
                activation='relu',
                kernel_initializer='he_normal',
                dtype=policy,
                name=f'{name}_up',
            )(x)
        return normalise(x, f'{name}_up_norm')

    def join(encoded, x, level):
        if padding == 'valid':
            encoded = layers.Cropping2D(_skip_margin(level, depth), dtype=policy, name=f'skip{level}_crop')(encoded)
        merge = layers.Concatenate if skip == 'concat' else layers.Add
        return merge(dtype=policy, name=f'skip{level}')([encoded, x])

    def down_level(x, level):
        if level:
            x = pool(x, f'pool{level}')
        return convolutions(x, width * 2**level, f'down{level}')

    def up_level(encoded, x, level):
        channels = width * 2**level
        return convolutions(join(encoded, double(x, channels, f'up{level}'), level), channels, f'up{level}')

    def part(level_function, inputs, level):
        given = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
        output, between = level_function(*given, level)
        name = level_function.__name__.replace('_level', str(level))
        whole, in_training = keras.Model(given, output, name=name), None
        if recompute and name == LAST_LEVEL:
            first, last = keras.Model(given, between), keras.Model(between, output)

            def in_training(inputs):
                # The backward pass begins with what is computed last, which would be computed again at once.
                return last(blocks.recomputed(first, inputs), training=True)

        elif recompute:
            in_training = functools.partial(blocks.recomputed, whole)
        return blocks.Part(whole, in_training, dtype=policy, name=f'{name}_part')(inputs)

    images = x = keras.Input((None, None, 3), name='images', dtype=head)
    inputs, encoded = [images], []
    for level in range(depth):
        if level:
            encoded.append(x)
        x = part(down_level, [x], level)
    if dropout:
        inputs.append(keras.Input((1, 1, bottom_channels(width, depth)), name='dropout_mask', dtype=head))
        x = layers.Multiply(dtype=policy, name='dropout')([x, inputs[1]])
    decoded = {}
    for level in reversed(range(depth - 1)):
        x = decoded[level] = part(up_level, [encoded[level], x], level)
    outputs = [layers.Conv2D(num_classes, 1, dtype=head, name='logits')(x)]
    if auxiliary:
        x = convolution(decoded[1], AUXILIARY_CHANNELS, 3, 'auxiliary_conv', 'relu')
        x = normalise(x, 'auxiliary_norm')
        outputs.append(layers.Conv2D(num_classes, 1, dtype=head, name='auxiliary_logits')(x))
    return keras.Model(inputs, outputs if auxiliary else outputs[0], name='unet')


def for_inference(network: keras.Model) -> keras.Model:
    """Of a network of `unet`, the function from images to logits, sharing its weights."""
    if len(network.inputs) == len(network.outputs) == 1:
        return network
    images = keras.Input(network.inputs[0].shape[1:], name='images', dtype=network.inputs[0].dtype)
    inputs = [images]
    for kept in network.inputs[1:]:
        ones = functools.partial(tf.ones, kept.shape[1:], kept.dtype)
        inputs.append(layers.Lambda(lambda x, ones=ones: ones()[None], output_shape=kept.shape[1:])(images))
    outputs = network(inputs)
    return keras.Model(images, outputs[0] if isinstance(outputs, list) else outputs, name='unet')


def bottom_channels(width: int, depth: int) -> int:
    """Channels of the lowest level."""
    return width * 2 ** (depth - 1)


def _skip_margin(level: int, depth: int) -> int:
    """Pixels to cut off each side of a level's encoder output so that it fits the unpadded decoder.

    The bottom's two convolutions lose 4 of its pixels, which are 8 one level up: 4 on each side. Each further level
    adds the 2 + 2 pixels that its convolutions lose on each side going down and coming up, and doubles the whole.
    """
    margin = 4
    for _ in range(depth - 2 - level):
        margin = 2 * (margin + 4)
    return margin
