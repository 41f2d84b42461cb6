"""Whether all replicas hold the same weights, bit by bit.

    import numpy as np
    import tensorflow as tf
    from unet.training import replica_check

    one, other = (replica_check.digest([tf.Variable([0.5, last])]).numpy() for last in (1.0, 1.0000001))
    replica_check.differing_replicas(np.array([one, other, one]))  # [1]

Replicas start alike, take the same sums and make the same update of them, so that they stay alike unless a device or
its memory fails, or devices of different kinds round differently. A replica that has gone astray spoils the gradients
of all without a trace in the loss.
"""

import collections
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from launch import entry
from unet.distributed import cluster

_FACTOR = 0x9E3779B97F4A7C15 - 2**64  # odd: its multiples modulo 2^64 spread over all bits
_GROUP_VALUES = 2**22  # that are copied and multiplied at once, 28 bytes each, unless one variable has more


def make_check(joined: cluster.Joined, variables: Sequence[tf.Variable]) -> Callable[[int], None]:
    """Makes the function that compares the replicas' copies of the variables.

    A replica's digest is one number, and one sum over all replicas brings every digest to every rank.

    Args:
      joined: the processes and devices that share the work.
      variables: what must be alike on all replicas.

    Returns:
      A function of the completed steps, which all ranks must call together. It raises UserError PEER_LOST, on all of
      them, naming the replicas that differ from most others.
    """
    strategy, replicas = joined.strategy, joined.replicas

    @tf.function
    def digests() -> tf.Tensor:
        def own() -> tf.Tensor:
            place = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.where(tf.range(replicas) == place, digest(variables), 0)

        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(own), axis=None)

    def check(done: int) -> None:
        if replicas == 1:
            return
        found = digests().numpy()
        if differing := differing_replicas(found):
            reference = next(replica for replica in range(replicas) if replica not in differing)
            names = ', '.join(joined.name_of_replica(replica) for replica in differing[:4])
            raise entry.UserError(
                entry.PEER_LOST,
                f'after step {done} the weights of {names} differ from those of {joined.name_of_replica(reference)}'
                f'{"" if replicas == 2 else " and most others"}: its device or memory is at fault, or the devices are '
                'of different kinds. No checkpoint was written: the same command, without that device, goes on from '
                'the one before.',
            )

    return check


def differing_replicas(digests: np.ndarray) -> list[int]:
    """Returns the replicas whose digest is not the most frequent one; of equally frequent ones the first counts."""
    (most_frequent, _), *_ = collections.Counter(digests.tolist()).most_common(1)
    return np.flatnonzero(digests != most_frequent).tolist()


def digest(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Returns one number (int64) for the bits of all variables and their places.

    It is the sum, modulo 2^64, of every 32 bits times an odd number that depends on their place. So a change of any 32
    bits changes it, and other changes do but for one in 2^63. Integers: no order of summation makes a difference.

    Args:
      variables: of 4 or 8 bytes per value, e.g. float32, float64 or int64.
    """
    total, place = tf.zeros([], tf.int64), 0
    for group in _groups(variables):
        with tf.control_dependencies([total]):  # one group after the other
            values = tf.concat([tf.reshape(variable, [-1]) for variable in group], 0)
        # Bits only now: TensorFlow's kernels that join and reshape int32 run on the host, also where there is a GPU.
        bits = tf.reshape(tf.cast(tf.bitcast(values, tf.int32), tf.int64), [-1])
        size = bits.shape[0]
        factors = tf.bitwise.bitwise_or(tf.range(place, place + size, dtype=tf.int64) * _FACTOR, 1)
        total += tf.reduce_sum(bits * factors)
        place += size
    return total


def _groups(variables: Sequence[tf.Variable]) -> list[list[tf.Variable]]:
    """Few, since each is traced and optimised on every replica, and small, since its copies are in memory at once; of
    one dtype each."""
    groups, values = [], _GROUP_VALUES
    for variable in sorted(variables, key=lambda variable: variable.dtype.name):
        if values + variable.shape.num_elements() > _GROUP_VALUES or variable.dtype != groups[-1][-1].dtype:
            groups.append([])
            values = 0
        groups[-1].append(variable)
        values += variable.shape.num_elements()
    return groups
