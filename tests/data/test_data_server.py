"""Real servers: processes of unet.data_server on this host."""

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from configs import default
from data_prep import records
from launch import entry
from tests import tiny
from unet.data import build as data_build
from unet.data import input_pipeline, serving
from unet.training import workdir

FIELDS = {'data.crop': '(32,32)', 'model.dropout': 0.3, 'model.width': 4, 'model.depth': 3}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """Images of two sizes."""
    pairs = tiny.scenes(5) + tiny.scenes(3, (48, 40))
    return tiny.write_folder(tmp_path_factory.mktemp('data'), train=pairs, validation=tiny.scenes(2))


def command(data_dir, port=0, **fields):
    values = FIELDS | {name.replace('__', '.'): value for name, value in fields.items()}
    return [
        *(sys.executable, '-m', 'unet.data_server', '--config=configs/default.py'),
        *(f'--data_dir={data_dir}', f'--port={port}'),
        *(f'--config.{name}={value}' for name, value in values.items()),
    ]


@contextlib.contextmanager
def server(data_dir, **settings):
    """A server and its address, once it listens."""
    with subprocess.Popen(
        command(data_dir, **settings), cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert (found := re.match(r'Listening at \S+:(\d+): 8 examples of train, \d+ cores', line)), (
                process.stderr.read()
            )
            yield process, f'127.0.0.1:{found[1]}'
        finally:
            process.kill()


@pytest.fixture(scope='module')
def address(data_dir):
    with server(data_dir, data__cache='memory') as (_, address):
        yield address


def config_of(*servers, **fields):
    config = default.get_config()
    config.update_from_flattened_dict(
        {'data.crop': (32, 32), 'model.dropout': 0.3, 'model.width': 4, 'model.depth': 3, 'data.servers': servers}
        | {name.replace('__', '.'): value for name, value in fields.items()}
    )
    assert default.validate(config) == []
    return config


def batches(data_dir, *servers, last=10, **fields):
    dataset = data_build.train_batches(
        config_of(*servers, **fields),
        input_pipeline.Reader(records.read_split(data_dir, 'train')),
        lambda number: range(2 * number, 2 * number + 2),
        first=0,
        last=last,
    )
    return dataset.as_numpy_iterator()


def assert_same(expected, found):
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys() == {'image', 'label', 'color', 'kept'}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_examples_of_two_servers_are_those_made_here_also_after_one_is_killed(data_dir, address, capfd, monkeypatch):
    expected = list(batches(data_dir, last=60))
    with server(data_dir) as (process, other):
        read = []
        with monkeypatch.context() as patch:
            patch.setattr(records, 'read_example', lambda *asked: read.append(asked))
            assert_same(expected[:10], batches(data_dir, address, other))
            assert not read  # nothing was made here
        found = batches(data_dir, address, other, last=60)
        before = [next(found) for _ in range(3)]
        process.kill()
        process.wait()
        assert_same(expected, before + list(found))
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and f'data server {other} is gone (' in said[0] and 'made here meanwhile' in said[0]


def test_a_server_that_comes_later_is_found_and_one_that_freezes_is_given_up(data_dir, capfd, monkeypatch):
    monkeypatch.setattr(serving, '_EXAMPLE_SECONDS', 1)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
    split = records.read_split(data_dir, 'train')
    settings = data_build.example_settings(config_of())
    make = input_pipeline.example_maker(input_pipeline.Reader(split), **settings)
    parts = [(array.dtype, array.shape) for array in make(0)]
    made_here = []

    def counted(position):
        made_here.append(position)
        return make(position)

    name = f'127.0.0.1:{port}'
    servers = serving.meet([name], serving.agreement(split, **settings), retry_seconds=0.2)
    assert f'data server {name} is gone (Connection refused)' in capfd.readouterr().err
    servers.fetch(3, counted, parts)
    with server(data_dir, port=port) as (process, _):
        said = ''
        while 'is back' not in said:
            time.sleep(0.1)
            said += capfd.readouterr().err
        for expected, found in zip(make(4), servers.fetch(4, counted, parts), strict=True):
            np.testing.assert_array_equal(expected, found)
        assert made_here == [3]
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # it might still answer
        servers.fetch(5, counted, parts)
        assert made_here == [3, 5]
        assert f'data server {name} is gone (it does not answer in time)' in capfd.readouterr().err


def serve_slowly(monkeypatch, cores, seconds):
    """The address of a server whose examples, their own positions, take so long on each core, and what it has sent."""
    listener = socket.create_server(('127.0.0.1', 0))
    with monkeypatch.context() as patch:
        patch.setattr(entry, 'cores', lambda: cores)
        sent = serving.serve(listener, lambda position: (time.sleep(seconds), np.array([position]))[1:], {})
    return f'127.0.0.1:{listener.getsockname()[1]}', sent


def fetch_all(servers, positions, make=None):
    with concurrent.futures.ThreadPoolExecutor(servers.in_flight) as pool:
        parts = [(np.dtype(np.int64), (1,))]
        found = list(pool.map(lambda position: servers.fetch(position, make, parts), positions))
    np.testing.assert_array_equal(found, [([position],) for position in positions])


@pytest.mark.parametrize(('less', 'more'), [((1, 0.04), (4, 0.04)), ((2, 0.08), (2, 0.02))])
def test_a_server_that_can_make_four_times_the_examples_does(monkeypatch, less, more):
    """Because it has more cores, or faster ones."""
    (weak, by_weak), (strong, by_strong) = (serve_slowly(monkeypatch, *server) for server in (less, more))
    fetch_all(serving.meet([weak, strong], {}), range(200))
    assert by_weak() + by_strong() == 200
    assert by_strong() == pytest.approx(160, abs=35)  # half of them, if each had its turn


def test_what_is_left_of_the_servers_does_not_wait_for_this_host(monkeypatch, capfd):
    """One core here makes what it can in place of a server that is gone, four elsewhere the rest."""
    address, sent = serve_slowly(monkeypatch, 4, 0.04)
    monkeypatch.setattr(entry, 'cores', lambda: 1)
    core = threading.Lock()

    def make(position):
        with core:
            time.sleep(0.04)
        return (np.array([position]),)

    servers = serving.meet([address, '127.0.0.1:1'], {})
    assert 'data server 127.0.0.1:1 is gone (Connection refused)' in capfd.readouterr().err
    fetch_all(servers, range(200), make)
    assert sent() == pytest.approx(160, abs=35)  # half of them, if each had its turn


def test_a_server_of_other_examples_is_refused_by_name(data_dir, address, tmp_path):
    """Another seed, other records, or none of our servers."""
    with pytest.raises(
        entry.UserError, match=f'{address}: it makes other examples: seed is 2019 there, 7 here'
    ) as raised:
        batches(data_dir, address, seed=7)
    assert raised.value.status == entry.BAD_CONFIG
    others = tiny.write_folder(tmp_path, train=tiny.scenes(8))
    with pytest.raises(entry.UserError, match=f'{address}: it makes other examples: records is .* there, .* here'):
        batches(others, address)
    with socket.create_server(('127.0.0.1', 0)) as stranger:
        stranger.listen()
        port = stranger.getsockname()[1]
        client = subprocess.Popen(
            [sys.executable, '-c', f'''
import socket
link = socket.fromfd({stranger.fileno()}, socket.AF_INET, socket.SOCK_STREAM).accept()[0]
link.sendall(b'SSH-2.0-OpenSSH_9.2\\r\\n')
link.recv(1)'''],
            pass_fds=[stranger.fileno()],
        )  # fmt: skip
        with (
            client,
            pytest.raises(entry.UserError, match=f'127.0.0.1:{port}: what answers there is no unet.data_server'),
        ):
            batches(data_dir, f'127.0.0.1:{port}')


@pytest.mark.parametrize('stop', [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_ends_a_server_quietly(data_dir, stop):
    with server(data_dir) as (process, address):
        next(batches(data_dir, address))
        os.kill(process.pid, stop)
        assert process.wait(timeout=60) == entry.OK
        assert process.stdout.read() == process.stderr.read() == ''


def test_a_wrong_port_is_one_plain_line(data_dir):
    with socket.create_server(('', 0)) as listener:
        taken = listener.getsockname()[1]
        done = tiny.run(command(data_dir, port=taken))
    assert done.returncode == entry.BAD_CONFIG
    assert done.stderr.startswith(f'unet.data_server: --port={taken}: Address already in use')
    assert len(done.stderr.splitlines()) == 1
    done = tiny.run(command(data_dir, port=123456))
    assert done.returncode == entry.BAD_USAGE and '--port=123456' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('address', ['10.0.0.2', '10.0.0.2:', ':5050', 'host:0', 'host:70000', 'http://host:5050'])
def test_what_is_no_address_is_refused(address):
    config = default.get_config()
    config.data.servers = (address,)
    (problem,) = default.validate(config)
    assert f"config.data.servers: '{address}' is no host:port" in problem


def test_a_run_with_servers_learns_the_same_weights(data_dir, address, tmp_path):
    """Though one of them is not there; with dropout."""
    fields = {'model.dropout': 0.3, 'eval.every_steps': 100, 'num_steps': 6}
    servers = f"('{address}','127.0.0.1:1')"
    alone = tiny.run(tiny.train_command(tmp_path / 'alone', data_dir, **fields))
    served = tiny.run(tiny.train_command(tmp_path / 'served', data_dir, **fields, **{'data.servers': servers}))
    assert alone.returncode == served.returncode == entry.OK, served.stderr
    (said,) = served.stderr.splitlines()
    assert said.startswith('unet.main: data server 127.0.0.1:1 is gone (Connection refused)')
    assert tiny.largest_difference(tmp_path / 'alone', tmp_path / 'served', 6) == 0
    assert workdir.changes_nothing_learnt('data.servers')
