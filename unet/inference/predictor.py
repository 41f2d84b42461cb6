"""Images of any size -> one class per pixel.

    import tensorflow as tf
    from unet.inference import options, predictor
    from unet.models import unet

    model = unet.build_unet(unet.Architecture(19, width=8, depth=3))
    chosen = options.InferenceOptions(scales=(0.5, 1.0), flip=True)
    logits_of = predictor.make_logits(model, chosen, padding='same', depth=3, tile=(64, 96))
    predict = predictor.make_predictor(logits_of, id_of_class=tf.range(19))
    predict(tf.zeros([1, 50, 70, 3], tf.uint8)).shape  # (1, 50, 70)

What is added around an image depends on that image alone: no prediction depends on what shares its batch.
A padded model sees the whole image, mirrored at the bottom and right up to a size that it takes, or overlapping windows
of it, see `sliding_window`. An unpadded model sees overlapping tiles of the image mirrored on all sides, as in the
U-Net paper, so that every pixel gets its class.
"""

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from configs.validation import input_multiple, output_size
from unet.inference import options, sliding_window
from unet.models import preprocess


def make_predictor(
    logits_of: Callable[[tf.Tensor], tf.Tensor], id_of_class: tf.Tensor
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of uint8 images [b, h, w, 3] of any size that returns label ids, uint8 [b, h, w].

    Args:
      logits_of: from `make_logits`.
      id_of_class: uint8 [classes], the label id of each of the model's outputs.
    """

    def predict(images: tf.Tensor) -> tf.Tensor:
        # TensorFlow has no kernel on GPUs that gathers uint8.
        ids = tf.gather(tf.cast(id_of_class, tf.int32), tf.argmax(logits_of(images), -1, tf.int32))
        return tf.cast(ids, tf.uint8)

    return predict


def make_logits(
    model: keras.Model,
    inference: options.InferenceOptions,
    *,
    padding: str,
    depth: int,
    stem: int = 1,
    tile: tuple[int, int],
    resize: tuple[int, int] = (0, 0),
    resize_method: str = 'bilinear',
    jit_windows: bool = False,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of uint8 images [b, h, w, 3] of any size that returns logits [b, h, w, classes].

    Args:
      model: from images in [-1, 1] to logits.
      inference: the sliding window and test-time augmentation.
      padding, depth, stem: the model's.
      tile: height and width of the input of an unpadded model, unless `inference` has a window.
      resize: size the model sees; (0, 0): the image's own. The logits are resized back.
      resize_method: 'bilinear' or 'nearest', of the image.
      jit_windows: compile the model for windows with XLA. A predictor with windows cannot be compiled as a whole.
    """
    if padding == 'valid':
        size = inference.window if any(inference.window) else tile
        margin = [(side - output_size(side, depth, padding)) // 2 for side in size]
        logits_of_any_size = functools.partial(tiled_logits, model, tile=size, margin=margin)
    else:
        multiple = input_multiple(depth, stem)
        logits_of_multiples = functools.partial(model, training=False)
        if inference.slides(padding):
            logits_of_multiples = functools.partial(
                sliding_window.windowed_logits,
                model,
                window=inference.window,
                overlap=inference.overlap,
                multiple=multiple,
                jit_compile=jit_windows,
            )
        logits_of_any_size = functools.partial(padded_logits, logits_of_multiples, multiple=multiple)

    def logits_of(images: tf.Tensor, scale: float) -> tf.Tensor:
        size = tf.shape(images)[1:3]
        resized = any(resize) or scale != 1
        if resized:
            target = tf.cast(resize if any(resize) else size, tf.float32)
            target = tf.maximum(tf.cast(tf.round(scale * target), tf.int32), 1)
            images = tf.cast(images, tf.float32)  # as TensorFlow Lite and ONNX want it
            images = preprocess.resize_image(images, target, resize_method)
        logits = logits_of_any_size(preprocess.normalize(images, model.inputs[0].dtype))
        return tf.image.resize(logits, size) if resized else logits

    return augmented([functools.partial(logits_of, scale=scale) for scale in inference.scales], inference.flip)


def augmented(views: Sequence[Callable[[tf.Tensor], tf.Tensor]], flip: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of images [b, h, w, 3] that averages probabilities over test-time augmentations.

    Args:
      views: functions of images that return logits [b, h, w, classes], e.g. one per scale.
      flip: each of them counts for the mirrored image too.

    Returns:
      A function that returns logits [b, h, w, classes], whose softmax is the mean of the softmax of all of these.
    """

    def logits_of(images: tf.Tensor) -> tf.Tensor:
        total = 0.0
        for view in views:
            total += tf.nn.softmax(tf.cast(view(images), tf.float32))
            if flip:
                mirrored = view(tf.reverse(images, [2]))
                total += tf.reverse(tf.nn.softmax(tf.cast(mirrored, tf.float32)), [2])
        return tf.math.log(tf.maximum(total / (len(views) * (1 + flip)), 1e-37))

    return logits_of if flip or len(views) > 1 else views[0]


def mirrored(size: tf.Tensor, before: int, length: tf.Tensor) -> tf.Tensor:
    """Returns indices int32 [length] that extend 0..size-1 by mirroring at the edge pixels, from -before on, however
    far."""
    period = tf.maximum(2 * (size - 1), 1)
    # Nothing negative is divided, here and below: ONNX rounds such quotients the other way.
    index = tf.math.floormod(tf.range(length) + period - before % period, period)
    return tf.where(index < size, index, period - index)


def padded_logits(logits_of: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor, *, multiple: int) -> tf.Tensor:
    """Returns logits [b, h, w, classes] of images [b, h, w, 3], which it mirrors at the bottom and right.

    Args:
      logits_of: takes images whose height and width are multiples of `multiple`.
      image: [b, h, w, 3].
      multiple: pixels.
    """
    height, width = tf.shape(image)[1], tf.shape(image)[2]
    rows = mirrored(height, 0, (height + multiple - 1) // multiple * multiple)
    columns = mirrored(width, 0, (width + multiple - 1) // multiple * multiple)
    padded = tf.gather(tf.gather(image, rows, axis=1), columns, axis=2)
    return logits_of(padded)[:, :height, :width]


def tiled_logits(model: keras.Model, image: tf.Tensor, *, tile: tuple[int, int], margin: list[int]) -> tf.Tensor:
    """Returns logits [b, h, w, classes] of images [b, h, w, 3] from tiles whose outputs lie edge to edge.

    Args:
      model: takes [b, *tile, 3] and loses `margin` pixels on each side.
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
        return model(tf.ensure_shape(part, [None, *tile, 3]), training=False)

    classes = model.outputs[0].shape[-1]
    outputs = tf.map_fn(
        output_of, tf.range(down * across), fn_output_signature=model.outputs[0].dtype, parallel_iterations=1
    )
    outputs = tf.reshape(outputs, tf.stack([down, across, batch, step[0], step[1], classes]))
    outputs = tf.transpose(outputs, [2, 0, 3, 1, 4, 5])
    outputs = tf.reshape(outputs, tf.stack([batch, down * step[0], across * step[1], classes]))
    return outputs[:, :height, :width]
