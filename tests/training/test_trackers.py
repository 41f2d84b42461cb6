"""Runs in MLflow's file store and in W&B's offline files, as the trackers' own clients read them; real training."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from launch import entry
from tests import tiny
from unet.training import trackers, workdir

BOTH = {'log.trackers': ('mlflow', 'wandb')}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'records'
    return tiny.write_folder(folder, train=tiny.scenes(6), validation=tiny.scenes(2, seed=1))


def _mlflow_run(run: pathlib.Path):
    """The run as MLflow's client has it, and the client."""
    os.environ['MLFLOW_ALLOW_FILE_STORE'] = 'true'
    import mlflow

    client = mlflow.MlflowClient((run / 'mlflow').as_uri())
    (experiment,) = [found for found in client.search_experiments() if found.name == trackers.PROJECT]
    (found,) = client.search_runs([experiment.experiment_id])
    return found, client


def _wandb_records(run: pathlib.Path) -> list[list]:
    """W&B's records of each process, the earliest first: its files are logs as those of LevelDB, behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    processes = []
    for path in sorted(run.glob('wandb/offline-run-*/*.wandb')):
        content, place, whole, records = path.read_bytes(), 7, b'', []
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:  # the rest of a block
                place += 32768 - place % 32768
                continue
            size, kind = int.from_bytes(content[place + 4 : place + 6], 'little'), content[place + 6]
            whole += content[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):  # whole, or the last part
                records.append(wandb_internal_pb2.Record.FromString(whole))
                whole = b''
        processes.append(records)
    return processes


def _wandb_history(records: list) -> list[dict]:
    """The values of each report, by name."""
    return [
        {'/'.join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField('history')
    ]


def test_both_trackers_have_the_run_and_go_on_with_it(tmp_path, data_dir):
    with socket.create_server(('127.0.0.1', 0)) as anywhere:
        address = f'http://127.0.0.1:{anywhere.getsockname()[1]}'
        environ = {'WANDB_MODE': 'offline', 'WANDB_BASE_URL': address, 'HTTP_PROXY': address, 'HTTPS_PROXY': address}
        for num_steps in (6, 9):
            done = tiny.run(tiny.train_command(tmp_path, data_dir, num_steps=num_steps, **BOTH), **environ)
            assert done.returncode == 0 and 'trackers' not in done.stderr, done.stderr
        anywhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            anywhere.accept()  # nobody has tried the network
    lines = workdir.read_metrics(tmp_path)
    losses = {line['step']: line['train/loss'] for line in lines if 'train/loss' in line}
    best = max(line['eval/miou'] for line in lines if 'eval/miou' in line)

    run, client = _mlflow_run(tmp_path)
    assert run.info.status == 'FINISHED' and run.data.params['optimizer.name'] == 'adam'
    assert run.data.params['num_steps'] == '6' and run.data.tags['changed/num_steps'] == '9'
    assert run.data.metrics['best/miou'] == pytest.approx(best)
    assert 'eval/class_accuracy.road' in run.data.metrics
    history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, 'train/loss')}
    assert history == pytest.approx(losses) and sorted(history) == [3, 6, 9]
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, 'images') if file.path.endswith('.png')]
    assert sum('pictures' in path for path in pictures) == sum('confusion' in path for path in pictures) == 2

    processes = _wandb_records(tmp_path)
    assert len(processes) == 2
    ids = {record.run.run_id for records in processes for record in records if record.HasField('run')}
    assert ids == {json.loads((tmp_path / trackers.IDS).read_text())['wandb']}
    first, second = map(_wandb_history, processes)
    assert [row['step'] for row in first if 'train/loss' in row] == [3, 6]
    found = {row['step']: row['train/loss'] for row in first + second if 'train/loss' in row}
    assert found == pytest.approx(losses)
    for name in ('pictures', 'confusion'):
        assert len(list(tmp_path.glob(f'wandb/offline-run-*/files/media/images/eval/{name}_*.png'))) == 2
        assert sum(any(key.startswith(f'eval/{name}') for key in row) for row in first + second) == 2
    config = [item for record in processes[0] if record.HasField('run') for item in record.run.config.update]
    assert '"adam"' in {item.value_json for item in config if item.key == 'optimizer.name'}
    summary = [item for record in processes[0] if record.HasField('summary') for item in record.summary.update]
    assert any('best/miou' in (item.key, '/'.join(item.nested_key)) for item in summary)
    assert all(records[-1].HasField('exit') or records[-2].HasField('exit') for records in processes)


def test_a_run_that_is_stopped_is_closed_and_leaves_no_process(tmp_path, data_dir):
    command = tiny.train_command(tmp_path, data_dir, num_steps=100_000, eval__every_steps=100_000, **BOTH)
    process = subprocess.Popen(
        command,
        cwd=tiny.ROOT,
        env=os.environ | {'WANDB_MODE': 'offline'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not _under_way(tmp_path):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=300)
    assert process.returncode == entry.STOPPED and 'trackers' not in error, error
    assert _mlflow_run(tmp_path)[0].info.status == 'KILLED'
    (records,) = _wandb_records(tmp_path)
    assert any(record.HasField('exit') for record in records) and _wandb_history(records)
    deadline = time.monotonic() + 60
    while (left := _processes_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _under_way(run: pathlib.Path) -> bool:
    """Whether both trackers know of the run, and there is something to tell them."""
    ids = run / trackers.IDS
    return ids.exists() and len(json.loads(ids.read_text())) == 2 and len(workdir.read_metrics(run)) > 1


def _processes_of(parent: int) -> list[str]:
    """The command lines of W&B's processes that were started for a process."""
    found = []
    for file in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            words = file.read_bytes().split(b'\0')
            found += [str(words)] if b'wandb-core' in words[0] and str(parent).encode() in words else []
    return found


def test_a_tracker_that_fails_is_one_warning(tmp_path, data_dir):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        nobody = f'http://127.0.0.1:{closed.getsockname()[1]}'
        environ = {'MLFLOW_TRACKING_URI': nobody, 'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '0'}
        done = tiny.run(tiny.train_command(tmp_path, data_dir, num_steps=6, log__trackers=('mlflow',)), **environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('config.log.trackers: mlflow:') == 1, done.stderr
    assert (tmp_path / 'checkpoints/ckpt-6.index').exists()


def test_what_is_not_installed_is_refused_before_the_first_step(tmp_path, data_dir):
    code = """
import sys
sys.modules['wandb'] = None  # as if it were not installed
from launch import entry
from unet import main
entry.run(main.main)
"""
    arguments = tiny.train_command(tmp_path, data_dir, **BOTH)[3:]
    done = tiny.run([sys.executable, '-c', code, *arguments])
    assert done.returncode == entry.BAD_CONFIG, done.stderr
    assert "pip install 'unet-cityscapes[wandb]'" in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'metrics.jsonl').exists()
    unknown = tiny.run(tiny.train_command(tmp_path, data_dir, log__trackers=('comet',)))
    assert unknown.returncode == entry.BAD_CONFIG and 'choose among mlflow, wandb' in unknown.stderr, unknown.stderr
