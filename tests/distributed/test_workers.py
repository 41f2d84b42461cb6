"""Several worker processes, real ones: they train as one would, stop together, and name the one that is gone."""

import contextlib
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from launch import command, entry
from tests import tiny
from unet.distributed import cluster, process_group


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    train = tiny.scenes(6) + tiny.scenes(4, (52, 45), seed=2)
    validation = tiny.scenes(3, (36, 52), seed=1) + tiny.scenes(2, (33, 47), seed=3)
    return tiny.write_folder(tmp_path_factory.mktemp('data') / 'records', train=train, validation=validation)


def test_processes_equal_one(tmp_path, data_dir):
    """1, 2 and 4 processes: the same weights, means of the weights and scores, with clipping and class weights, a stem
    and dilated context, and crops by class."""
    for workers in (1, 2, 4):
        fields = {'loss.class_weights': tuple(range(1, 20)), 'loss.dice': 0.5, 'optimizer.clip_norm': 0.5}
        command = tiny.train_command(
            tmp_path / str(workers),
            data_dir,
            num_steps=5,
            precision='float64',
            optimizer__ema=0.9,
            model__dropout=0.3,
            model__stem=2,
            model__context='dilated',
            data__class_uniform=0.5,
            data__largest_share=0.8,
            data__hue=0.02,
            runtime__jit_compile='off' if workers == 1 else 'auto',  # what lies between the sums over them
            **fields,
        )
        done = tiny.run(tiny.on_workers(workers, command) if workers > 1 else command)
        assert done.returncode == 0, done.stdout + done.stderr
    for workers in (2, 4):
        assert tiny.largest_difference(tmp_path / '1', tmp_path / str(workers), step=5) < 1e-9
    scores = [
        [json.loads(line) for line in (tmp_path / run / 'metrics.jsonl').read_text().splitlines() if 'miou' in line]
        for run in ('1', '2', '4')
    ]
    for of_run in scores:
        del of_run[0]['time/eval_images_per_second']
    assert scores[0] and scores[0] == scores[1] == scores[2]
    assert done.stdout.count('Starting from scratch') == 1, 'several hosts speak once'


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp('undisturbed')
    done = tiny.run(tiny.on_workers(2, tiny.train_command(workdir, data_dir)))
    assert done.returncode == 0, done.stdout
    return workdir


def _disturbed(workdir, data_dir, number: signal.Signals, rank: int, **fields) -> tuple[int, str]:
    """Exit status and output of two workers, one of which gets a signal once training is under way."""
    command = tiny.on_workers(2, tiny.train_command(workdir, data_dir, **fields))
    launcher = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while launcher.poll() is None and not (workdir / 'metrics.jsonl').exists():
        time.sleep(0.02)
    os.kill(tiny.worker(launcher.pid, rank), number)
    return launcher.wait(timeout=300), launcher.stdout.read()


def test_one_rank_asked_to_stop_stops_all_and_they_go_on_the_same(tmp_path, data_dir, undisturbed):
    status, output = _disturbed(tmp_path, data_dir, signal.SIGTERM, rank=1)
    assert status == entry.STOPPED, output
    assert 'stopped on request after step' in output and 'Traceback' not in output
    done = tiny.run(tiny.on_workers(2, tiny.train_command(tmp_path, data_dir)))
    assert done.returncode == 0, done.stdout
    assert tiny.largest_difference(tmp_path, undisturbed, step=12) == 0


@pytest.mark.parametrize('rank', [0, 1])
def test_a_killed_rank_is_named_and_they_go_on_the_same(tmp_path, data_dir, undisturbed, rank):
    status, output = _disturbed(tmp_path, data_dir, signal.SIGKILL, rank)
    assert status == 128 + signal.SIGKILL, output
    assert f'[{1 - rank}] unet.main: rank {rank} (' in output and 'is gone' in output, output
    done = tiny.run(tiny.on_workers(2, tiny.train_command(tmp_path, data_dir)))
    assert done.returncode == 0, done.stdout
    assert tiny.largest_difference(tmp_path, undisturbed, step=12) == 0


def test_a_hanging_rank_is_named_in_time(tmp_path, data_dir):
    status, output = _disturbed(tmp_path, data_dir, signal.SIGSTOP, rank=1, num_steps=5000, runtime__peer_seconds=15)
    assert status == entry.PEER_LOST, output
    assert 'rank 1 (' in output and 'sign of life for config.runtime.peer_seconds=15' in output, output


def test_threads_do_not_pile_up(tmp_path, data_dir):
    """A long run must not run out of them: with a time limit for collectives each step leaves some behind."""
    command = tiny.train_command(tmp_path, data_dir, num_steps=150, eval__every_steps=150)
    launcher = subprocess.Popen(tiny.on_workers(2, command), cwd=tiny.ROOT, stdout=subprocess.DEVNULL)
    threads = pathlib.Path(f'/proc/{tiny.worker(launcher.pid, 0)}/task')
    counts = []
    while launcher.poll() is None:
        with contextlib.suppress(OSError):
            if (tmp_path / 'metrics.jsonl').exists():
                counts.append(len(list(threads.iterdir())))
        time.sleep(0.1)
    assert launcher.returncode == 0
    assert max(counts) < counts[0] + 100, counts


@pytest.mark.parametrize('workers', [1, 2])
def test_steps_leave_no_memory_behind(tmp_path, workers):
    """By the C library's own count. By TensorFlow's default two workers leave 67 KiB per step, the keys of its sums."""
    fields = {'model.width': 2, 'global_batch': 4, 'data.crop': (32, 32)}
    command = [sys.executable, '-m', 'benchmarks.leak', '--config=configs/default.py', '--steps=400']
    command += [f'--output={tmp_path}/leak.json', *(f'--config.{name}={value}' for name, value in fields.items())]
    if workers > 1:
        launcher = [sys.executable, '-m', 'launch.local', f'--workers={workers}', '--module=benchmarks.leak', '--']
        command = launcher + command[3:]
    done = tiny.run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    left = json.loads((tmp_path / 'leak.json').read_text())['bytes_per_step']
    assert len(left) == workers and max(left) < 3 * 1024, left


def test_a_rank_that_never_comes_or_disagrees_is_named(tmp_path, data_dir):
    with socket.socket() as one, socket.socket() as other:
        one.bind(('127.0.0.1', 0))
        other.bind(('127.0.0.1', 0))
        addresses = [f'127.0.0.1:{s.getsockname()[1]}' for s in (one, other)]
    environ = {'UNET_WORKERS': ','.join(addresses)}
    command = tiny.train_command(tmp_path, data_dir, runtime__peer_seconds=3)
    for rank in (0, 1):
        done = tiny.run(command, **environ, UNET_RANK=str(rank))
        assert done.returncode == entry.PEER_LOST, done.stderr
        assert f'rank {1 - rank} ({addresses[1 - rank]}) did not come' in done.stderr
        assert len(done.stderr.splitlines()) == 1
    ranks = [
        subprocess.Popen(
            tiny.train_command(tmp_path, data_dir, seed=rank),
            cwd=tiny.ROOT,
            env=os.environ | environ | {'UNET_RANK': str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        error = rank.communicate(timeout=300)[1]
        assert rank.returncode == entry.BAD_CONFIG and 'the config differs between rank 0' in error, error
    assert not (tmp_path / 'config.json').exists()


def test_the_environment_says_who_computes():
    two = ['a:1', 'b:2']
    tf_config = json.dumps({'cluster': {'chief': ['a:1'], 'worker': ['b:2']}, 'task': {'type': 'worker', 'index': 0}})
    step = {'SLURM_STEP_ID': '0', 'SLURM_PROCID': '1'}
    pattern = {'UNET_NUM_WORKERS': '3', 'UNET_WORKER_ADDRESS': 'train-{index}.train:33'}
    cases = [
        ({}, cluster.ALONE),
        ({'SLURM_PROCID': '1', 'SLURM_NTASKS': '2'} | step, cluster.ALONE),
        ({'TF_CONFIG': tf_config}, cluster.Workers(two, 1)),
        ({'TF_CONFIG': tf_config.replace('chief', 'master')}, cluster.Workers(two, 1)),
        ({'TF_CONFIG': '{}'}, cluster.ALONE),
        ({'TF_CONFIG': tf_config, 'UNET_CLUSTER': 'off'}, cluster.ALONE),
        ({'UNET_WORKERS': 'a:1,b:2', 'UNET_RANK': '0'} | step, cluster.Workers(two, 0)),
        ({'UNET_WORKERS': 'a:1,b:2'} | step, cluster.Workers(two, 1)),
        ({'JOB_COMPLETION_INDEX': '2'} | pattern, cluster.Workers([f'train-{i}.train:33' for i in range(3)], 2)),
        ({'UNET_WORKERS': 'a:1'}, cluster.ALONE),
    ]
    for environ, expected in cases:
        assert cluster.read_workers(environ) == expected, environ
    for environ, text in [
        ({'TF_CONFIG': 'x'}, 'TF_CONFIG'),
        ({'TF_CONFIG': tf_config.replace('{"chief"', '{"ps": ["c:3"], "chief"')}, 'TF_CONFIG has a ps'),
        ({'TF_CONFIG': tf_config.replace('"type": "worker"', '"type": "evaluator"')}, 'TF_CONFIG has a evaluator'),
        ({'UNET_WORKERS': 'a:1,b:2'}, 'UNET_RANK'),
        ({'UNET_WORKERS': 'a:1,b:2', 'SLURM_PROCID': '1'}, 'UNET_RANK'),  # a batch script, not a step
        ({'UNET_WORKERS': 'a:1,b:2', 'UNET_RANK': '2'}, 'rank 2 of 2'),
        ({'UNET_WORKERS': 'a:1,a:1', 'UNET_RANK': '0'}, 'once'),
        ({'UNET_WORKERS': 'a,b', 'UNET_RANK': '0'}, 'host:port'),
        ({'UNET_WORKERS': 'a:1,b:70000', 'UNET_RANK': '0'}, "'b:70000' must be host:port"),
        (pattern | {'UNET_WORKER_ADDRESS': 'train:33', 'UNET_RANK': '0'}, '{index}'),
    ]:
        with pytest.raises(entry.UserError, match=text) as failure:
            cluster.read_workers(environ)
        assert failure.value.status == entry.BAD_CONFIG


@pytest.mark.parametrize(('status', 'of_others'), [(entry.BAD_DATA, entry.PEER_LOST), (entry.STOPPED, entry.STOPPED)])
def test_ranks_gather_agree_and_hear_of_a_failure(status, of_others):
    addresses = [f'127.0.0.1:{port}' for port in _free_ports(3)]
    outcomes, all_told = {}, threading.Barrier(3)

    def rank_main(rank):
        try:
            with process_group.rendezvous(addresses, rank, peer_seconds=20) as group:
                assert group.all_gather(rank * rank) == [0, 1, 4]
                group.check_equal('the same', 1, '')
                with pytest.raises(entry.UserError, match=r'colour differs between rank 0 .* and rank 2'):
                    group.check_equal('colour', 'green' if rank == 2 else 'red', 'paint it')
                all_told.wait(20)  # or rank 1's end may be what others hear of first
                if rank == 1:
                    raise entry.UserError(status, 'a broken record')
                group.all_gather(None)
        except entry.UserError as error:
            outcomes[rank] = error

    ranks = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert outcomes[1].status == status
    for rank in (0, 2):
        assert outcomes[rank].status == of_others
        assert f'rank 1 ({addresses[1]}) ended with status {status}: a broken record' in str(outcomes[rank])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(('127.0.0.1', 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def test_local_shares_out_gpus():
    """In a process of its own, since each program has its own flags."""
    code = """
from launch import entry, local
shares = [environ['CUDA_VISIBLE_DEVICES'] for environ in local.environments(2, 0, ['0', '1', '2', '3'])]
assert shares == ['0,1', '2,3'], shares
for arguments, text in (((2, 2, ['0', '1', '2']), 'need 4; this host has 3'), ((2, 2, []), 'no GPUs')):
    try:
        local.environments(*arguments)
    except entry.UserError as failure:
        assert text in str(failure) and failure.status == entry.BAD_CONFIG
    else:
        raise AssertionError(arguments)
"""
    done = tiny.run([sys.executable, '-c', code])
    assert done.returncode == 0, done.stderr


def test_one_status_for_several_ranks():
    assert command.overall_status([0, 0]) == 0
    assert command.overall_status([75, 76]) == 76
    assert command.overall_status([76, 65, 75]) == 65


# Rank 1 ends once both have spoken; rank 0 ends once the launcher knows of it.
_FAILS_SECOND = """
import os, pathlib, sys, time
print(sys.argv[1:], flush=True)
rank, notes = int(os.environ['UNET_RANK']), pathlib.Path(__file__).parent
(notes / f'{rank}').write_text(str(os.getpid()))
other = notes / f'{1 - rank}'
while not (other.exists() and other.read_text()):
    time.sleep(0.01)
if rank == 1:
    sys.exit(65)
while os.path.exists(f'/proc/{other.read_text()}'):
    time.sleep(0.01)
sys.exit(76)
"""


def test_local_passes_everything_on_and_its_failures_back(tmp_path):
    (tmp_path / 'worker.py').write_text(_FAILS_SECOND)
    workdir = f'--workdir={tmp_path / "a b"}'
    command = [sys.executable, '-m', 'launch.local', '--module=worker', workdir, '--', '--x=$y "z"', '--n=1']
    done = tiny.run(command, PYTHONPATH=str(tmp_path))
    assert done.returncode == 65, done.stderr
    expected = str([workdir, '--x=$y "z"', '--n=1'])
    assert sorted(done.stdout.splitlines()) == [f'[0] {expected}', f'[1] {expected}']


@pytest.mark.parametrize('trouble', ['reader gone', 'disk of stdout full', 'disk of the log full'])
def test_local_drains_its_workers_whatever_becomes_of_their_output(tmp_path, trouble):
    (tmp_path / 'worker.py').write_text(
        'import sys\nsys.stdin.readline()\nfor number in range(20_000):\n  print(number, "of many")\nsys.exit(65)\n'
    )
    command = [sys.executable, '-m', 'launch.local', '--workers=1', '--module=worker', f'--workdir={tmp_path}']
    with (
        open('/dev/full', 'wb') as full,
        subprocess.Popen(
            command,
            cwd=tiny.ROOT,
            env=os.environ | {'PYTHONPATH': str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=full if trouble == 'disk of stdout full' else subprocess.PIPE,
            preexec_fn=lambda: (
                trouble == 'disk of the log full' and resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            ),
        ) as launcher,
    ):
        if trouble == 'reader gone':
            launcher.stdout.close()
        try:
            shown = launcher.communicate(b'go\n', timeout=300)[0]
        finally:
            launcher.kill()
    assert launcher.returncode == 65
    logged = next(tmp_path.glob('launch/*/output.log')).read_bytes()
    assert logged.count(b'\n') == 20_000 or len(logged) == 20_000
    assert trouble != 'disk of the log full' or shown.count(b'\n') == 20_000


def test_local_waits_as_long_as_the_config_says():
    """In a process of its own, since each program has its own flags."""
    code = """
from launch import local
config = ['--config=configs/default.py', '--config.runtime.grace_seconds=90']
assert local.kill_after('unet.main', config) == local.kill_after('unet.main', config[:1]) + 90 - 25
assert local.kill_after('unet.main', config) > 90 + 5 and local.kill_after('worker', config) > 5
"""
    done = tiny.run([sys.executable, '-c', code])
    assert done.returncode == 0, done.stderr


def test_a_local_launch_is_looked_after_from_another_terminal(tmp_path):
    (tmp_path / 'worker.py').write_text('import time\nprint("at work", flush=True)\ntime.sleep(600)\n')
    command = [sys.executable, '-m', 'launch.local', '--module=worker', f'--workdir={tmp_path / "a run"}']
    environ = {'PYTHONPATH': str(tmp_path)}
    assert tiny.run([*command, '--status'], **environ).returncode == entry.MISSING_INPUT
    shown = tiny.run([*command, '--dry_run', '--', '--x=$y'], **environ)
    assert shown.returncode == 0 and shown.stdout.count("'--x=$y'") == 2 and 'UNET_RANK=1' in shown.stdout
    launcher = subprocess.Popen(command, cwd=tiny.ROOT, env=os.environ | environ, stdout=subprocess.PIPE, text=True)
    assert {launcher.stdout.readline(), launcher.stdout.readline()} == {'[0] at work\n', '[1] at work\n'}
    assert f'process {launcher.pid} is running' in tiny.run([*command, '--status'], **environ).stdout
    assert tiny.run([*command, '--cancel'], **environ).returncode == 0
    status = launcher.wait(300)
    followed = tiny.run([*command, '--follow'], **environ)
    assert followed.returncode == status == 128 + signal.SIGTERM
    assert sorted(followed.stdout.splitlines()) == ['[0] at work', '[1] at work', f'ended with status {status}']
