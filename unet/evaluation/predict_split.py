"""Predicts a split, every example exactly once, for any number of examples, batch, replicas and processes.

    for example, truth, prediction in predict_split.predictions(strategy, predict, split, batch=1):
        ...                                     # uint8 [h, w] each, on the host
    confusion = predict_split.confusion_of_split(strategy, predict, split, table, batch=1)

Each process sees its own share of the examples; the confusion matrix is the sum over all of them.
"""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import tensorflow as tf

from data_prep import labels, records
from launch import entry, host
from unet.data import input_pipeline
from unet.distributed import cluster
from unet.evaluation import metrics

Result = TypeVar('Result')

_COMPILED_SIZES = 4  # compile the prediction if there are at most so many image sizes, each of which compiles anew


class Interrupted(Exception):
    """An evaluation was broken off by a request to stop."""


def predictions(
    strategy: tf.distribute.Strategy,
    predict: Callable[[tf.Tensor], tf.Tensor],
    split: records.Split,
    *,
    batch: int,
    jit_compile: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Predicts this process's share of a split; over all processes every example comes exactly once.

    Args:
      strategy: the replicas that share the work, on all processes.
      predict: a function of images, uint8 [b, h, w, 3] -> label ids uint8 [b, h, w].
      split: the images, which are predicted at the size that they are stored in.
      batch: images per replica; only images of one size share a batch.
      jit_compile: whether to compile the prediction with XLA, unless there are many image sizes.
      stop: whether this process has been asked to stop; if any has, all of them break off after the same batch.

    Yields:
      The example's number in the split, its true label ids and the predicted ones, uint8 [h, w].

    Raises:
      Interrupted: after a request to stop.
    """
    replicas = strategy.num_replicas_in_sync
    batches = input_pipeline.eval_batches(split, batch, replicas)
    reader = input_pipeline.Reader(split)
    rank, processes = cluster.rank_and_count(strategy)
    local = replicas // processes
    ours = batches.reshape(-1, processes, local, batch)[:, rank]  # each replica's row of each round
    # Not a distributed dataset: over several processes its every element would cost an all-reduce, since shapes differ.
    dataset = iter(input_pipeline.eval_dataset(reader, ours.reshape(-1, batch)))
    sizes = len({*zip(split.height.tolist(), split.width.tolist(), strict=True)})
    predict_on_all = _on_all(strategy, predict, jit_compile and sizes <= _COMPILED_SIZES)

    def on_host(examples, predicted, asked) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        if asked.numpy():
            raise Interrupted
        for known, found in zip(examples, strategy.experimental_local_results(predicted), strict=True):
            numbers = known['example'].numpy().tolist()  # none in a batch of none, whose one image only stands in
            yield from zip(numbers, known['label'].numpy(), found.numpy(), strict=bool(numbers))

    try:
        before = None  # a GPU computes while the batch before is taken from it and dealt with
        for _ in ours:
            examples = [next(dataset) for _ in range(local)]
            parts = iter(examples)
            images = strategy.experimental_distribute_values_from_function(lambda _, parts=parts: next(parts)['image'])
            now = examples, *predict_on_all(images, tf.constant(bool(stop())))
            if before:
                yield from on_host(*before)
            before = now
        if before:
            yield from on_host(*before)
    except tf.errors.OpError:
        if reader.failure:
            raise reader.failure from None
        raise


@functools.lru_cache(maxsize=1)  # training evaluates one model again and again: it is traced and compiled once
def _on_all(strategy: tf.distribute.Strategy, predict: Callable[[tf.Tensor], tf.Tensor], jit_compile: bool) -> Callable:
    """A function of each replica's images and whether this process is to stop, which returns each replica's prediction
    and how many replicas are to stop."""
    if jit_compile:
        predict = tf.function(predict, jit_compile=True)

    @tf.function(reduce_retracing=True)
    def predict_on_replicas(images):
        # Not strategy.run(predict), which would compile what all replicas do as one.
        return strategy.run(lambda images: predict(images), args=(images,))

    # By itself: the function above is traced for each size of image, in another order by each process, and all of them
    # must trace their sums in the same order.
    @tf.function
    def asked_on_all(stop):
        asked = strategy.run(lambda: tf.cast(stop, tf.float32))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, asked, axis=None)

    return lambda images, stop: (predict_on_replicas(images), asked_on_all(stop))


def in_threads(work: Callable[..., Result], items: Iterable[tuple]) -> Iterator[Result]:
    """Calls `work(*item)` for each item in several threads, and yields the results in the order of the items.

    The next images are predicted meanwhile: counting and writing files take longer than a GPU needs for an image.
    """
    threads = host.cores()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(work, *item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def confusion_of_split(
    strategy: tf.distribute.Strategy,
    predict: Callable[[tf.Tensor], tf.Tensor],
    split: records.Split,
    table: labels.Table,
    *,
    batch: int,
    jit_compile: bool = False,
    on_progress: Callable[[int], None] = lambda examples: None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Predicts every example of a split and counts its pixels by true and predicted label id.

    Args:
      strategy, predict, split, batch, jit_compile, stop: see `predictions`.
      table: the label table; n is its `labels.num_ids`.
      on_progress: called after each example with the number of examples done, as far as this process knows.

    Returns:
      The confusion matrix of the whole split, int64 [n, n], rows true ids, columns predicted ids.

    Raises:
      Interrupted: after a request to stop.
      UserError: BAD_DATA if the split has images without labels, or label ids that are not in the table.
    """
    check_labelled(split)
    num_ids = labels.num_ids(table)
    counts = np.zeros(num_ids * num_ids + 1, np.int64)
    _, processes = cluster.rank_and_count(strategy)
    found = predictions(strategy, predict, split, batch=batch, jit_compile=jit_compile, stop=stop)
    pairs = in_threads(lambda _, truth, prediction: metrics.count_pairs(truth, prediction, num_ids), found)
    for done, of_example in enumerate(pairs, 1):
        counts += of_example
        on_progress(min(done * processes, len(split)))
    return as_matrix(_sum_over_processes(strategy, counts), split, table)


def check_labelled(split: records.Split) -> None:
    """Raises UserError BAD_DATA if the split has images without labels."""
    if not split.labelled.all():
        unlabelled = split.image_ids[int(np.argmin(split.labelled))]
        raise entry.UserError(
            entry.BAD_DATA,
            f'split {split.name!r} holds images without labels ({unlabelled}, ...): there is nothing to score. '
            'Use python -m unet.predict for them, or score --split=validation.',
        )


def as_matrix(counts: np.ndarray, split: records.Split, table: labels.Table) -> np.ndarray:
    """Makes the confusion matrix of a split of its counts, and checks that they are complete.

    Args:
      counts: int64 [n * n + 1], the sum of `metrics.count_pairs` over all examples.
      split: the split.
      table: the label table; n is its `labels.num_ids`.

    Returns:
      int64 [n, n], rows true ids, columns predicted ids; without the pixels whose true id is 255, where that is void.

    Raises:
      UserError: BAD_DATA if the split holds label ids of n and above that are not void.
      AssertionError: if not every pixel of every example was counted once.
    """
    num_ids = labels.num_ids(table)
    pixels = int((split.height.astype(np.int64) * split.width).sum())
    if counts.sum() != pixels:
        raise AssertionError(f'counted {counts.sum()} pixels of {pixels}')
    if counts[-1] and labels.IGNORED not in labels.void_ids(table):
        raise entry.UserError(
            entry.BAD_DATA,
            f'split {split.name!r} holds {counts[-1]:,} pixels with label ids of {num_ids} and above, which are '
            'not in the label table. Were train ids (255 for void) stored instead of label ids?',
        )
    return counts[:-1].reshape(num_ids, num_ids)


def _sum_over_processes(strategy: tf.distribute.Strategy, counts: np.ndarray) -> np.ndarray:
    """The sum of the int64 arrays that the processes call this with; returns once all of them have."""
    if cluster.rank_and_count(strategy)[1] == 1:
        return counts
    parts = iter([counts])  # a process's first replica brings them, its others zeros
    values = strategy.experimental_distribute_values_from_function(
        lambda _: tf.constant(next(parts, np.zeros_like(counts)))
    )
    return tf.function(lambda: strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))().numpy()
