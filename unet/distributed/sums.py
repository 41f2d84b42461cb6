"""Sums over the replicas, which each of them asks for within `strategy.run`.

import tensorflow as tf
from unet.distributed import sums

strategy = tf.distribute.MirroredStrategy()
strategy.run(lambda: sums.over_replicas([tf.ones([2])], strategy.num_replicas_in_sync))
"""

from typing import TypeVar

import tensorflow as tf

Tensors = TypeVar('Tensors')  # a tensor, or tensors in lists or the like


def over_replicas(tensors: Tensors, replicas: int) -> Tensors:
    """Returns the sum of each tensor over all replicas, which must ask for the same sums in the same order.

    No gradient flows through it. TensorFlow 2.21 gives its sums one, and for each of them searches all that was traced
    before, on whichever replica, for variables that it might depend on: the square of the number of operations, minutes
    on eight devices. What has no gradient ends the search.
    """
    if replicas == 1:
        return tensors
    ends = tf.nest.map_structure(tf.stop_gradient, tensors)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, ends)
