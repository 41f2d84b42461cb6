"""Records -> batches of uint8 images and labels, every example a function of (seed, position) alone.

    batches = input_pipeline.train_batches(split, order, batch=4, crop=(512, 1024), ...)
    # {'image': [4, 512, 1024, 3] uint8, 'label': [4, 512, 1024] uint8, 'color': [4, 3] float32}

A *position* counts the examples of a run from 0: step s of a run with global batch B trains on positions s*B to
(s+1)*B - 1, however many replicas share them. The examples of each epoch are a seeded permutation of the split, and an
example's augmentation is drawn from (seed, position); so any position is reached without reading what lies before it,
and a run that was stopped goes on with exactly the examples that it would have seen.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from data_prep import records
from data_prep.labels import IGNORED

_DRAWS = 7  # random numbers per example: zoom, top, left, flip, brightness, contrast, saturation


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [size]: the examples of an epoch in the order they are trained on."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def example_at(position: int, size: int, seed: int) -> int:
    """The example of a split of `size` examples that stands at a position of the run."""
    epoch, place = divmod(position, size)
    return int(epoch_order(size, seed, epoch)[place])


def replica_positions(step: int, global_batch: int, replicas: int, replica: int) -> range:
    """The positions that one replica trains on in the step after `step` completed ones."""
    share = global_batch // replicas
    first = step * global_batch + replica * share
    return range(first, first + share)


@dataclasses.dataclass
class Reader:
    """Reads encoded examples from within a tf.data pipeline and keeps the first error for a plain message.

    tf.data wraps what a Python function raises into a TensorFlow error with a traceback as its text; the training loop
    raises `failure` instead.
    """

    split: records.Split
    failure: Exception | None = None

    def __call__(self, example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scalar int64 example number -> encoded image, encoded label image (scalar strings)."""
        image, label = tf.numpy_function(self._read, [example], (tf.string, tf.string), stateful=False)
        return tf.ensure_shape(image, []), tf.ensure_shape(label, [])

    def _read(self, example: np.ndarray) -> tuple[bytes, bytes]:
        try:
            features = records.read_example(self.split, int(example))
            return features['image_left'], features['segmentation_label']
        except Exception as error:
            self.failure = self.failure or error
            raise


def train_batches(
    reader: Reader,
    *,
    positions: Callable[[int], range],
    first: int,
    last: int,
    seed: int,
    crop: tuple[int, int],
    scale: tuple[float, float],
    flip: float,
    color: tuple[float, float, float],
    resize: tuple[int, int] = (0, 0),
    resize_method: str = 'bilinear',
    cache: bool = False,
    dropout: float = 0.0,
    dropout_channels: int = 0,
) -> tf.data.Dataset:
    """The training batches of one replica, or of several in turn.

    Args:
      reader: of the training split.
      positions: batch number -> the positions in that batch, for batches from 0; all batches have one size.
      first, last: the batches from `first` to before `last` are made; those before are not even read.
      seed: of order and augmentation.
      crop: height and width of what is returned, pixels.
      scale: random zoom, (smallest, largest).
      flip: probability of a left-right flip.
      color: largest brightness shift, contrast and saturation change; see `color_jitter`.
      resize: height and width that the stored image is resized to first; (0, 0): as stored.
      resize_method: 'bilinear' or 'nearest', of images; labels are always taken from the nearest pixel.
      cache: keep the decoded and resized examples in memory. Augmentation comes after the cache.
      dropout: probability with which each of `dropout_channels` channels is left out, drawn for each example like its
        augmentation, so that it does not depend on the number of replicas.

    Yields:
      'image' uint8 [batch, height, width, 3], 'label' uint8 [batch, height, width] (label ids; 255 beyond the image's
      border), 'color' float32 [batch, 3]; with dropout 'kept' float32 [batch, 1, 1, dropout_channels], 0 for channels
      left out and 1 / (1 - dropout) for the others.
    """
    size = len(reader.split)
    batch = len(positions(0))
    whole = functools.partial(_decode, reader, resize=resize, resize_method=resize_method)
    if cache:
        whole = _cached(whole)
    only_the_crop = not (cache or any(resize))

    def locate(number: np.ndarray) -> np.ndarray:
        return np.array([(place, example_at(place, size, seed)) for place in positions(int(number))], np.int64)

    def augmented(place_and_example: tf.Tensor) -> dict[str, tf.Tensor]:
        position, example = place_and_example[0], place_and_example[1]
        seeds = tf.stack([tf.constant(seed, tf.int64), position])
        draws = tf.random.stateless_uniform([_DRAWS], seeds)
        if only_the_crop:
            encoded, label = reader(example)
            label = tf.io.decode_png(label, channels=1)
        else:
            image, label = whole(example)
        window, flipped = _window(tf.shape(label)[:2], crop, scale, draws), draws[3] < flip
        image = _decode_window(encoded, window) if only_the_crop else _cut(image, window)
        label = _cut(label, window)
        image, label = _fit(image, label, window, crop)
        image = tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image)
        label = tf.cond(flipped, lambda: tf.reverse(label, [1]), lambda: label)
        made = {'image': image, 'label': label[..., 0], 'color': (2.0 * draws[4:] - 1.0) * tf.constant(color)}
        if dropout:
            channels = tf.random.stateless_uniform(
                [1, 1, dropout_channels], tf.random.experimental.stateless_fold_in(seeds, 1)
            )
            made['kept'] = tf.cast(channels >= dropout, tf.float32) / (1 - dropout)
        return made

    dataset = tf.data.Dataset.range(first, last)
    dataset = dataset.map(
        lambda n: tf.ensure_shape(tf.numpy_function(locate, [n], tf.int64, stateful=False), [batch, 2])
    )
    dataset = dataset.unbatch()
    dataset = dataset.map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _decode(
    reader: Reader, example: tf.Tensor, resize: tuple[int, int], resize_method: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Whole image uint8 [h, w, 3] and label uint8 [h, w, 1], resized if asked to."""
    image, label = reader(example)
    image = tf.io.decode_image(image, channels=3, expand_animations=False)
    label = tf.io.decode_png(label, channels=1)
    if any(resize):
        image, label = resize_image(image, resize, resize_method), tf.image.resize(label, resize, 'nearest')
    return image, label


def resize_image(image: tf.Tensor, size: tuple[int, int], method: str) -> tf.Tensor:
    """uint8 [..., h, w, 3] -> uint8 [..., *size, 3]."""
    resized = tf.image.resize(image, size, method)
    return resized if resized.dtype == tf.uint8 else tf.cast(tf.round(resized), tf.uint8)


def _cached(load: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]) -> Callable:
    """Keeps what `load` returns for each example in memory, whatever the order examples are asked for."""
    kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def cached(example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def remember(number, image, label):
            kept[int(number)] = (image, label)
            return image, label

        call = functools.partial(tf.numpy_function, stateful=False)  # one example always gives the same answer
        image, label = tf.cond(
            call(lambda number: int(number) in kept, [example], tf.bool),
            lambda: call(lambda number: kept[int(number)], [example], (tf.uint8, tf.uint8)),
            lambda: call(remember, [example, *load(example)], (tf.uint8, tf.uint8)),
        )
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None, 1])

    return cached


def _window(shape: tf.Tensor, crop: tuple[int, int], scale: tuple[float, float], draws: tf.Tensor) -> tf.Tensor:
    """The part of the image that becomes the crop: int32 [4] top, left, height, width in pixels of the image.

    It may be larger than the image; then the image lies at a random place within it.
    """
    zoom = scale[0] + (scale[1] - scale[0]) * draws[0]
    window = tf.cast(tf.round(tf.constant(crop, tf.float32) / zoom), tf.int32)
    slack = shape - window  # negative where the window is larger
    # floor(draw * (slack + 1)) is uniform over 0..slack; mirrored for a negative slack.
    place = tf.cast(tf.floor(draws[1:3] * tf.cast(tf.abs(slack) + 1, tf.float32)), tf.int32)
    return tf.concat([tf.sign(slack) * tf.minimum(place, tf.abs(slack)), window], 0)


def _visible(shape: tf.Tensor, window: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Top left and size, int32 [2] each, of the part of the window that lies within an image of that shape."""
    first = tf.maximum(window[:2], 0)
    return first, tf.minimum(window[:2] + window[2:], shape[:2]) - first


def _cut(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """The visible part of the window out of a decoded image [h, w, c]."""
    first, size = _visible(tf.shape(image), window)
    return image[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]


def _decode_window(encoded: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """The visible part of the window, of a JPEG without decoding the rest: uint8 [h, w, 3]."""

    def jpeg():
        first, size = _visible(tf.image.extract_jpeg_shape(encoded), window)
        return tf.image.decode_and_crop_jpeg(encoded, tf.concat([first, size], 0), channels=3)

    return tf.cond(tf.io.is_jpeg(encoded), jpeg, lambda: _cut(tf.io.decode_png(encoded, channels=3), window))


def _fit(image: tf.Tensor, label: tf.Tensor, window: tf.Tensor, crop: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """The visible part, bordered with mid-grey and void up to the window, zoomed to the crop."""
    before = tf.maximum(-window[:2], 0)
    after = window[2:] - before - tf.shape(label)[:2]
    borders = tf.pad(tf.stack([before, after], 1), [[0, 1], [0, 0]])
    image = tf.pad(image, borders, constant_values=127)
    label = tf.pad(label, borders, constant_values=IGNORED)
    image = tf.cond(tf.reduce_all(window[2:] == crop), lambda: image, lambda: resize_image(image, crop, 'bilinear'))
    label = tf.image.resize(label, crop, 'nearest')
    return tf.ensure_shape(image, [*crop, 3]), tf.ensure_shape(label, [*crop, 1])


def color_jitter(image: tf.Tensor, color: tf.Tensor) -> tf.Tensor:
    """Applies each example's drawn colour change; runs on the accelerator.

    Args:
      image: [batch, h, w, 3] in [-1, 1].
      color: [batch, 3]: brightness added (a share of full scale), contrast and saturation changes, 0 for none.

    Returns:
      [batch, h, w, 3] in [-1, 1].
    """
    brightness, contrast, saturation = (color[:, i, None, None, None] for i in range(3))
    mean = tf.reduce_mean(image, [1, 2, 3], keepdims=True)
    image = mean + (image - mean) * (1 + contrast)
    grey = tf.tensordot(image, tf.constant([0.299, 0.587, 0.114], image.dtype), 1)[..., None]  # ITU-R BT.601 luma
    image = grey + (image - grey) * (1 + saturation) + 2 * brightness
    return tf.clip_by_value(image, -1.0, 1.0)


def normalize(image: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """uint8 0..255 -> [-1, 1]."""
    return tf.cast(image, dtype) / 127.5 - 1.0


def eval_batches(split: records.Split, batch: int, replicas: int) -> np.ndarray:
    """Groups all examples into batches of one image size each, every example once.

    Returns:
      int64 [batches, batch], -1 where a batch has no further example. The number of batches divides by `replicas`, so
      that all replicas take equally many; those that fill up are all -1.
    """
    order = np.lexsort((np.arange(len(split)), split.width, split.height))
    sizes = np.stack([split.height[order], split.width[order]], 1)
    groups = np.split(order, np.flatnonzero((sizes[1:] != sizes[:-1]).any(1)) + 1)
    rows = []
    for group in groups:
        padded = np.append(group, np.full(-len(group) % batch, -1)).reshape(-1, batch)
        rows.append(padded)
    rows.append(np.full((-sum(map(len, rows)) % replicas, batch), -1))
    return np.concatenate(rows).astype(np.int64)


def eval_dataset(reader: Reader, batches: np.ndarray) -> tf.data.Dataset:
    """Decodes batches of examples as they are stored.

    Args:
      reader: of the split.
      batches: int64 [n, batch], as `eval_batches` makes them.

    Yields:
      'example' int64 [b], 'image' uint8 [b, h, w, 3] and 'label' uint8 [b, h, w] in label ids, b the batch's examples.
      A batch of none has one void image of 16x16, so that no layer ever sees an empty tensor.
    """

    def decode(example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = _decode(reader, example, (0, 0), 'bilinear')
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label[..., 0], [None, None])

    def load(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        examples = tf.boolean_mask(examples, examples >= 0)
        image, label = tf.cond(
            tf.size(examples) > 0,
            lambda: tf.map_fn(decode, examples, fn_output_signature=(tf.uint8, tf.uint8)),
            lambda: (tf.zeros([1, 16, 16, 3], tf.uint8), tf.fill([1, 16, 16], tf.constant(IGNORED, tf.uint8))),
        )
        return {
            'example': examples,
            'image': tf.ensure_shape(image, [None, None, None, 3]),
            'label': tf.ensure_shape(label, [None, None, None]),
        }

    dataset = tf.data.Dataset.from_tensor_slices(batches)
    return dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)
