"""The lease of a workdir lets one run in, whatever clocks and freezes do, and no run removes another's."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import entry
from tests import tiny
from unet.training import lease

ELSEWHERE = {'host': 'elsewhere', 'pid': 4711, 'started': '1', 'job': ''}

HOLD = """
import pathlib, sys
from launch import entry
from unet.training import lease
lease._RENEWED_EVERY = 0.2
def main():
    with lease.hold('run'):
        print('held', flush=True)
        sys.stdin.read()
entry.run(main)
"""


@contextlib.contextmanager
def holding(folder: pathlib.Path):
    """A process that has the lease of 'run', renews it five times a second and gives it back once its stdin ends."""
    with subprocess.Popen(
        [sys.executable, '-c', HOLD],
        cwd=folder,
        env=os.environ | {'PYTHONPATH': str(tiny.ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == 'held\n'
            yield process
        finally:
            process.kill()


RACE = """
import json, multiprocessing, os, pathlib, time
from launch import entry
from unet.training import lease

def start(first, together, stale):
    for number in range(300):
        if first:
            pathlib.Path('run/lease.json').write_text(stale)
        together.wait()
        while time.monotonic() % 0.002 > 0.0001:
            pass
        status = entry.OK
        try:
            with lease.hold('run'):
                together.wait()
        except entry.UserError as failure:
            status = failure.status
            together.wait()
        os.write(1, b'%d %d\\n' % (number, status))
        together.wait()

gone = os.posix_spawn('/bin/true', ['true'], {})
os.waitpid(gone, 0)
stale = json.dumps({'host': os.uname().nodename, 'pid': gone, 'started': '1', 'job': ''})
os.mkdir('run')
forked = multiprocessing.get_context('fork')
together = forked.Barrier(2, timeout=60)
starters = [forked.Process(target=start, args=(first, together, stale)) for first in (True, False)]
for starter in starters:
    starter.start()
for starter in starters:
    starter.join()
"""


def test_of_two_who_find_a_stale_lease_one_gets_in(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', RACE],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(tiny.ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    outcomes = [[f'{number} {entry.OK}', f'{number} {entry.IN_USE}'] for number in range(300)]
    found = [line for line in done.stdout.splitlines() if line[0].isdigit()]
    assert sorted(found) == sorted(sum(outcomes, [])), done.stderr
    assert not list((tmp_path / 'run').iterdir())


@pytest.mark.parametrize('ahead', [-1000, 0, 1000])
def test_a_living_lease_keeps_out_a_host_whose_clock_is_wrong(tmp_path, monkeypatch, ahead):
    path = tmp_path / 'lease.json'
    path.write_text(json.dumps(ELSEWHERE))
    threading.Timer(0.7, os.utime, [path]).start()  # the sign of life
    now = time.time
    monkeypatch.setattr(time, 'time', lambda: now() + ahead)
    with (
        pytest.raises(entry.UserError, match='in use by process 4711 on host elsewhere') as failure,
        lease.hold(tmp_path),
    ):
        pass
    assert failure.value.status == entry.IN_USE
    assert json.loads(path.read_text()) == ELSEWHERE and os.listdir(tmp_path) == ['lease.json']


@pytest.mark.parametrize('content', [json.dumps(ELSEWHERE), '{"host": "else'])
def test_a_stale_lease_is_watched_for_the_time_left_and_taken(tmp_path, content):
    path = tmp_path / 'lease.json'
    path.write_text(content)
    renewed, started = time.time() - 59, time.monotonic()
    os.utime(path, (renewed, renewed))
    with lease.hold(tmp_path):
        assert time.time() - renewed > 59.9
        assert time.monotonic() - started < 50, 'not for all of the 60 s again'
        assert json.loads(path.read_text())['pid'] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_run_that_stood_still_ends_before_its_successor(tmp_path):
    path = tmp_path / 'run/lease.json'
    with holding(tmp_path) as process:
        path.unlink()
        time.sleep(1)
        assert process.poll() is None, 'a lease that is missing for a moment'
        process.send_signal(signal.SIGSTOP)
        path.write_text(json.dumps(ELSEWHERE))
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == entry.IN_USE
        error = process.stderr.read()
    assert 'taken over by process 4711 on host elsewhere' in error.splitlines()[-1], error
    assert json.loads(path.read_text()) == ELSEWHERE


def test_a_run_gives_back_its_own_lease_alone(tmp_path):
    path = tmp_path / 'lease.json'
    with lease.hold(tmp_path):
        path.write_text(json.dumps(ELSEWHERE))
    assert json.loads(path.read_text()) == ELSEWHERE
