"""The estimates before a run are right where the truth is known."""

import pytest

from configs import cityscapes_unet, default
from tests import tiny
from unet.models import build as model_build
from unet.models import step_cost
from unet.training import build as training_build


def test_expected_time_is_work_over_speed():
    """Of a device that is equally fast in all levels; recomputing costs another forward pass but for its end."""
    config, rate = default.get_config(), 1e12
    height, width = config.data.crop
    one_convolution = 3 * 2 * 9 * config.model.width**2 * height * width / rate  # the same work on every level
    levels = [one_convolution] * config.model.depth
    seconds = step_cost.step_seconds(model_build.build_uninitialized(config, 19), levels)
    assert seconds == pytest.approx(training_build.estimate_cost(config, 19).step_flops / rate)
    config.runtime.recompute = True
    again = step_cost.step_seconds(model_build.build_uninitialized(config, 19), levels)
    assert again == pytest.approx(training_build.estimate_cost(config, 19).step_flops / rate)
    channels = config.model.width
    kept = (
        (2 * 9 * channels**2 + 8 * channels + 2 * channels * 19) * height * width
    )  # the last convolution and the head
    assert again == pytest.approx(seconds + (training_build.estimate_cost(config, 19).forward_flops - kept) / rate)
    assert 1.3 * seconds < again < 4 / 3 * seconds


def test_expected_scaling():
    """One host waits for nobody; of two, each sends its gradients once, of infinitely many twice. Small sums take as
    long however little they carry."""
    cost = training_build.estimate_cost(cityscapes_unet.get_config(), 19)
    told = {'step_seconds': 1.0, 'bytes_per_second': float(cost.all_reduce_bytes), 'latency': 0.0, 'microbatches': 1}
    assert step_cost.scaling_efficiency(cost, hosts=1, **told) == 1
    assert step_cost.scaling_efficiency(cost, hosts=2, **told) == pytest.approx(1 / 2)
    assert step_cost.scaling_efficiency(cost, hosts=10**9, **told) == pytest.approx(1 / 3)
    told |= {'bytes_per_second': float('inf'), 'latency': 1 / (8 * cost.norm_sums + 2), 'microbatches': 8}
    assert step_cost.scaling_efficiency(cost, hosts=2, **told) == pytest.approx(1 / 3)


def test_the_compiler_agrees_with_the_estimate(tmp_path):
    code = """
import pathlib, sys
from benchmarks import estimates
from configs import default
config = default.get_config()
config.global_batch, config.model.width, config.model.depth, config.data.crop = 16, 4, 3, (128, 128)
print(*estimates.bytes_of_step(config, pathlib.Path(sys.argv[1])))
"""
    done = tiny.run_code(code, str(tmp_path), XLA_FLAGS=f'--xla_dump_to={tmp_path}')
    assert done.returncode == 0, done.stderr
    estimated, compiled = map(int, done.stdout.split())
    assert 0.7 < estimated / compiled < 1.3
