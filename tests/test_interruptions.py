"""Work is never lost: stopped, killed, out of space, damaged or moved, a run ends as if nothing had happened."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest

from launch import entry
from tests import tiny


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'records'
    return tiny.write_folder(folder, train=tiny.scenes(10), validation=tiny.scenes(3, seed=1))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp('undisturbed')
    done = tiny.run(tiny.train_command(workdir, data_dir))
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_request_to_stop_is_answered_while_starting(tmp_path, data_dir):
    for seconds in (1.5, 4.0):  # while TensorFlow is imported, and later
        process = subprocess.Popen(
            tiny.train_command(tmp_path, data_dir),
            cwd=tiny.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        assert process.returncode == entry.STOPPED, error
        assert 'stopped on request' in error and 'Traceback' not in error


def test_what_takes_too_long_is_ended_in_time(tmp_path, data_dir):
    """A step that outlasts the grace after a request to stop, and one that outlasts the patience of the watchdog."""
    long = {
        'data.crop': '(512,512)',
        'data.scale': '(13.0,13.0)',
        'model.width': 64,
        'model.depth': 5,
        'runtime.microbatches': 4,
    }
    process = subprocess.Popen(
        tiny.train_command(tmp_path / 'a', data_dir, runtime__grace_seconds=1, **long),
        cwd=tiny.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / 'a/tensorboard').exists():  # made right before the first step, which takes a minute
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == entry.STOPPED and 'config.runtime.grace_seconds=1' in error, error
    assert not (tmp_path / 'a/lease.json').exists()

    done = tiny.run(tiny.train_command(tmp_path / 'b', data_dir, runtime__stall_seconds=5, **long))
    assert done.returncode == entry.PEER_LOST, done.stderr
    assert 'config.runtime.stall_seconds=5' in done.stderr.splitlines()[-1]
    assert 'in main' in done.stderr, 'the stacks'


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, data_dir, undisturbed):
    """The limit on a file's size stands for a disk that is full."""
    command = tiny.train_command(tmp_path, data_dir, eval__pictures=0)
    first = tiny.train_command(tmp_path, data_dir, eval__pictures=0, num_steps=6)
    assert tiny.run(first).returncode == 0
    done = subprocess.run(
        command,
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == entry.NO_STORAGE, done.stderr
    assert 'the checkpoint of step 9 could not be written' in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / 'checkpoints').glob('*.index')) == ['ckpt-3.index', 'ckpt-6.index']
    assert tiny.run(command).returncode == 0
    assert tiny.largest_difference(tmp_path, undisturbed, step=12) == 0


def test_a_truncated_checkpoint_is_told_and_the_one_before_taken(tmp_path, data_dir, undisturbed):
    shutil.copytree(undisturbed, tmp_path / 'run')
    damaged = tmp_path / 'run/checkpoints/ckpt-12.data-00000-of-00001'
    damaged.write_bytes(damaged.read_bytes()[:1000])
    done = tiny.run(tiny.train_command(tmp_path / 'run', data_dir))
    assert done.returncode == 0, done.stderr
    assert 'ckpt-12' in done.stderr and 'Trying the one before' in done.stderr
    assert 'Going on from' in done.stdout and 'ckpt-9' in done.stdout
    assert tiny.largest_difference(tmp_path / 'run', undisturbed, step=12) == 0


def test_a_run_moves_from_four_devices_to_one(tmp_path, data_dir):
    """And back to two: the same examples in the same order, the same weights."""
    for workdir, moves in (('one', [(12, 0)]), ('moved', [(4, 4), (8, 0), (12, 2)])):
        for steps, devices in moves:
            command = tiny.train_command(
                tmp_path / workdir,
                data_dir,
                num_steps=steps,
                runtime__virtual_devices=devices,
                precision='float64',
                optimizer__schedule='constant',
                eval__every_steps=12,
            )
            done = tiny.run(command)
            assert done.returncode == 0, done.stderr
    assert tiny.largest_difference(tmp_path / 'one', tmp_path / 'moved', step=12) < 1e-9


@pytest.mark.soak
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('workers', [1, 2])
def test_twenty_interruptions_leave_no_trace(tmp_path, data_dir, workers, number):
    """At random moments, many of them while a checkpoint is saved, since every step saves one."""
    fields = {'num_steps': 600, 'checkpoint.every_steps': 1, 'eval.every_steps': 25, 'eval.pictures': 0}
    commands = {}
    for workdir in ('undisturbed', 'interrupted'):
        commands[workdir] = tiny.train_command(tmp_path / workdir, data_dir, **fields)
        if workers > 1:
            commands[workdir] = tiny.on_workers(workers, commands[workdir])
    assert tiny.run(commands['undisturbed']).returncode == 0
    checkpoints = tmp_path / 'interrupted/checkpoints'
    moments = random.Random(time.time_ns())
    steps = []
    for _ in range(20):
        before = set(checkpoints.glob('*'))
        process = subprocess.Popen(
            commands['interrupted'], cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while process.poll() is None and set(checkpoints.glob('*')) <= before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.6))
        victim = process.pid if workers == 1 else tiny.worker(process.pid, moments.randrange(workers))
        if process.poll() is None:
            os.kill(victim, number)
        process.communicate(timeout=300)
        steps.append(max(int(path.stem.split('-')[1]) for path in checkpoints.glob('*.index')))
    assert steps[-1] < 600, f'the run ended before the last interruption, at the steps {steps}'
    assert tiny.run(commands['interrupted']).returncode == 0
    assert tiny.largest_difference(tmp_path / 'undisturbed', tmp_path / 'interrupted', step=600) == 0
    print(f'{workers} process(es), {number.name} at the steps {steps}')
