"""The folder of a run: who may write to it, which config it belongs to, and its metrics.

with workdir.lease('runs/cityscapes'):
    workdir.compare_config('runs/cityscapes', config)
    workdir.write_config('runs/cityscapes', config)
    metrics = workdir.MetricsWriter('runs/cityscapes', last_step=1000)
    metrics.write(1050, {'train/loss': 0.7})
"""

import contextlib
import json
import math
import os
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import tensorflow as tf
from ml_collections import ConfigDict

from configs.default import flatten
from data_prep import records
from launch import entry
from unet import checkpoint, stopping

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
TENSORBOARD = 'tensorboard'
CHECKPOINTS = 'checkpoints'
BEST = 'best'
_LEASE = 'lease.json'
_RENEWED_EVERY = 10  # seconds
_STALE_AFTER = 60  # seconds


def check_writable(workdir: str) -> None:
    """Raises Failure BAD_USAGE if there is, and can be, no such folder that this process may write to."""
    folder = pathlib.Path(os.path.abspath(workdir))
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = 'may not be written to' if folder.is_dir() else 'is no folder'
        raise entry.Failure(entry.BAD_USAGE, f'--workdir={workdir}: {folder} {reason}. Pass another one.')


@contextlib.contextmanager
def lease(workdir: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keeps a second run out of the workdir: two runs would overwrite each other's checkpoints.

    The lease is a file with host and process, renewed every 10 s. It no longer holds once it has not been renewed for
    60 s, which is waited for, or as soon as its process is gone from this host. A run that stood still for so long that
    another has taken its lease ends with IN_USE.

    Args:
      workdir: the folder; made if it is not there.
      check: called again and again while waiting; what it raises ends the waiting.

    Raises:
      Failure: IN_USE if another run holds it, BAD_USAGE if there cannot be such a folder.
    """
    path = pathlib.Path(workdir) / _LEASE
    check_writable(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'started': _process_start(os.getpid()),
        'job': os.environ.get('SLURM_JOB_ID', ''),
    }
    while True:
        try:
            with path.open('x') as file:
                json.dump(mine, file)
            break
        except FileExistsError:
            _take_over(path, mine, check)
    released = threading.Event()

    def renew():
        while not released.wait(_RENEWED_EVERY):
            with contextlib.suppress(OSError):  # a slow disk, or a lease that is moved aside, must not end the run
                holder, _ = _look(path)
                if holder not in (mine, {}) and not released.is_set():
                    stopping.end_process(
                        entry.IN_USE,
                        f'{workdir}: taken over by {_name(holder)}, since this process had not renewed its lease for '
                        f'{_STALE_AFTER} s. That run goes on from the last checkpoint.',
                    )
                os.utime(path)

    def release():
        released.set()
        with contextlib.suppress(FileNotFoundError):
            if _look(path)[0] == mine:
                path.unlink()

    threading.Thread(target=renew, daemon=True).start()
    with stopping.cleaned(release):
        yield


def _take_over(path: pathlib.Path, mine: dict, check: Callable[[], None]) -> None:
    """Removes a lease that no longer holds, having waited until that is sure."""
    try:
        seen = holder, renewed = _look(path)
        if holder.get('host') == mine['host']:
            if _process_start(holder['pid']) == holder['started']:
                raise _in_use(path, holder)
        else:
            with tempfile.TemporaryFile(dir=path.parent) as file:  # dated by the clock that dates the lease
                age = os.fstat(file.fileno()).st_mtime - renewed
            left = _STALE_AFTER - max(age, 0)
            if left > 0:
                print(f'{path.parent} was held by {_name(holder)}: waiting {left:.0f} s for a sign of it', flush=True)
            deadline = time.monotonic() + left
            while time.monotonic() < deadline:
                check()
                time.sleep(0.5)
                if (now := _look(path)) != seen:
                    raise _in_use(path, now[0])
        aside = path.with_name(f'{path.name}.{mine["host"]}.{mine["pid"]}')
        path.rename(aside)  # of several who find it stale, one moves it; the others find none, or the lease of that one
        if _look(aside) == seen:
            aside.unlink()
        else:
            aside.rename(path)
    except FileNotFoundError:
        return


def _look(path: pathlib.Path) -> tuple[dict, float]:
    """Whose a lease is ({}: written half, just now or by a process that died) and when it was renewed.

    The file is opened since NFS answers `stat` from memory for up to a minute. Raises FileNotFoundError.
    """
    with path.open() as file:
        renewed = os.fstat(file.fileno()).st_mtime
        try:
            return json.load(file), renewed
        except ValueError:
            return {}, renewed


def _name(holder: dict) -> str:
    return f'process {holder.get("pid", "unknown")} on host {holder.get("host", "unknown")}'


def _in_use(path: pathlib.Path, holder: dict) -> entry.Failure:
    return entry.Failure(entry.IN_USE, f'{path.parent}: in use by {_name(holder)}. Stop it, or pass another --workdir.')


def _process_start(pid: int) -> str:
    """When a process of this host started, so that a new process of the same number is not mistaken for it; '' if it is
    gone."""
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ''
    return stat.rpartition(')')[2].split()[19]  # field 22 of proc(5): clock ticks after boot


def changes_nothing_learnt(field: str) -> bool:
    """Whether a config field may change when a run goes on: its length, its intervals, and how it is computed."""
    return (
        field in ('num_steps', 'checkpoint.keep', 'eval.batch', 'eval.pictures', 'data.cache', 'data.servers')
        or field.endswith(('every_steps', '.steps'))
        or field.startswith('runtime.')
    )


def compare_config(workdir: str, config: ConfigDict, *, accept_change: bool = False) -> None:
    """Compares with the config.json that is there, and says what has changed, if anything has been learnt with it.

    Raises:
      Failure: IN_USE if the run was started with a config that means something else and `accept_change` is not set.
    """
    folder = pathlib.Path(workdir)
    if not checkpoint.list_newest_first(folder / CHECKPOINTS):
        return
    if not (folder / CONFIG).exists():
        print(f'{folder / CONFIG} is gone: this config is taken for the one that the run was started with', flush=True)
        return
    before, now = flatten(read_config(workdir)), flatten(config)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    diff = [f'  config.{name}: {before.get(name)!r} -> {now.get(name)!r}' for name in changed]
    meaning = [name for name in changed if not changes_nothing_learnt(name)]
    if meaning and not accept_change:
        raise entry.Failure(
            entry.IN_USE,
            f'{workdir} holds a run with another config:\n'
            + '\n'.join(diff)
            + '\nGo on with the old values, pass another --workdir, or change the run with --accept_config_change.',
        )
    if diff:
        print('The config has changed since the run was started:\n' + '\n'.join(diff), flush=True)


def write_config(workdir: str, config: ConfigDict) -> None:
    records.write_atomically(pathlib.Path(workdir) / CONFIG, config.to_json(indent=2) + '\n')


def read_config(workdir: str) -> ConfigDict:
    """The config of a run. Raises Failure MISSING_INPUT if the folder holds none, BAD_DATA if it is damaged."""
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        raise entry.Failure(
            entry.MISSING_INPUT, f'{workdir}: no run here (it has no {CONFIG}). Pass the --workdir of unet.main.'
        )
    try:
        return ConfigDict(json.loads(path.read_text()))
    except ValueError as error:
        raise entry.Failure(
            entry.BAD_DATA,
            f'{path}: not JSON ({error}). Remove it and run unet.main with the same config again: it writes it anew.',
        ) from error


def last_scores(workdir: str) -> dict[str, float]:
    """The scores of the run's last evaluation, from metrics.jsonl; empty if there was none."""
    scores, path = {}, pathlib.Path(workdir) / METRICS
    for line in path.read_text().splitlines() if path.exists() else ():
        values = json.loads(line)
        if 'eval/miou' in values:
            scores = {name: math.nan if value is None else value for name, value in values.items() if name != 'step'}
    return scores


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard; starting again cuts off what came after the checkpoint."""

    def __init__(self, workdir: str, *, last_step: int):
        self._path = pathlib.Path(workdir) / METRICS
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines(True) if _step_of(line) <= last_step]
            records.write_atomically(self._path, ''.join(kept))
        events = pathlib.Path(workdir) / TENSORBOARD
        for file in events.glob('events.out.tfevents.*'):
            _cut_events(file, last_step)
        self._summaries = tf.summary.create_file_writer(str(events))

    def write(self, step: int, values: dict[str, float], pictures: dict[str, object] | None = None) -> None:
        """One line with `step` and the values, which are also TensorBoard scalars; what is not finite is null.

        Args:
          step: completed steps.
          values: by name.
          pictures: uint8 [height, width, 3] by name, for TensorBoard alone.

        Raises:
          Failure: NO_STORAGE if they cannot be written.
        """
        line = {'step': step} | {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        with self._path.open('a') as file:
            file.write(json.dumps(line) + '\n')
        try:
            with self._summaries.as_default():
                for name, picture in (pictures or {}).items():
                    tf.summary.image(name, picture[None], step=step)
                for name, value in values.items():  # last: a large event's failure is ignored, a small one's is not
                    tf.summary.scalar(name, value, step=step)
            self._summaries.flush()
        except tf.errors.OpError as error:  # a full disk has several names there
            raise entry.Failure(
                entry.NO_STORAGE,
                f"{self._path.parent}: TensorBoard's events could not be written ({error.message.splitlines()[0]}). "
                'The checkpoints are whole: free some space and run the same command again.',
            ) from error


def _step_of(line: str) -> float:
    try:
        return json.loads(line)['step']
    except ValueError:  # the last line of a run that was killed while it wrote
        return math.inf


def _cut_events(file: pathlib.Path, last_step: int) -> None:
    """Cuts off what comes after `last_step` in an event file, which one process wrote in the order of its steps."""
    kept = 0  # bytes
    with contextlib.suppress(tf.errors.DataLossError):  # the end of a file whose writer was killed
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            if tf.compat.v1.Event.FromString(record).step > last_step:
                break
            kept += len(records.frame(record))
    os.truncate(file, kept)
