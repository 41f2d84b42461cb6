"""The U-Net: an encoder that halves the image level by level, a decoder that doubles it again, skips between the two.

    import tensorflow as tf
    from unet.models import unet

    model = unet.build_unet(unet.Architecture(19, width=8, depth=3))
    model(tf.zeros([1, 64, 96, 3])).shape  # images in [-1, 1] -> logits, (1, 64, 96, 19)

Level i of `depth` has width * 2**i channels and images stem * 2**i times smaller than the input:

    images -> stem -> down 0 ------------ skip 0 -----------> up 0 -> logits
                         down 1 --------- skip 1 --------> up 1 -> auxiliary logits
                            ...                         ...
                               down depth-1 -> context -> dropout

Sources: U-Net, https://arxiv.org/abs/1505.04597 (padding 'valid', skip 'concat', no normalisation is the paper's); FCN,
https://arxiv.org/abs/1411.4038 (skip 'add'); residual blocks, https://arxiv.org/abs/1512.03385; auxiliary head,
https://arxiv.org/abs/1409.5185; dropout of whole channels, https://arxiv.org/abs/1411.4280; activation recomputation,
https://arxiv.org/abs/1604.06174; dilated convolutions, https://arxiv.org/abs/1511.07122.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from unet.models import batch_norm, layers

# Precision -> the dtype policy of the layers. Variables are float32 in all but float64.
POLICIES = {
    'float32': 'float32',
    'bfloat16': 'mixed_bfloat16',
    'float16': 'mixed_float16',
    'float64': 'float64',
}

AUXILIARY_CHANNELS = 64
_GROUPS = 16  # of group normalisation, or as many as divide the channels
CONTEXT_RATES = (2, 4)  # of the dilated convolutions at the bottom


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a U-Net consists of.

    Attributes:
      num_classes: channels of the output.
      width: channels of the first level.
      depth: number of levels.
      max_width: channels that no level has more of; 0: no limit.
      stem: how many times smaller than the images the first level is, a power of two.
      context: 'none', or 'dilated': two residual dilated convolutions follow the lowest level.
      skip: 'concat' or 'add', how the encoder's output joins the decoder.
      padding: 'same' or 'valid', of the convolutions; with 'valid' the skips are cropped at the centre.
      up: 'transpose', a 2x2 transposed convolution, or 'resize', bilinear interpolation and a 1x1 convolution.
      residual: a level's input is added to what its two convolutions make of it.
      norm: 'batch', 'group' or 'none', after each ReLU.
      norm_momentum: of batch normalisation's running statistics.
      dropout: the model has a second input `dropout_mask`, [b, 1, 1, bottleneck_channels], which is multiplied with the
        bottom level's output.
      auxiliary: the model has a second output, logits from the second level of the decoder, at its resolution.
      synchronized: batch statistics are taken over all replicas; needs a strategy.
      recompute: training recomputes the levels' activations in the backward pass instead of keeping them, all but
        those of the last convolution.
      jit: 'whole': the model is for XLA to compile, so its ops are those that it does well, which changes rounding, and
        how equal maxima share a gradient; 'pieces': XLA compiles what training computes between convolutions and sums
        over replicas, each piece by itself; 'off'.
      precision: a key of `POLICIES`.
    """

    num_classes: int
    width: int = 64
    depth: int = 5
    max_width: int = 0
    stem: int = 1
    context: str = 'none'
    skip: str = 'concat'
    padding: str = 'same'
    up: str = 'transpose'
    residual: bool = False
    norm: str = 'batch'
    norm_momentum: float = 0.99
    dropout: bool = False
    auxiliary: bool = False
    synchronized: bool = False
    recompute: bool = False
    jit: str = 'off'
    precision: str = 'float32'

    def channels(self, level: int) -> int:
        """Returns the channels of a level, 0 the first: twice those of the one above, up to `max_width`."""
        channels = self.width * 2**level
        return min(channels, self.max_width or channels)

    @property
    def policy(self) -> str:
        """Returns the dtype policy of all layers but the heads."""
        return POLICIES[self.precision]

    @property
    def head_dtype(self) -> str:
        """Returns the dtype of images and logits."""
        return 'float64' if self.precision == 'float64' else 'float32'


def build_unet(arch: Architecture, image_size: tuple[int | None, int | None] = (None, None)) -> keras.Model:
    """Builds the model for training; `for_inference` makes of it a function of images alone.

    Args:
      arch: what it consists of.
      image_size: height and width that the model is for; (None, None): any that `configs.validation.output_size` takes.

    Returns:
      A model from images [b, h, w, 3] in [-1, 1] to logits [b, h, w, num_classes], both float32 (float64 if that is the
      precision); with padding 'valid' the logits are those of the centre.
    """
    images = x = keras.Input((*image_size, 3), name='images', dtype=arch.head_dtype)
    inputs, skips, decoded = [images], [], {}
    for level in range(arch.depth):
        x = _block(down, [x], level, arch)
        skips.append(x)
    if arch.dropout:
        mask = keras.Input((1, 1, arch.channels(arch.depth - 1)), name='dropout_mask', dtype=arch.head_dtype)
        x = keras.layers.Multiply(dtype=arch.policy, name='dropout')([x, mask])
        inputs.append(mask)
    for level in reversed(range(arch.depth - 1)):
        x = decoded[level] = _block(up, [skips[level], x], level, arch)
    outputs = [full_size_logits(x, arch)]
    if arch.auxiliary:
        outputs.append(auxiliary_head(decoded[1], arch))
    return keras.Model(inputs, outputs if arch.auxiliary else outputs[0], name='unet')


def down(x: keras.KerasTensor, level: int, arch: Architecture) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """Adds a level of the encoder: the stem or, below the first level, 2x2 max pooling, then a `conv_block`, whose
    results it returns; below the last level the context."""
    if level:
        pool = layers.MaxPoolByReshape if arch.jit == 'whole' else keras.layers.MaxPooling2D
        x = pool(dtype=arch.policy, name=f'pool{level}')(x)
    else:
        x = add_stem(x, arch)
    x, between = conv_block(x, arch.channels(level), f'down{level}', arch)
    if level == arch.depth - 1 and arch.context == 'dilated':
        x = add_context(x, arch)
    return x, between


def add_stem(x: keras.KerasTensor, arch: Architecture) -> keras.KerasTensor:
    """Adds the strided 3x3 convolutions, with ReLU and normalisation, of which each halves the image."""
    for number in range(stem_convolutions(arch.stem)):
        name = f'stem{number}'
        x = conv(x, arch.width, 3, f'{name}_conv', arch, relu_of_conv(arch), strides=2)
        x = add_norm(x, f'{name}_norm', arch)
    return x


def add_context(x: keras.KerasTensor, arch: Architecture) -> keras.KerasTensor:
    """Adds residual dilated 3x3 convolutions, which widen the field of view at the same resolution."""
    for rate in CONTEXT_RATES:
        name = f'context{rate}'
        y = conv(x, x.shape[-1], 3, f'{name}_conv', arch, relu_of_conv(arch), dilation_rate=rate)
        x = keras.layers.Add(dtype=arch.policy, name=f'{name}_sum')([x, add_norm(y, f'{name}_norm', arch)])
    return x


def up(
    skip: keras.KerasTensor, x: keras.KerasTensor, level: int, arch: Architecture
) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """Adds a level of the decoder: the level below at twice the size, joined with the encoder's output of this
    level, and a `conv_block`, whose results it returns."""
    channels = arch.channels(level)
    x = merge_skip(skip, upsample(x, channels, f'up{level}', arch), level, arch)
    return conv_block(x, channels, f'up{level}', arch)


def conv_block(
    x: keras.KerasTensor, channels: int, name: str, arch: Architecture
) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """Adds two 3x3 convolutions, each with ReLU and normalisation; if residual, with the input before the second ReLU.

    Returns:
      The output, and the tensors between the two convolutions that it is computed from.
    """
    shortcut = x
    x = add_norm(conv(x, channels, 3, f'{name}_conv_a', arch, relu_of_conv(arch)), f'{name}_norm_a', arch)
    if not arch.residual:
        y = conv(x, channels, 3, f'{name}_conv_b', arch, relu_of_conv(arch))
        return add_norm(y, f'{name}_norm_b', arch), [x]
    y = conv(x, channels, 3, f'{name}_conv_b', arch)
    if arch.padding == 'valid':
        shortcut = keras.layers.Cropping2D(2, dtype=arch.policy, name=f'{name}_shortcut_crop')(shortcut)
    if shortcut.shape[-1] != channels:
        shortcut = conv(shortcut, channels, 1, f'{name}_shortcut', arch)
    y = keras.layers.Add(dtype=arch.policy, name=f'{name}_sum')([y, shortcut])
    y = keras.layers.ReLU(dtype=arch.policy, name=f'{name}_relu')(y)
    return add_norm(y, f'{name}_norm_b', arch, relu=False), [x, shortcut]


def conv(
    x: keras.KerasTensor,
    channels: int,
    size: int,
    name: str,
    arch: Architecture,
    activation: str | None = None,
    *,
    strides: int = 1,
    dilation_rate: int = 1,
) -> keras.KerasTensor:
    """Adds a convolution of size x size pixels."""
    return keras.layers.Conv2D(
        channels,
        size,
        strides=strides,
        padding=arch.padding,
        dilation_rate=dilation_rate,
        activation=activation,
        kernel_initializer='he_normal',
        dtype=arch.policy,
        name=name,
    )(x)


def relu_of_conv(arch: Architecture) -> str | None:
    """Returns the activation of a convolution that `add_norm` follows; batch normalisation takes the ReLU on itself."""
    return None if arch.norm == 'batch' else 'relu'


def add_norm(x: keras.KerasTensor, name: str, arch: Architecture, *, relu: bool = True) -> keras.KerasTensor:
    """Adds batch normalisation, of the ReLU if so asked, group normalisation, or none."""
    if arch.norm == 'batch':
        return batch_norm.BatchNorm(
            arch.norm_momentum,
            relu=relu,
            synchronized=arch.synchronized,
            jit_compile=arch.jit == 'pieces',
            dtype=arch.policy,
            name=name,
        )(x)
    if arch.norm == 'group':
        groups = math.gcd(_GROUPS, x.shape[-1])
        return layers.GroupNorm(groups, jit_compile=arch.jit == 'pieces', dtype=arch.policy, name=name)(x)
    return x


def upsample(x: keras.KerasTensor, channels: int, name: str, arch: Architecture) -> keras.KerasTensor:
    """Doubles height and width, [b, h, w, c] -> [b, 2h, 2w, channels], by a transposed convolution or by interpolation
    and a 1x1 convolution."""
    if arch.up == 'resize':
        x = layers.BilinearDouble(arch.jit == 'pieces', dtype=arch.policy, name=f'{name}_resize')(x)
        x = conv(x, channels, 1, f'{name}_up', arch, relu_of_conv(arch))
    else:
        x = keras.layers.Conv2DTranspose(
            channels,
            2,
            strides=2,
            activation=relu_of_conv(arch),
            kernel_initializer='he_normal',
            dtype=arch.policy,
            name=f'{name}_up',
        )(x)
    return add_norm(x, f'{name}_up_norm', arch)


def merge_skip(skip: keras.KerasTensor, x: keras.KerasTensor, level: int, arch: Architecture) -> keras.KerasTensor:
    """Joins the encoder's output, cropped if unpadded, with the decoder's: one after the other, or as their sum."""
    if arch.padding == 'valid':
        margin = _skip_margin(level, arch.depth)
        skip = keras.layers.Cropping2D(margin, dtype=arch.policy, name=f'skip{level}_crop')(skip)
    merge = keras.layers.Concatenate if arch.skip == 'concat' else keras.layers.Add
    return merge(dtype=arch.policy, name=f'skip{level}')([skip, x])


def auxiliary_head(x: keras.KerasTensor, arch: Architecture) -> keras.KerasTensor:
    """Adds a 3x3 and a 1x1 convolution that make logits of a decoder level."""
    x = conv(x, AUXILIARY_CHANNELS, 3, 'auxiliary_conv', arch, relu_of_conv(arch))
    return _logits(add_norm(x, 'auxiliary_norm', arch), 'auxiliary_logits', arch)


def full_size_logits(x: keras.KerasTensor, arch: Architecture) -> keras.KerasTensor:
    """Adds the head, a 1x1 convolution, and brings the logits of a stem's coarse pixels to full size by interpolation.

    Thin things fared better so than with a convolution that makes the logits of each full-size pixel: docs/accuracy.md.
    """
    x = _logits(x, 'logits', arch)
    for number in range(stem_convolutions(arch.stem)):
        x = layers.BilinearDouble(arch.jit == 'pieces', dtype=arch.head_dtype, name=f'logits_double{number}')(x)
    return x


def _logits(x: keras.KerasTensor, name: str, arch: Architecture) -> keras.KerasTensor:
    return keras.layers.Conv2D(arch.num_classes, 1, dtype=arch.head_dtype, name=name)(x)


def _block(build: Callable, inputs: list[keras.KerasTensor], level: int, arch: Architecture) -> keras.KerasTensor:
    """Wraps one level, built by `down` or `up`, into a single layer, and returns its output."""
    x = [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in inputs]
    output, between = build(*x, level, arch)
    part = keras.Model(x, output, name=f'{build.__name__}{level}')
    recomputation = None
    if arch.recompute and build is up and level == 0:
        # The backward pass begins with what is computed last, which would be recomputed at once.
        recomputation = layers.Recomputation(keras.Model(x, between), kept=keras.Model(between, output))
    elif arch.recompute:
        recomputation = layers.Recomputation(part)
    stride = arch.stem * 2**level
    block = layers.RecomputeBlock(part, level, stride, recomputation, dtype=arch.policy, name=f'{part.name}_part')
    return block(inputs)


def for_inference(model: keras.Model) -> keras.Model:
    """Returns the function from images to logits of a model of `build_unet`, sharing its weights: without dropout and
    without the auxiliary head."""
    if len(model.inputs) == len(model.outputs) == 1:
        return model
    images = keras.Input(model.inputs[0].shape[1:], name='images', dtype=model.inputs[0].dtype)
    inputs = [images]
    for mask in model.inputs[1:]:
        ones = functools.partial(tf.ones, mask.shape[1:], mask.dtype)
        inputs.append(keras.layers.Lambda(lambda x, ones=ones: ones()[None], output_shape=mask.shape[1:])(images))
    outputs = model(inputs)
    return keras.Model(images, outputs[0] if isinstance(outputs, list) else outputs, name='unet')


def encoder_levels(model: keras.Model) -> list[layers.RecomputeBlock]:
    """Returns the levels of a model's encoder, from the image's own size down."""
    blocks = [layer for layer in model.layers if isinstance(layer, layers.RecomputeBlock)]
    return [block for block in blocks if block.part.name == f'{down.__name__}{block.level}']


def stem_convolutions(stem: int) -> int:
    """Returns how many convolutions of stride 2 make images so many times smaller, a power of two."""
    return stem.bit_length() - 1


def _skip_margin(level: int, depth: int) -> int:
    """Pixels to cut off each side of a level's encoder output so that it fits the unpadded decoder.

    The bottom's two convolutions lose 4 of its pixels, which are 8 one level up: 4 on each side. Each further level
    adds the 2 + 2 pixels that its convolutions lose on each side going down and coming up, and doubles the whole.
    """
    margin = 4
    for _ in range(depth - 2 - level):
        margin = 2 * (margin + 4)
    return margin
