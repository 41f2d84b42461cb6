"""Runs several things in turn, round after round, so that whatever else the machine does meets all of them.

seconds = alternating.run({'ours': ours, 'theirs': theirs}, rounds=10)
median, lowest, highest = alternating.ratio(seconds, 'ours', 'theirs')
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping


def run(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one per round. Every other round goes the other way round."""
    seconds = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, Iterable[float]], one: str, other: str) -> tuple[float, float, float]:
    """Seconds of one over those of the other: median, lowest and highest of the rounds."""
    ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
