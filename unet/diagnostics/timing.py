"""Times a call that is made again and again, whatever it does.

    measured = timing.measure(lambda: None, images=8, seconds=0.1)
    measured.images_per_second, measured.milliseconds(50), measured.milliseconds(90)

`device_speed` times convolutions with it, and `throughput` the parts of a config.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

_WARM_UP = 3  # calls after the first that are not counted
_AT_LEAST = 5  # calls that are
_WINDOWS = 5  # consecutive parts of the time whose median is the rate, so that a hiccup does not count


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of calls that were made one after the other.

    Attributes:
      images: how many each call deals with.
      seconds: float [calls], how long each took.
      waited: float [calls], seconds of each that were spent waiting for data.
      steps: how many each call takes.
    """

    images: int
    seconds: np.ndarray
    waited: np.ndarray
    steps: int = 1

    @property
    def images_per_second(self) -> float:
        """Returns the median over consecutive parts of the time, of each of which all calls count."""
        parts = np.array_split(self.seconds, min(_WINDOWS, len(self.seconds)))
        return float(np.median([self.images * len(part) / part.sum() for part in parts]))

    def milliseconds(self, percentile: float) -> float:
        """Returns a percentile of the milliseconds per step, for which each call counts as the mean of its steps."""
        return 1000 * float(np.percentile(self.seconds, percentile)) / self.steps


def measure(
    call: Callable[[], float | None],
    *,
    images: int,
    seconds: float,
    steps: int = 1,
    agree: Callable[[int], int] = lambda calls: calls,
) -> Timing:
    """Makes a call again and again for about so many seconds, after warming up.

    Args:
      call: returns when its work is done, and perhaps how many seconds of it were spent waiting for data.
      images: how many a call deals with.
      seconds: how long to go on; at least a few calls are made however long they take.
      steps: how many a call takes.
      agree: takes the number of calls that this process would make and returns the number that all processes make,
        where their calls depend on each other.
    """
    call()  # traces, compiles and fills buffers
    started = time.perf_counter()
    for _ in range(_WARM_UP):
        call()
    calls = agree(max(_AT_LEAST, round(seconds * _WARM_UP / (time.perf_counter() - started))))
    times, waited = [], []
    now = time.perf_counter()
    for _ in range(calls):
        waited.append(call() or 0.0)
        before, now = now, time.perf_counter()
        times.append(now - before)
    return Timing(images, np.array(times), np.array(waited), steps)
