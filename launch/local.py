"""Starts several worker processes on this host, connected as a cluster connects them.

    python -m launch.local --workers=2 --workdir=runs/two -- --config=configs/synthetic.py --data_dir=data/synthetic

Everything after `--` goes to unet.main unchanged. Each line of output begins with the worker's rank. If one worker
fails, all end; Ctrl-C and SIGTERM stop all of them, and this program waits for their end. With --workdir the launch is
recorded there, with its output; --status, --follow and --cancel find it from another terminal.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

from absl import flags

from configs import default
from launch import command, entry, files, host, launch_record

_WORKERS = flags.DEFINE_integer('workers', 2, 'Number of worker processes.', lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    'devices_per_worker',
    0,
    "GPUs of each worker, of those in CUDA_VISIBLE_DEVICES or else all; 0: this host's GPUs in equal shares. Where "
    'there are none and one worker, parts that the CPU is split into.',
    lower_bound=0,
)
_CORES = flags.DEFINE_integer(
    'cores_per_worker', 0, 'Pin each worker to so many cores of its own; 0: to none.', lower_bound=0
)
_MODULE = flags.DEFINE_string('module', 'unet.main', 'Program to start.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Forwarded to the program; the launch is recorded in it.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Forwarded to the program.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Check, and print what would be started.')
_STATUS = flags.DEFINE_bool('status', False, 'Print the state of the last launch of --workdir.')
_FOLLOW = flags.DEFINE_bool('follow', False, 'Print the output of the last launch of --workdir as it grows.')
_CANCEL = flags.DEFINE_bool('cancel', False, 'End the last launch of --workdir; a run saves a checkpoint first.')

_READ_RECORDS = ('unet.main', 'unet.evaluate', 'unet.export')  # whatever their other flags say
_LOG = 'output.log'  # locked by the launcher as long as it lives
_ENDED = 'status'  # its exit status

_LEAVE_ALONE = 20  # seconds in which workers may end by themselves after one has failed
_END_BY_ITSELF = 15  # seconds in which a worker must be gone once its own time to stop is over


def environments(workers: int, devices_per_worker: int, gpus: list[str]) -> list[dict[str, str]]:
    """Returns the variables to add to each worker's environment.

    Args:
      workers: number of workers.
      devices_per_worker: GPUs of each; 0 for equal shares.
      gpus: names of this host's GPUs, as in CUDA_VISIBLE_DEVICES.

    Raises:
      UserError: BAD_CONFIG if there are too few GPUs.
    """
    share = devices_per_worker or len(gpus) // workers
    if gpus and not 0 < share * workers <= len(gpus):
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'{workers} workers with {max(share, 1)} GPU(s) each need {workers * max(share, 1)}; this host has '
            f'{len(gpus)}. Lower --workers or --devices_per_worker.',
        )
    if not gpus and devices_per_worker > 1 and workers > 1:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'--devices_per_worker={devices_per_worker}: this host has no GPUs, and of several workers on CPUs each is '
            'one device. Leave it out, or use --workers=1.',
        )
    with contextlib.ExitStack() as held:  # all ports are held until all are known, so that they differ
        sockets = [held.enter_context(socket.socket()) for _ in range(workers)]
        for listener in sockets:
            listener.bind(('127.0.0.1', 0))
        addresses = ','.join(f'127.0.0.1:{listener.getsockname()[1]}' for listener in sockets)
    result = []
    for rank in range(workers):
        result.append({'UNET_WORKERS': addresses, 'UNET_RANK': str(rank)})
        if gpus:
            result[-1]['CUDA_VISIBLE_DEVICES'] = ','.join(gpus[rank * share : (rank + 1) * share])
    return result


def core_shares(workers: int, cores_per_worker: int) -> list[set[int]]:
    """Returns the cores of each worker, consecutive ones; none if each may use all.

    Raises:
      UserError: BAD_CONFIG if there are too few cores.
    """
    if not cores_per_worker:
        return [set()] * workers
    if workers * cores_per_worker > host.cores():
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'--cores_per_worker={cores_per_worker}: {workers} workers need {workers * cores_per_worker} cores; this '
            f'process may use {host.cores()}.',
        )
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[rank * cores_per_worker : (rank + 1) * cores_per_worker]) for rank in range(workers)]


def kill_after(module: str, arguments: list[str]) -> float:
    """Returns the seconds from the request to stop to SIGKILL: those that the program's config allows, and some more.

    Args:
      module: the program.
      arguments: its arguments, which may name a config.
    """
    config = command.read_config(arguments) if module in command.WITH_CONFIG else None
    config = config or default.get_config()
    return config.runtime.grace_seconds + _END_BY_ITSELF


def main(arguments: list[str]) -> int:
    """Starts the workers and waits for them, or does what --status, --follow or --cancel ask for."""
    if _STATUS.value or _FOLLOW.value or _CANCEL.value:
        if not _WORKDIR.value:
            raise entry.UserError(entry.BAD_USAGE, 'pass the --workdir of the launch')
        launch = launch_record.latest(_WORKDIR.value, 'local')
        with launch_record.watch(launch):
            return _watch_or_cancel(launch)
    words = [sys.executable, '-u', '-m', _MODULE.value]
    words += [f'--{flag.name}={flag.value}' for flag in (_WORKDIR, _DATA_DIR) if flag.value is not None]
    words += arguments
    command.check(_MODULE.value, arguments, workers=_WORKERS.value, devices=_WORKERS.value)
    gpus = host.visible_gpus()
    if not gpus and _WORKERS.value == 1 and _DEVICES.value:
        words.append(f'--config.runtime.virtual_devices={_DEVICES.value}')
    _check_folders(words)
    environs = environments(_WORKERS.value, _DEVICES.value, gpus)
    cores = core_shares(_WORKERS.value, _CORES.value)
    kill_seconds = kill_after(_MODULE.value, arguments)
    if _DRY_RUN.value:
        for environ in environs:
            print(*(f'{name}={shlex.quote(value)}' for name, value in environ.items()), shlex.join(words))
        return entry.OK
    host.ignore_broken_pipes()
    stop_asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop_asked.set())
    workers: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    with _recorded(words) as log, _no_worker_left_behind(workers):
        for rank, (environ, own) in enumerate(zip(environs, cores, strict=True)):
            workers.append(
                subprocess.Popen(
                    words,
                    env=os.environ | environ,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
                    preexec_fn=functools.partial(_begin_worker, own),
                )
            )
            readers.append(threading.Thread(target=_prefix_lines, args=(rank, workers[-1], log), daemon=True))
            readers[-1].start()
        statuses = _wait(workers, stop_asked, kill_seconds)
        for reader in readers:
            reader.join()
        status = command.overall_status(statuses)
        if log:
            with contextlib.suppress(OSError):  # a full disk must not replace the workers' status
                files.write_atomically(pathlib.Path(log.name).with_name(_ENDED), f'{status}\n')
        return status


def _check_folders(words: list[str]) -> None:
    """Checks the folders that a command names, so that what is missing is said once and before anything starts.

    Raises:
      UserError: BAD_USAGE, MISSING_INPUT, BAD_DATA or BAD_CONFIG.
    """
    module, words = _MODULE.value, entry.expand_home(words)
    given = {name: command.value_of(name, words) for name in ('workdir', 'data_dir')}
    if given['workdir']:
        command.check_folder('workdir', given['workdir'])
    data_dir = given['data_dir'] or 'data/cityscapes'
    if files.is_remote(data_dir):
        return
    if module in _READ_RECORDS:
        config = command.read_config(words) if module in command.WITH_CONFIG else None
        splits = (*config.data.train_splits, config.data.eval_split) if config else ()
        command.check_data(data_dir, splits, _WORKERS.value, data_elsewhere=False)
    elif module.startswith('data_prep.'):
        command.check_folder('data_dir', data_dir)


@contextlib.contextmanager
def _recorded(words: list[str]) -> Iterator[IO[bytes] | None]:
    """Records the launch in the workdir, if there is one, and yields its log."""
    if not _WORKDIR.value:
        yield None
        return
    folder = launch_record.begin(_WORKDIR.value)
    with open(folder / _LOG, 'wb', buffering=0) as log:
        files.try_lock(log)
        launch_record.finish(
            folder, {'launcher': 'local', 'job': os.getpid(), 'host': socket.gethostname(), 'command': words}
        )
        yield log


def _watch_or_cancel(launch: launch_record.Launch) -> int:
    """Does what --status, --follow or --cancel ask for, and returns the exit status."""
    folder = pathlib.Path(launch['folder'])
    with open(folder / _LOG, 'rb') as log:
        while True:
            running = _is_running(log, launch)
            if _FOLLOW.value:
                shutil.copyfileobj(log, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            if not (running and _FOLLOW.value):
                break
            time.sleep(0.2)
    if running:
        if _CANCEL.value:
            if launch.get('host') not in (None, socket.gethostname()):
                raise entry.UserError(entry.BAD_USAGE, f'the launch runs on {launch["host"]}: --cancel it there')
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(launch['job'], signal.SIGTERM)
        print(f'process {launch["job"]} {"is asked to stop" if _CANCEL.value else "is running"}', flush=True)
        return entry.OK
    status, ended = entry.PEER_LOST, 'without an exit status: it was killed'
    if (folder / _ENDED).exists():
        status = int((folder / _ENDED).read_text())
        ended = f'with status {status}'
    print(f'ended {ended}', flush=True)
    return status if _FOLLOW.value else entry.OK


def _is_running(log: IO[bytes], launch: launch_record.Launch) -> bool:
    """Whether a launch holds the lock on its log; where there are no locks, whether a process has its number."""
    free = files.try_lock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if free is None:
        return not (pathlib.Path(launch['folder']) / _ENDED).exists() and os.path.exists(f'/proc/{launch["job"]}')
    if free:
        fcntl.flock(log, fcntl.LOCK_UN)
    return not free


def _wait(workers: list[subprocess.Popen], stop_asked: threading.Event, kill_seconds: float) -> list[int]:
    """Waits for the end of all workers, and returns their exit statuses.

    One that fails ends the others, and so does a request to stop. Those that had to be killed,
    `kill_seconds` after they were asked to stop, count as lost.
    """
    failed_at = asked_at = None
    killed = []
    while None in [worker.poll() for worker in workers]:  # all are polled: `any` would stop at the first that runs
        now = time.monotonic()
        if failed_at is None and any(worker.returncode for worker in workers):
            failed_at = now
        if asked_at is None and (stop_asked.is_set() or (failed_at and now - failed_at > _LEAVE_ALONE)):
            asked_at = now
            _signal_all(workers, signal.SIGTERM)
            _signal_all(workers, signal.SIGCONT)  # one that is halted could not answer
        if asked_at and now - asked_at > kill_seconds:
            killed += _signal_all(workers, signal.SIGKILL)
        time.sleep(0.05)
    return [
        entry.PEER_LOST if worker in killed else 128 - worker.returncode if worker.returncode < 0 else worker.returncode
        for worker in workers
    ]


def _signal_all(workers: list[subprocess.Popen], number: signal.Signals) -> list[subprocess.Popen]:
    """Sends a signal to all workers that have not ended, and returns them."""
    running = [worker for worker in workers if worker.poll() is None]
    for worker in running:
        worker.send_signal(number)
    return running


@contextlib.contextmanager
def _no_worker_left_behind(workers: list[subprocess.Popen]) -> Iterator[None]:
    try:
        yield
    finally:
        _signal_all(workers, signal.SIGKILL)


def _begin_worker(cores: set[int]) -> None:
    """Prepares a worker's process: it keeps to its own cores, if it has any, and gets SIGTERM if the launcher dies."""
    pr_set_pdeathsig = 1
    if cores:
        os.sched_setaffinity(0, cores)
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _prefix_lines(rank: int, worker: subprocess.Popen, log: IO[bytes] | None) -> None:
    for line in worker.stdout or ():
        line = b'[%d] %s' % (rank, line)
        with contextlib.suppress(OSError):  # a full disk: a worker whose output nobody took would stand still
            if log:
                log.write(line)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


if __name__ == '__main__':
    entry.run(main, forwards=True)
