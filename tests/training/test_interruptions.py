"""Work is never lost: stopped, killed, out of space, damaged or moved, a run ends as if nothing had happened."""

import collections
import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch import entry
from tests import tiny


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    train = tiny.scenes(6) + tiny.scenes(4, (52, 45), seed=2)
    validation = tiny.scenes(2, (36, 52), seed=1) + tiny.scenes(1, (33, 47), seed=3)
    return tiny.write_folder(tmp_path_factory.mktemp('data') / 'records', train=train, validation=validation)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp('undisturbed')
    done = tiny.run(tiny.train_command(workdir, data_dir))
    assert done.returncode == 0, done.stderr
    return workdir


def _imports_tensorflow(pid: int) -> bool:
    """Whether a process has come so far; from then on it answers signals."""
    with contextlib.suppress(OSError), open(f'/proc/{pid}/maps') as maps:
        return 'libtensorflow' in maps.read()
    return False


def test_a_request_to_stop_is_answered_while_starting(tmp_path, data_dir):
    for comes in (_imports_tensorflow, lambda pid: (tmp_path / 'lease.json').exists()):  # what comes before the request
        process = subprocess.Popen(
            tiny.train_command(tmp_path, data_dir),
            cwd=tiny.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not comes(process.pid):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=300)
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
    _, error = process.communicate(timeout=300)
    assert process.returncode == entry.STOPPED and 'config.runtime.grace_seconds=1' in error, error
    assert not (tmp_path / 'a/lease.json').exists()

    done = tiny.run(tiny.train_command(tmp_path / 'b', data_dir, runtime__stall_seconds=5, **long))
    assert done.returncode == entry.PEER_LOST, done.stderr
    assert 'config.runtime.stall_seconds=5' in done.stderr.splitlines()[-1]
    assert 'in main' in done.stderr, done.stderr  # the stacks


@pytest.mark.parametrize('hindrance', ['no reader', 'a full pipe', 'a full pipe and a stall', 'a hanging filesystem'])
def test_the_end_comes_whatever_hinders_it(hindrance):
    """Python's own lock included: a pipe that blocks must not keep it."""
    code = """
import sys, threading, time
from launch import entry
from unet.distributed import shutdown
shutdown._END_WITHIN = 1
def main():
    sys.stdin.readline()
    if sys.argv[1] == 'a full pipe and a stall':
        with shutdown.Stall(stall_seconds=0.2):
            time.sleep(60)
    with shutdown.cleaned(lambda: time.sleep(60 * (sys.argv[1] == 'a hanging filesystem'))):
        threading.Thread(target=shutdown.end_process, args=(entry.PEER_LOST, 'rank 1 is gone'), daemon=True).start()
        time.sleep(60)
main()
"""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while hindrance.startswith('a full pipe'):
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    process = subprocess.Popen(
        [sys.executable, '-c', code, hindrance], cwd=tiny.ROOT, stdin=subprocess.PIPE, stdout=writer, stderr=writer
    )
    os.close(writer)
    if hindrance == 'no reader':
        os.close(reader)
    process.communicate(b'go\n', timeout=300)
    assert process.returncode == entry.PEER_LOST
    if hindrance != 'no reader':
        assert hindrance != 'a hanging filesystem' or b'rank 1 is gone' in os.read(reader, 4096)
        os.close(reader)


def test_a_run_outlives_the_reader_of_its_output(tmp_path, data_dir, undisturbed):
    process = subprocess.Popen(
        tiny.train_command(tmp_path, data_dir), cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 0
    assert tiny.largest_difference(tmp_path, undisturbed, step=12) == 0


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
    """And on to two processes: the same examples in the same order, the same weights."""
    for workdir, moves in (('one', [(12, 0, 1)]), ('moved', [(4, 4, 1), (8, 0, 1), (12, 0, 2)])):
        for steps, devices, workers in moves:
            command = tiny.train_command(
                tmp_path / workdir,
                data_dir,
                num_steps=steps,
                runtime__virtual_devices=devices,
                precision='float64',
                optimizer__schedule='constant',
                eval__every_steps=12,
            )
            done = tiny.run(tiny.on_workers(workers, command) if workers > 1 else command)
            assert done.returncode == 0, done.stdout + done.stderr
    assert tiny.largest_difference(tmp_path / 'one', tmp_path / 'moved', step=12) < 1e-9


@pytest.fixture(scope='module')
def never_interrupted(tmp_path_factory, data_dir):
    """Number of processes and of steps -> a run of `_campaign` that nothing interrupts."""

    @functools.cache
    def run(workers: int, num_steps: int):
        workdir = tmp_path_factory.mktemp('never')
        done = tiny.run(_command(workdir, data_dir, workers, num_steps))
        assert done.returncode == 0, done.stdout + done.stderr
        return workdir

    return run


def _command(workdir, data_dir, workers: int, num_steps: int) -> list[str]:
    """Saves after every step and evaluates after every fifth."""
    fields = {'checkpoint.every_steps': 1, 'eval.every_steps': 5, 'eval.pictures': 0, 'log.every_steps': 1}
    command = tiny.train_command(workdir, data_dir, num_steps=num_steps, **fields)
    return tiny.on_workers(workers, command) if workers > 1 else command


_PHASES = ('starting', 'training', 'saving')


def _interrupt(command, workdir, workers: int, number: signal.Signals, phase: str, chance: random.Random) -> str:
    """Starts the command, signals one of its processes or all of them at a random moment, and waits for the end.

    Returns the phase that it was in, as seen from outside: before its first save, while a checkpoint was half-written,
    or neither.
    """
    checkpoints = workdir / 'checkpoints'
    unfinished = checkpoints / '.unfinished'

    def newest() -> int:
        return max((int(path.stem.split('-')[1]) for path in checkpoints.glob('*.index')), default=0)

    def is_saving() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return bool(os.listdir(unfinished))
        return False

    first = newest() + 1
    process = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ranks = chance.choice([[0], [1], [0, 1]]) if workers > 1 else [0]
    if phase == 'starting':
        pids = [tiny.worker(process.pid, rank) for rank in ranks] if workers > 1 else [process.pid]
        while process.poll() is None and not all(map(_imports_tensorflow, pids)):
            time.sleep(0.01)
        late = time.monotonic() + chance.uniform(0, 7 * workers)
        while time.monotonic() < late and newest() < first:
            time.sleep(0.01)
    else:
        step = first + chance.randrange(4)
        while process.poll() is None and newest() < step:
            time.sleep(0.01)
        if phase == 'training':
            time.sleep(chance.uniform(0, 0.1))
        else:
            ranks = [0]  # the one who writes
    victims = [tiny.worker(process.pid, rank) for rank in ranks] if workers > 1 else [process.pid]
    while phase == 'saving' and process.poll() is None and not is_saving():
        pass
    for victim in victims:
        os.kill(victim, number)
    half_written = is_saving()
    output = process.communicate(timeout=300)[0]
    if number == signal.SIGKILL:
        half_written = is_saving()  # what the killed process has left behind
        assert process.returncode in (-number, 128 + number), output
    else:
        assert process.returncode == entry.STOPPED and 'stopped on request' in output, output
        assert 'Traceback' not in output
    return 'saving' if half_written else 'training' if newest() >= first else 'starting'


def _campaign(workdir, data_dir, workers: int, numbers: list[signal.Signals], num_steps: int, reference) -> str:
    """Interrupts a run by each of the signals, lets it end, and compares it with one that was not interrupted."""
    chance = random.Random(time.time_ns())
    command = _command(workdir, data_dir, workers, num_steps)
    wanted = [(number, _PHASES[place % len(_PHASES)]) for place, number in enumerate(numbers)]
    chance.shuffle(wanted)
    met = []
    while wanted:
        number, phase = wanted.pop()
        met.append((number, _interrupt(command, workdir, workers, number, phase, chance)))
        if phase == 'saving' and met[-1][1] != phase and len(met) < 2 * len(numbers):
            wanted.insert(0, (number, phase))  # too late: the save was over
    done = tiny.run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    for folder in ('checkpoints', 'best'):
        assert sorted(os.listdir(workdir / folder)) == sorted(os.listdir(reference / folder))
    ours, theirs = (tiny.checkpoint_values(run / f'checkpoints/ckpt-{num_steps}') for run in (workdir, reference))
    assert {name: value.tobytes() for name, value in ours.items()} == {
        name: value.tobytes() for name, value in theirs.items()
    }
    ours, theirs = (
        [
            {name: value for name, value in json.loads(line).items() if name.startswith(('step', 'train/', 'eval/'))}
            for line in (run / 'metrics.jsonl').read_text().splitlines()
        ]
        for run in (workdir, reference)
    )
    assert ours == theirs
    for number in set(numbers):
        assert (number, 'saving') in met
    counts = collections.Counter(f'{number.name} while {phase}' for number, phase in met)
    return f'{workers} process(es): {", ".join(f"{count} {name}" for name, count in sorted(counts.items()))}'


@pytest.mark.parametrize('workers', [1, 2])
def test_interruptions_of_both_kinds_leave_no_trace(tmp_path, data_dir, never_interrupted, workers):
    numbers = 3 * [signal.SIGTERM] + 3 * [signal.SIGKILL]
    print(_campaign(tmp_path, data_dir, workers, numbers, 40, never_interrupted(workers, 40)))


@pytest.mark.soak
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('workers', [1, 2])
def test_twenty_interruptions_leave_no_trace(tmp_path, data_dir, never_interrupted, workers, number):
    print('\n' + _campaign(tmp_path, data_dir, workers, 20 * [number], 100, never_interrupted(workers, 100)))
