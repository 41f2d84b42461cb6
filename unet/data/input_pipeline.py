"""Makes batches of uint8 images and labels from records, every example a function of (seed, position) alone.

    reader = input_pipeline.Reader(split)
    sampler = crops.Sampler(input_pipeline.image_sizes(split), seed=1, crop=(512, 1024), scale=(0.5, 2.0))
    make_example = input_pipeline.ExampleMaker(reader, sampler, flip=0.5, color=(0.1, 0.1, 0.1))
    image, label, color = make_example(0)       # uint8 [512, 1024, 3], uint8 [512, 1024], float32 [3]

A *position* counts the examples of a run from 0: step s of a run with global batch B trains on positions s*B to
(s+1)*B - 1, however many replicas share them. Which crop of which image an example shows (`crops`) and its augmentation
are drawn from (seed, position); so any position is reached without reading what lies before it, and a run that was
stopped goes on with exactly the examples that it would have seen.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from data_prep import records, tfrecord
from data_prep.labels import IGNORED
from launch import entry
from unet.data import cache as example_cache
from unet.data import crops, decoding

_GREY = 127  # of pixels beyond an image's border
_COLOR_DRAWS = 3  # brightness, contrast, saturation, beside those of window and flip; more colours are drawn apart


def replica_positions(step: int, global_batch: int, replicas: int, replica: int) -> range:
    """Returns the positions that one replica trains on in the step after `step` completed ones."""
    share = global_batch // replicas
    first = step * global_batch + replica * share
    return range(first, first + share)


@dataclasses.dataclass
class Reader:
    """Reads encoded examples and keeps the first error for a plain message.

    tf.data wraps what a Python function raises into a TensorFlow error with a traceback as its text; the training loop
    raises `failure` instead.
    """

    split: records.Split
    failure: Exception | None = None

    def read(self, example: int) -> tuple[memoryview, memoryview]:
        """Reads the encoded image and label image."""
        features = tfrecord.parse_in_place(records.read_serialized(self.split, example))
        return features['image_left'], features['segmentation_label']

    def decode_image(self, example: int, encoded: memoryview, window: crops.Window) -> np.ndarray:
        """Decodes a window of the image, uint8 [h, w, 3], mid-grey beyond its border.

        Raises:
          UserError: BAD_DATA, naming the image, if it cannot be decoded.
        """
        return self._decode(example, encoded, window, channels=3, fill=_GREY)

    def decode_label(self, example: int, encoded: memoryview, window: crops.Window) -> np.ndarray:
        """Decodes a window of the label, uint8 [h, w, 1], void beyond its border; raises as `decode_image`."""
        return self._decode(example, encoded, window, channels=1, fill=IGNORED)

    def _decode(
        self, example: int, encoded: memoryview, window: crops.Window, *, channels: int, fill: int
    ) -> np.ndarray:
        try:
            return decoding.read_window(encoded, window, channels=channels, fill=fill, size=self.size(example))
        except ValueError as error:
            raise entry.UserError(
                entry.BAD_DATA,
                f'{self.split.paths[self.split.shard[example]]}: image or label of {self.split.image_ids[example]} '
                f'cannot be decoded: {error}. Run python -m data_prep.verify_tfrecords to find all such records, then '
                'build the folder again.',
            ) from error

    def size(self, example: int) -> tuple[int, int]:
        """Returns the height and width of the stored image."""
        return int(self.split.height[example]), int(self.split.width[example])

    def numpy_function(
        self, function: Callable[[np.ndarray], tuple[np.ndarray, ...]], types: tuple[tf.DType, ...]
    ) -> Callable[[tf.Tensor], list[tf.Tensor]]:
        """Makes a Python function into one that tf.data can map, and keeps the first error that it raises.

        Args:
          function: of one array, whose results depend on nothing else.
          types: of its results.
        """

        def call(argument: np.ndarray) -> tuple[np.ndarray, ...]:
            try:
                return function(argument)
            except Exception as error:
                self.failure = self.failure or error
                raise

        return lambda argument: tf.numpy_function(call, [argument], types, stateful=False)


class ExampleMaker:
    """Makes the training example at a position, in any thread and on any host the same.

    Args:
      reader: of the training split.
      sampler: draws example and window.
      flip: probability of a left-right flip.
      color: largest change of each kind, see `preprocess.COLOR_CHANGES`: of the first three or of all.
      resize: height and width that the stored image is resized to first; (0, 0): as stored.
      resize_method: 'bilinear' or 'nearest', of images; labels are always taken from the nearest pixel.
      cache: keep the decoded and resized examples. Augmentation comes after the cache.
      cache_dir: the folder on a local disk to keep them in; None: in memory.
      dropout: probability with which each of `dropout_channels` channels is left out, drawn for each example like its
        augmentation, so that it does not depend on the number of replicas.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: crops.Sampler,
        *,
        flip: float,
        color: tuple[float, ...],
        resize: tuple[int, int] = (0, 0),
        resize_method: str = 'bilinear',
        cache: bool = False,
        cache_dir: str | None = None,
        dropout: float = 0.0,
        dropout_channels: int = 0,
    ):
        self._reader = reader
        self._sampler = sampler
        self._flip = flip
        self._color = color
        self._dropout = dropout
        self._dropout_channels = dropout_channels
        self._stored_sizes = image_sizes(reader.split)
        self._cached = cache
        smooth = resize_method == 'bilinear'
        load: example_cache.Load = functools.partial(read_whole, reader, resize=resize, smooth=smooth)
        if cache:
            in_file = cache_dir is not None
            load = example_cache.on_disk(load, sampler.sizes, cache_dir) if in_file else example_cache.in_memory(load)
        self._load_whole = load

    def __call__(self, position: int) -> tuple[np.ndarray, ...]:
        """Returns what `train_batches` yields, without the batch."""
        random = crops.generator(position, self._sampler.seed)
        window_draws, flip_draw, color_draws = random.random(3), random.random(), random.random(_COLOR_DRAWS)
        image, label = self._first_accepted(position, window_draws)
        image, label = augment(image, label, self._sampler.crop, flip=flip_draw < self._flip)
        if len(self._color) > _COLOR_DRAWS:
            more = crops.generator(position, self._sampler.seed, stream=2)
            color_draws = np.append(color_draws, more.random(len(self._color) - _COLOR_DRAWS))
        color_change = ((2 * color_draws - 1) * self._color).astype(np.float32)
        if not self._dropout:
            return image, label, color_change
        kept = random.random((1, 1, self._dropout_channels)) >= self._dropout
        return image, label, color_change, (kept / (1 - self._dropout)).astype(np.float32)

    def _first_accepted(self, position: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decodes image and label of the first window whose label is accepted, or of the last."""
        for example, window in self._sampler.candidates(position, draws):
            label, decode_image = self._open(example, window)
            if self._sampler.accepts(label):
                break
        return decode_image(), label

    def _open(self, example: int, window: crops.Window) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        """Returns the window of the label, and what decodes that of the image."""
        if self._cached or (self._sampler.sizes[example] != self._stored_sizes[example]).any():
            image, label = self._load_whole(example)
            return decoding.cut_window(label, window, IGNORED), lambda: decoding.cut_window(image, window, _GREY)
        encoded, encoded_label = self._reader.read(example)
        label = self._reader.decode_label(example, encoded_label, window)
        return label, lambda: self._reader.decode_image(example, encoded, window)


def image_sizes(split: records.Split) -> np.ndarray:
    """Returns int [examples, 2], height and width of the stored images."""
    return np.stack([split.height, split.width], 1)


def augment(
    image: np.ndarray, label: np.ndarray, crop: tuple[int, int], *, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Zooms and mirrors a window.

    Args:
      image: uint8 [h, w, 3].
      label: uint8 [h, w, 1].
      crop: height and width that both are brought to.
      flip: mirror both left to right.

    Returns:
      The crop uint8 [*crop, 3], and its label uint8 [*crop].
    """
    image = decoding.resize(image, crop, smooth=True, flip=flip)
    return image, decoding.resize(label, crop, smooth=False, flip=flip)[..., 0]


def read_whole(reader: Reader, example: int, resize: tuple[int, int], smooth: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reads a whole example, resized unless `resize` is (0, 0): image uint8 [h, w, 3], label uint8 [h, w, 1]."""
    encoded, window = reader.read(example), (0, 0, *reader.size(example))
    image = reader.decode_image(example, encoded[0], window)
    label = reader.decode_label(example, encoded[1], window)
    if any(resize):
        image, label = decoding.resize(image, resize, smooth=smooth), decoding.resize(label, resize, smooth=False)
    return image, label


def train_batches(
    reader: Reader,
    make_example: Callable[[int], tuple[np.ndarray, ...]],
    *,
    crop: tuple[int, int],
    color_changes: int = 3,
    dropout_channels: int = 0,
    positions: Callable[[int], range],
    first: int,
    last: int | None = None,
) -> tf.data.Dataset:
    """Makes the training batches of one replica, or of several in turn.

    Args:
      reader: of the training split; keeps the first error.
      make_example: an `ExampleMaker`.
      crop: height and width of its examples.
      color_changes: that it draws for each.
      dropout_channels: channels of the dropout mask that it draws; 0: it draws none.
      positions: batch number -> the positions in that batch, for batches from 0; all batches have one size.
      first, last: the batches from `first` to before `last` are made; those before are not even read. None: without
        end. Over several workers only that has no hidden all-reduce per batch, which asks whether all have one.

    Yields:
      'image' uint8 [batch, height, width, 3], 'label' uint8 [batch, height, width] (label ids; 255 beyond the image's
      border), 'color' float32 [batch, color_changes]; with dropout 'dropout_mask' float32 [batch, 1, 1,
      dropout_channels], 0 for channels left out and 1 / (1 - dropout) for the others.
    """
    batch = len(positions(0))
    parts = {'image': (tf.uint8, (*crop, 3)), 'label': (tf.uint8, tuple(crop)), 'color': (tf.float32, (color_changes,))}
    if dropout_channels:
        parts['dropout_mask'] = tf.float32, (1, 1, dropout_channels)

    def example_of(number: np.ndarray) -> tuple[np.ndarray, ...]:  # the number counts examples over all batches
        return make_example(positions(int(number) // batch)[int(number) % batch])

    call = reader.numpy_function(example_of, tuple(dtype for dtype, _ in parts.values()))

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        named = zip(parts.items(), call(number), strict=True)
        return {name: tf.ensure_shape(part, shape) for (name, (_, shape)), part in named}

    dataset = (
        tf.data.Dataset.counter(first * batch) if last is None else tf.data.Dataset.range(first * batch, last * batch)
    )
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


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

    def decode(examples: np.ndarray) -> tuple[np.ndarray, ...]:
        examples = examples[examples >= 0]
        if not len(examples):
            return examples, np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 16, 16), IGNORED, np.uint8)
        pairs = [read_whole(reader, int(example), (0, 0), smooth=False) for example in examples]
        image, label = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return examples, image, label[..., 0]

    call = reader.numpy_function(decode, (tf.int64, tf.uint8, tf.uint8))

    def load(row: tf.Tensor) -> dict[str, tf.Tensor]:
        examples, image, label = call(row)
        return {
            'example': tf.ensure_shape(examples, [None]),
            'image': tf.ensure_shape(image, [None, None, None, 3]),
            'label': tf.ensure_shape(label, [None, None, None]),
        }

    dataset = tf.data.Dataset.from_tensor_slices(batches)
    return dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)
