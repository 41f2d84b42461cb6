"""The program itself, on one worker and on several."""

import json
import os
import sys

import pytest

from data_prep import records
from launch import entry
from tests import tiny


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


def measure_on_gpus(folder, *flags: str):
    command = [sys.executable, '-m', 'benchmarks.gpu', f'--folder={folder}', *flags]
    return tiny.run(command, CUDA_VISIBLE_DEVICES='')


def test_what_whoever_has_gpus_runs_works_in_miniature(tmp_path):
    done = measure_on_gpus(tmp_path, '--parts=ceilings,records,leak')
    assert done.returncode == 0, done.stdout + done.stderr
    everything = json.loads((tmp_path / 'gpu.json').read_text())
    assert everything['miniature'] and not everything['failed'] and not everything['left_out']
    assert list(everything['cells']) == ['ceilings', 'leak']
    assert everything['cells']['ceilings']['matrix_flops_per_second']['float32'] > 1e6
    assert len(everything['cells']['leak']['bytes_per_step']) == 1
    verdicts = {limit['what']: limit['verdict'] for limit in everything['limits']}
    assert verdicts['leak, bytes per step'] == 'not judged'
    assert verdicts['values that differ in a rerun'] == 'not measured'
    assert (tmp_path / 'png' / records.DATASET_INFO).exists() and (tmp_path / 'jpeg' / records.DATASET_INFO).exists()
    table = (tmp_path / 'gpu.md').read_text()
    assert table in done.stdout and '| leak | ' in table and '| copying | ' in table
    done = measure_on_gpus(tmp_path, '--parts=ceilings')  # the rest stays
    again = json.loads((tmp_path / 'gpu.json').read_text())
    assert done.returncode == 0 and again['cells']['leak'] == everything['cells']['leak']
    assert again['cells']['ceilings'] != everything['cells']['ceilings']
    (tmp_path / 'gpu.json').write_text(json.dumps(again | {'devices': ['NVIDIA H100 80GB HBM3']}))
    done = measure_on_gpus(tmp_path, '--parts=ceilings')
    assert done.returncode == entry.BAD_CONFIG and 'has figures of NVIDIA H100 80GB HBM3' in done.stderr


def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path):
    done = measure_on_gpus(tmp_path, '--parts=records,ceilings', '--cityscapes_dir=/nowhere')
    assert done.returncode == entry.MISSING_INPUT, done.stdout + done.stderr
    everything = json.loads((tmp_path / 'gpu.json').read_text())
    assert list(everything['failed']) == ['records png', 'records jpeg'] and 'ceilings' in everything['cells']
    assert '/nowhere' in everything['failed']['records png']['said'][-1]
    assert '| records png | FAILED with status 66: ' in (tmp_path / 'gpu.md').read_text()
    done = measure_on_gpus(tmp_path, '--parts=ceiling')
    assert done.returncode == entry.BAD_USAGE and 'choose parts of ceilings' in done.stderr
