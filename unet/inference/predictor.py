"""Images of any size -> one class per pixel.

    predict = inference.make_predictor(network, padding='same', depth=5, tile=(512, 1024), id_of_class=...)
    label_ids = predict(images)     # uint8 [batch, h, w, 3] -> uint8 [batch, h, w]

What is added around an image depends on that image alone: no prediction depends on what shares its batch.
A padded network sees the whole image, mirrored at the bottom and right up to a size that it takes. An unpadded network
sees overlapping tiles of the image mirrored on all sides, as in the U-Net paper, so that every pixel gets its class.
"""

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from configs.validation import output_size
from unet.inference import sliding_window
from unet.models import preprocess


def make_predictor(
    network: keras.Model,
    *,
    padding: str,
    depth: int,
    tile: tuple[int, int],
    id_of_class: tf.Tensor,
    resize: tuple[int, int] = (0, 0),
    resize_method: str = 'bilinear',
    window: tuple[int, int] = (0, 0),
    overlap: float = 0.25,
    jit_windows: bool = False,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of uint8 images [batch, h, w, 3] of any size that returns label ids, uint8 [batch, h, w].

    Args:
      network, padding, depth, tile, resize, resize_method, window, overlap, jit_windows: see `make_logits`.
      id_of_class: uint8 [classes], the label id of each of the network's outputs.
      scales: the network looks at the image in each of these sizes, 1 being its own, and the mean counts.
      flip: it also looks at the image mirrored left to right.
    """
    surroundings = {
        'padding': padding,
        'depth': depth,
        'tile': tile,
        'resize': resize,
        'resize_method': resize_method,
        'window': window,
        'overlap': overlap,
        'jit_windows': jit_windows,
    }
    looks = [make_logits(network, scale=scale, **surroundings) for scale in scales]
    logits_of = sliding_window.averaged(looks, flip)

    def predict(images: tf.Tensor) -> tf.Tensor:
        return tf.gather(id_of_class, tf.argmax(logits_of(images), -1, tf.int32))

    return predict


def make_logits(
    network: keras.Model,
    *,
    padding: str,
    depth: int,
    tile: tuple[int, int],
    resize: tuple[int, int] = (0, 0),
    resize_method: str = 'bilinear',
    window: tuple[int, int] = (0, 0),
    overlap: float = 0.25,
    jit_windows: bool = False,
    scale: float = 1.0,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of uint8 images [batch, h, w, 3] of any size that returns logits [batch, h, w, classes].

    Args:
      network: from images in [-1, 1] to logits.
      padding, depth: the network's.
      tile: height and width that an unpadded network is fed with.
      resize: size the network sees; (0, 0): the image's own. The logits are resized back.
      resize_method: 'bilinear' or 'nearest', of the image.
      window: height and width of the windows that a network with padding looks through, see `windows`; (0, 0): at the
        whole image.
      overlap: least share of a window that the next one covers again.
      jit_windows: compile the network for windows with XLA. A predictor with windows cannot be compiled as a whole.
      scale: the image is resized by this factor, or `resize` is multiplied by it, and the logits are resized back.
    """

    def network_logits(image: tf.Tensor) -> tf.Tensor:
        if padding == 'valid':
            margin = [(side - output_size(side, depth, padding)) // 2 for side in tile]
            return tiled_logits(network, image, tile=tile, margin=margin)
        multiple = 2 ** (depth - 1)
        if any(window):
            see = functools.partial(
                sliding_window.windowed_logits,
                network,
                window=window,
                overlap=overlap,
                multiple=multiple,
                jit_compile=jit_windows,
            )
            return padded_logits(see, image, multiple=multiple)
        return padded_logits(functools.partial(network, training=False), image, multiple=multiple)

    def logits_of(images: tf.Tensor) -> tf.Tensor:
        size = tf.shape(images)[1:3]
        resized = any(resize) or scale != 1
        if resized:
            target = tf.cast(resize if any(resize) else size, tf.float32)
            target = tf.maximum(tf.cast(tf.round(scale * target), tf.int32), 1)
            images = tf.cast(images, tf.float32)  # as TensorFlow Lite and ONNX want it
            images = preprocess.resize_image(images, target, resize_method)
        logits = network_logits(preprocess.normalize(images, network.inputs[0].dtype))
        return tf.image.resize(logits, size) if resized else logits

    return logits_of


def mirrored(size: tf.Tensor, before: int, length: tf.Tensor) -> tf.Tensor:
    """Indices int32 [length] that extend 0..size-1 by mirroring at the edge pixels, from -before on, however far."""
    period = tf.maximum(2 * (size - 1), 1)
    # Nothing negative is divided, here and below: ONNX rounds such quotients the other way.
    index = tf.math.floormod(tf.range(length) + period - before % period, period)
    return tf.where(index < size, index, period - index)


def padded_logits(network: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor, *, multiple: int) -> tf.Tensor:
    """[b, h, w, 3] -> [b, h, w, classes]: mirrored at the bottom and right up to multiples, the output cut back."""
    height, width = tf.shape(image)[1], tf.shape(image)[2]
    rows = mirrored(height, 0, (height + multiple - 1) // multiple * multiple)
    columns = mirrored(width, 0, (width + multiple - 1) // multiple * multiple)
    padded = tf.gather(tf.gather(image, rows, axis=1), columns, axis=2)
    return network(padded)[:, :height, :width]


def tiled_logits(network: keras.Model, image: tf.Tensor, *, tile: tuple[int, int], margin: list[int]) -> tf.Tensor:
    """[b, h, w, 3] -> [b, h, w, classes] from tiles whose outputs lie edge to edge.

    Args:
      network: takes [b, *tile, 3] and loses `margin` pixels on each side.
      image: [b, h, w, 3].
      tile: height and width of a tile's input.
      margin: pixels that a tile's input is larger than its output, above (and below) and left (and right).
    """
    batch, height, width = tf.shape(image)[0], tf.shape(image)[1], tf.shape(image)[2]
    step = [tile[0] - 2 * margin[0], tile[1] - 2 * margin[1]]
    down, across = (height + step[0] - 1) // step[0], (width + step[1] - 1) // step[1]
    rows = mirrored(height, margin[0], down * step[0] + 2 * margin[0])
    columns = mirrored(width, margin[1], across * step[1] + 2 * margin[1])

    def output_of(number: tf.Tensor) -> tf.Tensor:
        top, left = number // across * step[0], number % across * step[1]
        part = tf.gather(image, rows[top : top + tile[0]], axis=1)
        part = tf.gather(part, columns[left : left + tile[1]], axis=2)
        return network(tf.ensure_shape(part, [None, *tile, 3]), training=False)

    classes = network.outputs[0].shape[-1]
    outputs = tf.map_fn(
        output_of, tf.range(down * across), fn_output_signature=network.outputs[0].dtype, parallel_iterations=1
    )
    outputs = tf.reshape(outputs, tf.stack([down, across, batch, step[0], step[1], classes]))
    outputs = tf.transpose(outputs, [2, 0, 3, 1, 4, 5])
    outputs = tf.reshape(outputs, tf.stack([batch, down * step[0], across * step[1], classes]))
    return outputs[:, :height, :width]
