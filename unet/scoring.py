"""Scores a split: every example exactly once, for any number of examples, batch and replicas.

confusion = scoring.confusion_of_split(strategy, predict, split, num_ids=34, batch=1)
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from data_prep import records
from launch import entry
from unet import cluster, input_pipeline, metrics

_COMPILED_SIZES = 4  # compile the prediction if there are at most so many image sizes, each of which compiles anew


class Interrupted(Exception):
    """An evaluation was broken off by a request to stop."""


def confusion_of_split(
    strategy: tf.distribute.Strategy,
    predict: Callable[[tf.Tensor], tf.Tensor],
    split: records.Split,
    *,
    num_ids: int,
    batch: int,
    jit_compile: bool = False,
    tick: Callable[[int], None] = lambda examples: None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Predicts every example and counts its pixels.

    Args:
      strategy: whose replicas share the work.
      predict: uint8 [b, h, w, 3] -> label ids uint8 [b, h, w].
      split: what to score, at the size it is stored.
      num_ids: n, one more than the largest label id.
      batch: images per replica; only images of one size share a batch.
      jit_compile: compile the prediction with XLA, unless there are many image sizes.
      tick: called with the number of examples done after each batch.
      stop: whether this process has been asked to stop; if any has, all of them break off after the same batch.

    Returns:
      int64 [n, n], rows true ids, columns predicted ids.

    Raises:
      Interrupted: after a request to stop.
      Failure: BAD_DATA if the split has images without labels, or label ids of `num_ids` and above.
    """
    if not split.labelled.all():
        unlabelled = split.image_ids[int(np.argmin(split.labelled))]
        raise entry.Failure(
            entry.BAD_DATA,
            f'split {split.name!r} holds images without labels ({unlabelled}, ...): there is nothing to score. '
            'Use python -m unet.predict for them, or score --split=validation.',
        )
    replicas = strategy.num_replicas_in_sync
    batches = input_pipeline.eval_batches(split, batch, replicas)
    reader = input_pipeline.Reader(split)
    rank, processes = cluster.place(strategy)
    ours = batches.reshape(-1, processes, replicas // processes, batch)[:, rank]  # each replica's row of each round
    # Not a distributed dataset: over several processes its every element would cost an all-reduce, since shapes differ.
    dataset = iter(input_pipeline.eval_dataset(reader, ours.reshape(-1, batch)))
    if jit_compile and len({*zip(split.height.tolist(), split.width.tolist(), strict=True)}) <= _COMPILED_SIZES:
        predict = tf.function(predict, jit_compile=True)

    def replica_count(examples: dict[str, tf.Tensor], stop: tf.Tensor) -> tf.Tensor:
        counts = metrics.confusion_matrix(examples['label'], predict(examples['image']), num_ids)
        return tf.concat([counts, tf.cast(stop, counts.dtype)[None]], 0)

    @tf.function(reduce_retracing=True)
    def count(examples, stop):
        counts = strategy.run(replica_count, args=(examples, stop))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, counts, axis=None)

    total = np.zeros(num_ids * num_ids + 1, np.int64)
    try:
        for number in range(1, len(ours) + 1):
            examples = strategy.experimental_distribute_values_from_function(lambda _: next(dataset))
            counts = count(examples, tf.constant(bool(stop()))).numpy()
            if counts[-1]:
                raise Interrupted
            total += counts[:-1]
            tick(int((batches[: number * replicas] >= 0).sum()))
    except tf.errors.OpError:
        if reader.failure:
            raise reader.failure from None
        raise
    _check_counted(total, split, batches, num_ids)
    return total[:-1].reshape(num_ids, num_ids)


def _check_counted(total: np.ndarray, split: records.Split, batches: np.ndarray, num_ids: int) -> None:
    """Every pixel of every example was counted once, and none had an unknown label id."""
    pixels = int((split.height.astype(np.int64) * split.width).sum())
    void = 16 * 16 * int((batches < 0).all(1).sum())  # the images that stand in for empty batches
    if total.sum() != pixels + void:
        raise AssertionError(f'counted {total.sum() - void} pixels of {pixels}')
    if total[-1] != void:
        raise entry.Failure(
            entry.BAD_DATA,
            f'split {split.name!r} holds {total[-1] - void:,} pixels with label ids of {num_ids} and above, which are '
            'not in the label table. Were train ids (255 for void) stored instead of label ids?',
        )
