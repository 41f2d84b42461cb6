import numpy as np
import pytest

from unet.diagnostics import timing


def test_rates_are_medians_over_parts_of_the_time():
    """One call of ten that hangs changes the rate of its part alone."""
    seconds = np.full(10, 0.5)
    seconds[3] = 100.0
    measured = timing.Timing(images=4, seconds=seconds, waited=np.zeros(10))
    assert measured.images_per_second == pytest.approx(8.0)
    assert measured.milliseconds(50) == pytest.approx(500.0)
    in_pairs = timing.Timing(images=8, seconds=2 * seconds, waited=np.zeros(10), steps=2)
    assert in_pairs.images_per_second == pytest.approx(8.0)
    assert in_pairs.milliseconds(50) == pytest.approx(500.0)


def test_warm_up_is_not_counted_and_all_processes_call_equally_often():
    calls = []
    measured = timing.measure(lambda: calls.append(None) or 0.25, images=1, seconds=0.0, agree=lambda own: own + 2)
    assert len(measured.seconds) == 7 and len(calls) > 7
    assert measured.waited.tolist() == [0.25] * 7
