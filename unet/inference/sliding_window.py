"""Large images in overlapping windows, blended at the seams.

    import tensorflow as tf
    from unet.inference import sliding_window
    from unet.models import unet

    model = unet.build_unet(unet.Architecture(19, width=8, depth=3))
    image = tf.zeros([1, 96, 160, 3])
    logits = sliding_window.windowed_logits(model, image, window=(64, 64), overlap=0.25, multiple=4)

What a padded model sees near the edge of a window is not what it would see in the whole image. So where two windows
overlap, the outer quarter of the overlap counts for nothing, and between these quarters one window fades into the next.
A model that sees no further than that quarter (its receptive field fits half the overlap) gives the logits of the
whole image. Windows begin at multiples of what the model halves its input by, so that its pooling falls alike.
"""

import functools

import keras
import tensorflow as tf


def windowed_logits(
    model: keras.Model,
    image: tf.Tensor,
    *,
    window: tuple[int, int],
    overlap: float,
    multiple: int,
    jit_compile: bool = False,
) -> tf.Tensor:
    """Returns logits [b, h, w, classes] of images [b, h, w, 3].

    Args:
      model: with padding; takes sizes that are multiples of `multiple`.
      image: [b, h, w, 3], h and w multiples of `multiple`.
      window: height and width of a window, multiples too. An image that is smaller is seen whole.
      overlap: least share of a window that the next one overlaps, at most 0.75.
      multiple: see above.
      jit_compile: compile the model with XLA: once for all images, unless they are smaller than the window.
    """
    predict = tf.function(functools.partial(model, training=False), jit_compile=True if jit_compile else None)
    batch, height, width = tf.unstack(tf.shape(image)[:3])
    tall, wide = tf.minimum(window[0], height), tf.minimum(window[1], width)
    tops, fade_down = places(height, tall, overlap, multiple)
    lefts, fade_across = places(width, wide, overlap, multiple)
    across = tf.size(lefts)

    def add(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row, column = number // across, number % across
        top, left = tops[row], lefts[column]
        part = predict(image[:, top : top + tall, left : left + wide])
        part *= tf.cast(fade_down[row][:, None, None] * fade_across[column][:, None], part.dtype)
        around = [[0, 0], [top, height - top - tall], [left, width - left - wide], [0, 0]]
        return number + 1, total + tf.pad(part, tf.convert_to_tensor(around))

    output = model.outputs[0]
    total = tf.zeros(tf.stack([batch, height, width, output.shape[-1]]), output.dtype)
    _, total = tf.while_loop(
        lambda number, _: number < tf.size(tops) * across,
        add,
        [tf.constant(0), total],
        shape_invariants=[tf.TensorShape([]), tf.TensorShape([None, None, None, output.shape[-1]])],
        parallel_iterations=1,
    )
    return total


def places(length: tf.Tensor, window: tf.Tensor, overlap: float, multiple: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes where windows lie along one side of an image, evenly, and how much each of their pixels counts.

    Args:
      length, window: pixels, multiples of `multiple`; a window is not longer than the image.
      overlap: least share of a window that the next one overlaps.
      multiple: what windows begin at multiples of.

    Returns:
      int32 [n], first pixels; float32 [n, window], weights that add up to 1 at each pixel of the image.
    """
    step = tf.maximum(tf.cast((1 - overlap) * tf.cast(window, tf.float32), tf.int32) // multiple, 1)  # in multiples
    slack = (length - window) // multiple
    count = -(-slack // step) + 1
    first = tf.range(count) * slack // tf.maximum(count - 1, 1) * multiple

    shared = tf.cast(tf.maximum(window - step * multiple, 0), tf.float32)  # pixels that two windows share at the least
    pixel = tf.range(window, dtype=tf.int32)
    distance = tf.cast(pixel, tf.float32) + 0.5  # from the window's beginning
    rise = tf.clip_by_value((distance - shared / 4) / tf.maximum(shared / 2, 1e-6), 0.0, 1.0)
    number = tf.range(count)[:, None]
    weight = tf.where(number > 0, rise, 1.0) * tf.where(number < count - 1, rise[::-1], 1.0)

    covered = first[:, None] + pixel
    total = tf.math.unsorted_segment_sum(weight, covered, length)
    return first, weight / tf.gather(total, covered)
