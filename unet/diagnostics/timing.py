"""Times a thing done again and again.

timing = timing.measure(lambda: predict(images).numpy(), images=len(images), seconds=20)
timing.images_per_second, timing.milliseconds(50), timing.milliseconds(90)
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
    """Of calls one after the other.

    Attributes:
      images: that each call deals with.
      seconds: float [calls], of each.
      waited: float [calls], seconds of each that were spent waiting for data.
      steps: that each call takes.
    """

    images: int
    seconds: np.ndarray
    waited: np.ndarray
    steps: int = 1

    @property
    def images_per_second(self) -> float:
        """The median over parts of the time; each part counts all that happened in it."""
        parts = np.array_split(self.seconds, min(_WINDOWS, len(self.seconds)))
        return float(np.median([self.images * len(part) / part.sum() for part in parts]))

    def milliseconds(self, percentile: float) -> float:
        """Per step: a percentile of the calls, each of which counts as the mean of its steps."""
        return 1000 * float(np.percentile(self.seconds, percentile)) / self.steps


def measure(
    call: Callable[[], float | None],
    *,
    images: int,
    seconds: float,
    steps: int = 1,
    agree: Callable[[int], int] = lambda calls: calls,
) -> Timing:
    """Calls for about so many seconds, after warming up.

    Args:
      call: returns when its work is done, and perhaps how many seconds of it were spent waiting for data.
      images: that a call deals with.
      seconds: to go on for; at least a few calls are made however long they take.
      steps: that a call takes.
      agree: the number of calls that this process would make -> the number that all processes make, where their calls
        depend on each other.
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
