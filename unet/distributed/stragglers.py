"""Which rank holds the others up, and whether by its data or by its computing.

    with process_group.rendezvous(['localhost:0'], 0, peer_seconds=120) as group:
        ranks = stragglers.Stragglers(group)
        metrics, sentences = ranks.compare(seconds=30.0, without_data=0.2, in_sums=4.0)  # none: it is alone

Ranks take each step together, so the time of a step is the same on all of them and shows nothing. What differs is how
long each is in the sums over the replicas: whoever comes last finds the others there and does not wait. So the shortest
time in sums is taken for what the sums themselves cost, and a rank's pace is that plus the rank's own time outside of
sums: what a step would take if all ranks were like it. Of its own time a rank waits for batches, and the rest it
computes, on host and device.

What this cannot tell: a slow network, since it slows the sums of all ranks alike; and how long a CPU computes beside a
sum, such as the gradient of a kernel, or that a process pauses within one, which is counted as waiting, so that a slow
rank may appear less slow than it is.
Of a rank's several devices the slowest counts.
"""

import statistics

import tensorflow as tf
from tensorflow.python.distribute import cross_device_utils  # where all sums begin; it has no public name

from unet.distributed import process_group

_SLOW = 1.2  # times the median's pace
_REPORTS = 3  # in a row, after which a slow rank is named

_in_sums: dict[str, tf.Variable] = {}  # device of this process -> seconds that its replica has been in sums


def time_sums(strategy: tf.distribute.Strategy) -> None:
    """Has all sums over replicas that are traced from now on count how long this process is in them.

    A device is in a sum from when its own part has been computed, of which on a GPU a value that is copied to the host
    tells, until the result is there.

    Args:
      strategy: of several workers.
    """
    launcher = cross_device_utils.CollectiveReplicaLauncher
    all_reduce = launcher.all_reduce
    for device in strategy.extended.worker_devices:
        with tf.device('CPU:0'):
            _in_sums[device] = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def timed_all_reduce(self, input_tensor, control_input=None, options=None):
        if self._device not in _in_sums or tf.executing_eagerly():
            return all_reduce(self, input_tensor, control_input, options)
        with tf.device(self._device):
            part = tf.reshape(input_tensor, [-1])[:1]
        with tf.device('CPU:0'), tf.control_dependencies([tf.identity(part)]):
            arrived = tf.timestamp()
        total = all_reduce(self, input_tensor, control_input, options)
        with tf.device('CPU:0'), tf.control_dependencies([total]):
            _in_sums[self._device].assign_add(tf.timestamp() - arrived)
        return total

    launcher.all_reduce = timed_all_reduce


def seconds_in_sums() -> tf.Tensor:
    """Returns the seconds (float64) that the device of this process that waits least has been in sums; 0 without
    `time_sums`."""
    with tf.device('CPU:0'):
        counted = [variable.read_value() for variable in _in_sums.values()]
        return tf.reduce_min(tf.stack(counted)) if counted else tf.zeros([], tf.float64)


class Stragglers:
    """Compares the ranks' own time from report to report."""

    def __init__(self, group: process_group.ProcessGroup):
        self._group = group
        self._slow = [0] * group.size  # reports in a row

    def compare(self, *, seconds: float, without_data: float, in_sums: float) -> tuple[dict[str, float], list[str]]:
        """Compares the time since the last report; all ranks must call this together.

        Args:
          seconds: of this rank's training.
          without_data: of those, seconds that it waited for batches.
          in_sums: of those, seconds that it was in sums; 0: not known.

        Returns:
          The metrics: which rank was the slowest, its pace over the median's, by how much of that more waiting for data
          and more computing count, and the share of the time that the median rank was in sums. And a sentence for each
          rank that has now been 20 % slower than the median for three reports. Neither where there is one rank, or
          times in sums are not known.
        """
        if self._group.size == 1:
            return {}, []
        gathered = self._group.all_gather([seconds, without_data, in_sums])
        cheapest = min(row[2] for row in gathered)
        if not cheapest:
            return {}, []
        pace = [max(all_of_it - sums + cheapest, 1e-9) for all_of_it, _, sums in gathered]
        median = pace.index(statistics.median_low(pace))  # of two ranks the faster one
        by_data = [(row[1] - gathered[median][1]) / pace[median] for row in gathered]
        by_computing = [own / pace[median] - 1 - data for own, data in zip(pace, by_data, strict=True)]
        sentences = []
        for rank, own in enumerate(pace):
            self._slow[rank] = self._slow[rank] + 1 if own >= _SLOW * pace[median] else 0
            if self._slow[rank] == _REPORTS:
                sentences.append(
                    f'{self._group.name(rank)} holds the others up: {100 * (own / pace[median] - 1):.0f} % slower than '
                    f'the median for {_REPORTS} reports (waiting for data {100 * by_data[rank]:+.0f} %, computing '
                    f'{100 * by_computing[rank]:+.0f} %)'
                )
        slowest = max(range(len(pace)), key=pace.__getitem__)
        return {
            'time/slowest_rank': float(slowest),
            'time/slowest_over_median': pace[slowest] / pace[median],
            'time/slowest_by_data': by_data[slowest],
            'time/slowest_by_computing': by_computing[slowest],
            'time/median_in_sums': gathered[median][2] / max(gathered[median][0], 1e-9),
        }, sentences
