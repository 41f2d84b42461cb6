"""Batch normalisation folded into the convolutions before it, for exports.

    from unet.exporting import fold_batch_norm
    from unet.models import unet

    model = unet.build_unet(unet.Architecture(19, width=8, depth=3))
    fold_batch_norm.fold(model)  # predicts the same, to rounding

In evaluation a block computes scale * relu(conv(x)) + shift. Since scale * relu(z) = sign(scale) * relu(|scale| * z),
|scale| goes into the convolution's kernel and bias. What is left of the normalisation is a sum with a constant, and
a sign where a scale is negative. In int8 this matters most: a kernel is quantised per channel, a product with a vector
of scales of very different size is not. (The shift stays: behind it the next convolution pads with zeros.)
"""

import keras
import numpy as np

from unet.models import batch_norm, layers


def fold(model: keras.Model) -> None:
    """Rewrites the weights of a model of `unet.build_unet`, which must not be trained any further.

    Normalisation of anything but one convolution's output, such as a residual block's sum, stays as it is.
    """
    for layer in model.layers:
        if isinstance(layer, layers.RecomputeBlock):
            fold(layer.part)
    outputs = {id(layer.output): layer for layer in model.layers if not isinstance(layer, layers.RecomputeBlock)}
    for norm in model.layers:
        if not isinstance(norm, batch_norm.BatchNorm):
            continue
        convolution = outputs.get(id(norm.input))
        if not isinstance(convolution, keras.layers.Conv2D | keras.layers.Conv2DTranspose):
            continue
        if convolution.activation not in (keras.activations.relu, keras.activations.linear):
            continue
        scale, shift = (values.numpy().astype(np.float64) for values in norm.scale_and_shift())
        size = np.abs(scale)
        kernel, bias = (variable.numpy().astype(np.float64) for variable in (convolution.kernel, convolution.bias))
        channels_last = not isinstance(convolution, keras.layers.Conv2DTranspose)
        convolution.kernel.assign(kernel * (size if channels_last else size[:, None]))
        convolution.bias.assign(bias * size)
        norm.gamma.assign(np.where(scale < 0, -1.0, 1.0))
        norm.beta.assign(shift)
        norm.moving_mean.assign(np.zeros_like(shift))
        norm.moving_variance.assign(np.full_like(shift, 1 - batch_norm.EPSILON))
