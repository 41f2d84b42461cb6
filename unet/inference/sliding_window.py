"""Large images in overlapping windows, blended at the seams, and the mean over several looks at an image.

    logits = sliding_window.windowed_logits(network, image, window=(512, 1024), overlap=0.25, multiple=16)
    logits_of = sliding_window.averaged([make_logits(net, scale=s, ...) for s in (0.5, 1.0, 2.0)], flip=True)

What a padded network sees near the edge of a window is not what it would see in the whole image. So where two windows
overlap, the outer quarter of the overlap counts for nothing, and between these quarters one window fades into the next.
A network that looks no further than that quarter (its receptive field fits half the overlap) gives the logits of the
whole image. Windows begin at multiples of what the network halves its input by, so that its pooling falls alike.
"""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf


def windowed_logits(
    network: keras.Model,
    image: tf.Tensor,
    *,
    window: tuple[int, int],
    overlap: float,
    multiple: int,
    jit_compile: bool = False,
) -> tf.Tensor:
    """[b, h, w, 3] -> [b, h, w, classes].

    Args:
      network: with padding; takes sizes that are multiples of `multiple`.
      image: [b, h, w, 3], h and w multiples of `multiple`.
      window: height and width of a window, multiples too. An image that is smaller is seen whole.
      overlap: least share of a window that the next one covers again, at most 0.75.
      multiple: see above.
      jit_compile: compile the network with XLA: once for all images, unless they are smaller than the window.
    """
    see = tf.function(functools.partial(network, training=False), jit_compile=True if jit_compile else None)
    batch, height, width = tf.unstack(tf.shape(image)[:3])
    tall, wide = tf.minimum(window[0], height), tf.minimum(window[1], width)
    tops, fade_down = places(height, tall, overlap, multiple)
    lefts, fade_across = places(width, wide, overlap, multiple)
    across = tf.size(lefts)

    def add(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row, column = number // across, number % across
        top, left = tops[row], lefts[column]
        part = see(image[:, top : top + tall, left : left + wide])
        part *= tf.cast(fade_down[row][:, None, None] * fade_across[column][:, None], part.dtype)
        around = [[0, 0], [top, height - top - tall], [left, width - left - wide], [0, 0]]
        return number + 1, total + tf.pad(part, tf.convert_to_tensor(around))

    output = network.outputs[0]
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
    """Where windows lie along one side of an image, evenly, and how much each of their pixels counts.

    Args:
      length, window: pixels, multiples of `multiple`; a window is not longer than the image.
      overlap: least share of a window that the next one covers again.
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


def averaged(looks: list[Callable[[tf.Tensor], tf.Tensor]], flip: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """One function of images [b, h, w, 3] that returns logits [b, h, w, classes], whose softmax is the mean of the
    softmax of all `looks`, which are such functions, each also at the mirrored image if `flip` is set."""

    def logits_of(images: tf.Tensor) -> tf.Tensor:
        total = 0.0
        for look in looks:
            total += tf.nn.softmax(tf.cast(look(images), tf.float32))
            if flip:
                mirrored = look(tf.reverse(images, [2]))
                total += tf.reverse(tf.nn.softmax(tf.cast(mirrored, tf.float32)), [2])
        return tf.math.log(tf.maximum(total / (len(looks) * (1 + flip)), 1e-37))

    return logits_of if flip or len(looks) > 1 else looks[0]
