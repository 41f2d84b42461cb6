"""What is measured is measured, on one worker and on several; the estimates before it are right where it is known."""

import json
import os
import sys

import pytest

from configs import cityscapes, default
from data_prep import records
from launch import entry
from tests import tiny
from unet.models import build as model_build
from unet.models import step_cost
from unet.training import build as training_build


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'records'
    return tiny.write_folder(folder, train=tiny.scenes(6), validation=tiny.scenes(2, seed=1))


def benchmark(workdir, data_dir, *flags: str, **fields) -> list[str]:
    command = tiny.train_command(workdir, data_dir, **fields)
    return [*command[:2], 'unet.benchmark', *command[3:], '--seconds=0.3', *flags]


def test_every_part_of_a_config(tmp_path, data_dir):
    """No clock is read in deterministic mode: what bounds the run is then told from the rates."""
    done = tiny.run(benchmark(tmp_path, data_dir, **{'runtime.steps_per_call': 2}))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / 'benchmark.json').read_text())
    assert list(figures) == ['conditions', 'input_pipeline', 'step', 'end_to_end', 'predict', 'evaluate']
    for name in list(figures)[1:]:
        assert figures[name]['images_per_second'] > 0
        assert figures[name]['milliseconds_p90'] >= figures[name]['milliseconds'] > 0
        assert figures[name]['peak_bytes'] > 2**20
    assert not any('waiting_for_data' in found for found in figures.values())
    assert 'waiting for data' not in done.stdout
    slower = min(('step', 'input_pipeline'), key=lambda name: figures[name]['images_per_second'])
    assert f'The {slower.replace("_", " ")} bounds it' in done.stdout
    assert figures['conditions']['config']['model']['width'] == 4


def test_one_core_does_not_take_the_step_for_waiting(tmp_path, data_dir):
    core = str(min(os.sched_getaffinity(0)))
    command = benchmark(tmp_path, data_dir, '--parts=step,both', **{'runtime.deterministic': False})
    done = tiny.run(['taskset', '--cpu-list', core, *command])
    assert done.returncode == 0, done.stderr
    assert '--parts: both is called end_to_end now' in done.stderr.splitlines()
    figures = json.loads((tmp_path / 'benchmark.json').read_text())
    assert 0 <= figures['step']['waiting_for_data'] < 0.5
    assert 0 <= figures['end_to_end']['waiting_for_data'] <= 1 and '% of the time waiting for data' in done.stdout


def test_numbers_of_workers_side_by_side(tmp_path, data_dir):
    """The step alone needs no records. A device's share of the batch is the same in all."""
    flags = ['--parts=step', '--scale=1,2', '--config.global_batch=4', '--config.runtime.microbatches=0']
    done = tiny.run(benchmark(tmp_path, '/nowhere', *flags))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / 'benchmark.json').read_text())
    assert [figures[count]['conditions']['global_batch'] for count in '12'] == [2, 4]
    assert [figures[count]['conditions']['workers'] for count in '12'] == [1, 2]
    assert 'no_communication' in figures['2'] and 'no_communication' not in figures['1']


def test_workers_evaluate_side_by_side(tmp_path):
    """Images of two sizes, in numbers that no batch divides, over more than one pass."""
    pairs = [*tiny.scenes(4), *tiny.scenes(1, (24, 32))]
    folder = tiny.write_folder(tmp_path / 'records', train=pairs, validation=pairs)
    command = benchmark(tmp_path, folder, '--parts=evaluate', '--config.eval.batch=3')
    done = tiny.run([*command[:2], 'launch.local', '--module=unet.benchmark', '--workers=2', '--', *command[3:]])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / 'benchmark.json').read_text())['evaluate']['images_per_second'] > 0


def test_what_cannot_be_measured(tmp_path, data_dir):
    for flags, status, said in (
        (['--parts=loaders'], entry.BAD_USAGE, 'choose of input_pipeline'),
        (['--scale=1,4096'], entry.BAD_CONFIG, 'this host has'),
        (['--scale=1,two'], entry.BAD_USAGE, 'give numbers'),
        (['--scale=\N{SUPERSCRIPT TWO}'], entry.BAD_USAGE, 'give numbers'),
        ([f'--workdir={data_dir / records.DATASET_INFO}/figures'], entry.BAD_USAGE, 'is no folder'),
        (['--scale=2', '--config.global_batch=3'], entry.BAD_CONFIG, 'does not divide'),
        (['--config.runtime.microbatches=3'], entry.BAD_CONFIG, 'global batch'),
        (['--data_dir=/nowhere'], entry.MISSING_INPUT, '/nowhere'),
    ):
        done = tiny.run(benchmark(tmp_path, data_dir, *flags))
        assert done.returncode == status and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / 'benchmark.json').exists()


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
    cost = training_build.estimate_cost(cityscapes.get_config(), 19)
    told = {'step_seconds': 1.0, 'bytes_per_second': float(cost.all_reduce_bytes), 'latency': 0.0, 'microbatches': 1}
    assert step_cost.scaling_efficiency(cost, hosts=1, **told) == 1
    assert step_cost.scaling_efficiency(cost, hosts=2, **told) == pytest.approx(1 / 2)
    assert step_cost.scaling_efficiency(cost, hosts=10**9, **told) == pytest.approx(1 / 3)
    told |= {'bytes_per_second': float('inf'), 'latency': 1 / (8 * cost.norm_sums + 2), 'microbatches': 8}
    assert step_cost.scaling_efficiency(cost, hosts=2, **told) == pytest.approx(1 / 3)


_CONFIG = """
import pathlib, sys
from benchmarks import bare, estimates
from configs import default
import tensorflow as tf
config = default.get_config()
config.global_batch, config.model.width, config.model.depth, config.data.crop = 16, 4, 3, (128, 128)
"""


def test_the_compiler_agrees_with_the_estimate(tmp_path):
    code = f'{_CONFIG}\nprint(*estimates.bytes_of_step(config, pathlib.Path(sys.argv[1])))'
    done = tiny.run([sys.executable, '-c', code, str(tmp_path)], XLA_FLAGS=f'--xla_dump_to={tmp_path}')
    assert done.returncode == 0, done.stderr
    estimated, compiled = map(int, done.stdout.split())
    assert 0.7 < estimated / compiled < 1.3


@pytest.mark.parametrize('jit_compile', ['off', 'on'])
def test_microbatches_take_turns(jit_compile):
    """Eight parts take much less memory than the whole batch, compiled or not, by the count of TensorFlow's
    allocator."""
    code = f"""
from tests import allocator
{_CONFIG}
config.runtime.jit_compile = {jit_compile!r}
for config.runtime.microbatches in (8, 1):
    step, batch = bare.step_and_batch(config)
    step(batch, tf.constant(0.0))
    before = allocator.current()
    allocator.forget_peak()
    step(batch, tf.constant(0.0)).numpy()
    print(allocator.peak() - before)
"""
    done = tiny.run([sys.executable, '-c', code])
    assert done.returncode == 0, done.stderr
    parts, whole = map(int, done.stdout.split())
    assert parts < 0.25 * whole  # 0.14 and 0.15; parts side by side 0.31 and more


def test_workers_keep_to_their_cores():
    """In a process of its own, since each program has its own flags."""
    code = """
from launch import local
print(local.core_shares(2, 0), local.core_shares(1, 1))
local.core_shares(4096, 1)
"""
    done = tiny.run([sys.executable, '-c', code])
    assert done.stdout.startswith('[set(), set()] [{') and '4096 workers need 4096 cores' in done.stderr
