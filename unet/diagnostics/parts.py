"""The parts of a config's training and evaluation that are measured, each as a call that does some of its work.

    for part in parts.build(config, 'data/cityscapes', table, joined, ['step', 'predict']):
        part.call()

They are built of what training and evaluation run: the same batches, the same compiled step, the same evaluation. The
config is read here, since what is measured is what a config makes of these.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels, records
from unet.data import build as data_build
from unet.data import input_pipeline
from unet.distributed import cluster
from unet.evaluation import metrics, predict_split
from unet.inference import build as inference_build
from unet.models import build as model_build
from unet.training import build as training_build
from unet.training import step

NAMES_OF_TRAINING = ('step', 'end_to_end', 'no_communication')  # the parts that take steps
_STEPS_PER_CALL = 10  # where the config leaves their number to the loop
_EVALUATED = 10_000  # images of a pass at the least, so that its start counts for little


@dataclasses.dataclass(frozen=True)
class Part:
    """What is timed.

    Attributes:
      name: of the part.
      images: that a call deals with on this worker.
      steps: that a call takes.
      call: does it, and returns the seconds that it waited for data, if it knows.
    """

    name: str
    images: int
    steps: int
    call: Callable[[], float | None]


def build(
    config: ConfigDict, data_dir: str, table: labels.Table, joined: cluster.Joined, names: Collection[str]
) -> Iterator[Part]:
    """Returns the parts of these names, each made when its turn comes; what only some of them need goes with the last
    of these, so that its memory is not counted for the next."""
    class_pixels = None
    if config.loss.balanced:
        class_pixels = records.class_pixels(data_dir, config.data.train_splits)
    if {'input_pipeline', 'step', 'end_to_end'} & set(names):
        yield from _training_parts(config, data_dir, table, joined, class_pixels, names)
    if 'step' in names and joined.workers.count > 1:
        yield _no_communication(config, table, joined, class_pixels)
    if {'predict', 'evaluate'} & set(names):
        yield from _inference_parts(config, data_dir, table, joined, names)


def _training_parts(
    config: ConfigDict,
    data_dir: str,
    table: labels.Table,
    joined: cluster.Joined,
    class_pixels: np.ndarray | None,
    names: Collection[str],
) -> Iterator[Part]:
    share, steps = config.global_batch // joined.workers.count, training_build.steps_per_call(config) or _STEPS_PER_CALL
    batches = train_steps = None
    if {'input_pipeline', 'end_to_end'} & set(names):
        reader = input_pipeline.Reader(records.read_split(data_dir, '+'.join(config.data.train_splits)))
        batches = data_build.make_distributed_batches(config, joined.strategy, joined.workers, reader, first_step=0)
    if 'input_pipeline' in names:
        yield Part('input_pipeline', share, 1, _taking(batches))
    if {'step', 'end_to_end'} & set(names):
        train_steps = _training(config, table, joined.strategy, class_pixels, joined.replicas)
    if 'step' in names:
        noise = same_batch_again(config, joined.strategy)
        yield Part('step', share * steps, steps, _stepping(train_steps, noise, steps))
    if 'end_to_end' in names:
        yield Part('end_to_end', share * steps, steps, _stepping(train_steps, batches, steps))


def _no_communication(
    config: ConfigDict, table: labels.Table, joined: cluster.Joined, class_pixels: np.ndarray | None
) -> Part:
    """The work of 'step' but for what devices tell each other: one device's images, compiled and normalised as on
    all."""
    share, steps = config.global_batch // joined.workers.count, training_build.steps_per_call(config) or _STEPS_PER_CALL
    alone, own = tf.distribute.get_strategy(), config.copy_and_resolve_references()
    own.global_batch = config.global_batch // joined.replicas
    train_steps = _training(own, table, alone, class_pixels, joined.replicas)
    return Part('no_communication', share * steps, steps, _stepping(train_steps, same_batch_again(own, alone), steps))


def _inference_parts(
    config: ConfigDict, data_dir: str, table: labels.Table, joined: cluster.Joined, names: Collection[str]
) -> Iterator[Part]:
    strategy = joined.strategy
    split = records.read_split(data_dir, config.data.eval_split)
    with strategy.scope():
        model = model_build.build_model(config, table, replicas=1)
    predict = inference_build.predictor(config, model, table)
    compiled = inference_build.jit_predictions(config)
    if 'predict' in names:
        yield Part('predict', 1, 1, _predicting(tf.function(predict, jit_compile=compiled), split))
    if 'evaluate' in names:
        predict_split.check_labelled(split)
        together = config.eval.batch * joined.replicas
        split = full_rounds(split, together)
        passes = (
            predict_split.predictions(strategy, predict, split, batch=config.eval.batch, jit_compile=compiled)
            for _ in itertools.count()
        )
        images = together // joined.workers.count
        counting = _counting(itertools.chain.from_iterable(passes), images, labels.num_ids(table))
        yield Part('evaluate', images, 1, counting)


def _training(
    config: ConfigDict,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
    class_pixels: np.ndarray | None,
    replicas: int,
) -> Callable:
    """Builds a model of its own, which normalises as on so many replicas, and its compiled training steps."""
    with strategy.scope():
        model = model_build.build_model(config, table, replicas=replicas)
        state = training_build.make_train_state(config, model)
    return training_build.make_train_steps(config, model, state, table, strategy, class_pixels, replicas=replicas)


def _stepping(train_steps: Callable, batches: tf.data.Dataset, steps: int) -> Callable[[], float]:
    """A call takes so many steps and returns the seconds that those of the call before waited for data: as in training
    one call stays queued."""
    arguments = data_build.iterate(batches), tf.constant(steps), tf.constant(0.0)
    queued = collections.deque[step.Taken]()

    def call() -> float:
        queued.extend(train_steps(*arguments) for _ in range(2 - len(queued)))
        return float(step.column(step.read_metrics(queued.popleft()), 'seconds_without_data').sum())

    return call


def _taking(batches: tf.data.Dataset) -> Callable[[], None]:
    """A call takes a batch."""
    iterator = data_build.iterate(batches)
    return lambda: tf.nest.flatten(next(iterator)) and None


def _predicting(predict: Callable[[tf.Tensor], tf.Tensor], split: records.Split) -> Callable[[], None]:
    """A call predicts an image of noise, as large as the split's first, from host to host."""
    shape = (1, int(split.height[0]), int(split.width[0]), 3)
    image = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def predict_once() -> None:
        predict(image).numpy()

    return predict_once


def _counting(found: Iterator, images: int, num_ids: int) -> Callable[[], None]:
    """A call takes so many images from what `predict_split.predictions` yields, and counts their pixels."""

    def count() -> None:
        for _, truth, prediction in itertools.islice(found, images):
            metrics.count_pairs(truth, prediction, num_ids)

    return count


def full_rounds(split: records.Split, together: int) -> records.Split:
    """Repeats a split so often that `together` images at a time are never fewer, whatever their sizes: processes that
    take equally many then stay in step.

    Args:
      split: any.
      together: images that all devices predict at a time.

    Returns:
      The repeated split, of at least so many images that the start of a pass counts for little.
    """
    times = -(-_EVALUATED // (len(split) * together)) * together
    tiled: dict[str, Any] = {
        field.name: np.tile(getattr(split, field.name), times)
        for field in dataclasses.fields(split)
        if isinstance(getattr(split, field.name), np.ndarray)
    }
    return dataclasses.replace(split, image_ids=split.image_ids * times, **tiled)


def same_batch_again(config: ConfigDict, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """Returns a dataset that gives each replica one and the same batch of noise, from memory, without end."""
    batch = data_build.noise_batch(config, config.global_batch // strategy.num_replicas_in_sync)
    return strategy.distribute_datasets_from_function(
        lambda _: tf.data.Dataset.from_tensors(batch).repeat().prefetch(tf.data.AUTOTUNE)
    )
