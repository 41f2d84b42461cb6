"""Experiment trackers: what the metrics writer writes, in MLflow and Weights & Biases too.

    with trackers.follow(('mlflow',), 'runs/cityscapes', {'global_batch': 16}) as followers:
        for tracker in followers:
            tracker.write(50, {'train/loss': 0.7}, {})

Each tracker has a thread of its own: training never waits for one. What one of them raises is a warning, its first one
only, and training goes on. A run that goes on, goes on in the trackers too: the workdir keeps their ids of it.

Where to is said as the trackers have it: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME; WANDB_MODE, WANDB_API_KEY,
WANDB_PROJECT and so on. Without, MLflow writes files into the workdir, and W&B, where nobody has logged in, is offline.
"""

import contextlib
import json
import math
import os
import pathlib
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from launch import entry, files
from unet.distributed import shutdown

IDS = 'trackers.json'  # in a workdir: tracker -> its id of the run
PROJECT = 'unet-cityscapes'  # where the environment names none

_MOST_WAITING = 200  # reports that wait for a tracker; what comes then is left out
# Seconds that a tracker has at the end: of a run that is done, of another, and of a process that is ended at once.
_CLOSE_WITHIN, _STOP_WITHIN, _END_WITHIN = 60.0, 5.0, 1.0
_MOST_PARAMS = 100  # that MLflow takes at a time

Pictures = Mapping[str, np.ndarray]  # uint8 [height, width, 3] by name


class Mlflow:
    """A run of MLflow."""

    def __init__(self, workdir: pathlib.Path, fields: Mapping[str, object], known: str | None):
        """Begins a run, or goes on with the one whose id is `known`; `id` is its id."""
        os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
        uri = os.environ.get('MLFLOW_TRACKING_URI')
        if not uri:
            os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
            uri = (workdir.absolute() / 'mlflow').as_uri()
        import mlflow

        self._mlflow, self._client = mlflow, mlflow.MlflowClient(uri)
        run = None
        if known:
            with contextlib.suppress(mlflow.MlflowException):  # it was deleted, or is at another place
                run = self._client.get_run(known)
        if run is None:
            name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
            run = self._client.create_run(experiment_id, run_name=workdir.absolute().name)
        self.id = run.info.run_id
        self._client.update_run(self.id, status='RUNNING')
        params = {name: str(value) for name, value in fields.items()}
        new = [mlflow.entities.Param(name, value) for name, value in params.items() if name not in run.data.params]
        for start in range(0, len(new), _MOST_PARAMS):
            self._client.log_batch(self.id, params=new[start : start + _MOST_PARAMS])
        for name, value in params.items():
            if run.data.params.get(name, value) != value:  # params stay as they are
                self._client.set_tag(self.id, f'changed/{name}', value)

    def write(self, step: int, values: Mapping[str, float], pictures: Pictures) -> None:
        now = int(1000 * time.time())
        metric = self._mlflow.entities.Metric
        found = [metric(self._name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=found)
        for name, picture in pictures.items():
            self._client.log_image(self.id, picture, key=name, step=step)

    def write_best(self, step: int, name: str, value: float) -> None:
        self.write(step, {_best(name): value}, {})

    def close(self, outcome: str) -> None:
        status = {'finished': 'FINISHED', 'stopped': 'KILLED', 'failed': 'FAILED'}[outcome]
        self._client.set_terminated(self.id, status)

    @staticmethod
    def _name(name: str) -> str:
        """eval/iou/road -> eval/iou.road, since in its files no metric may be the folder of another; and without the
        characters that it refuses."""
        section, _, rest = name.partition('/')
        return re.sub(r'[^/\w.\- ]', '_', f'{section}/{rest.replace("/", ".")}')


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, workdir: pathlib.Path, fields: Mapping[str, object], known: str | None):
        """Begins a run, or goes on with the one whose id is `known`; `id` is its id."""
        os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
        import wandb

        self.id = known or uuid.uuid4().hex[:8]
        # Neither console nor code nor the host's load, and not a word on the console.
        settings = wandb.Settings(
            silent=True,
            console='off',
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            x_disable_stats=True,
        )
        online = wandb.setup(settings).settings.mode in ('online', 'shared')
        logged_in = online and wandb.login(prompt=False)
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get('WANDB_PROJECT', PROJECT),
            name=os.environ.get('WANDB_NAME', workdir.absolute().name),
            id=self.id,
            resume='allow' if logged_in else None,
            dir=str(workdir),
            config=dict(fields),
            allow_val_change=True,
            mode='offline' if online and not logged_in else None,
            settings=settings,
        )
        self._run.define_metric('step', hidden=True)
        self._run.define_metric('*', step_metric='step')  # a run that goes on may repeat steps

    def write(self, step: int, values: Mapping[str, float], pictures: Pictures) -> None:
        images = {name: self._wandb.Image(picture) for name, picture in pictures.items()}
        self._run.log({'step': step, **values, **images})

    def write_best(self, step: int, name: str, value: float) -> None:
        self._run.summary.update({_best(name): value, f'{_best(name)}_step': step})

    def close(self, outcome: str) -> None:
        self._run.finish(exit_code=0 if outcome == 'finished' else 1)
        self._wandb.teardown()


def _best(name: str) -> str:
    """eval/miou -> best/miou."""
    return f'best/{name.rpartition("/")[2]}'


KINDS: dict[str, type] = {'mlflow': Mlflow, 'wandb': Wandb}


class Tracker:
    """Hands over to one tracker, in a thread of its own."""

    def __init__(self, name: str, begin: Callable[[], Mlflow | Wandb]):
        self._name = name
        self._waiting: queue.Queue[tuple[str, tuple]] = queue.Queue(_MOST_WAITING)
        self._warned = self._closing = False
        self._thread = threading.Thread(target=self._hand_over, args=(begin,), daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float], pictures: Pictures) -> None:
        """Hands over the values that are finite, and pictures, of a step."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._put('write', step, finite, pictures)

    def write_best(self, step: int, name: str, value: float) -> None:
        """Hands over the best value of a score so far."""
        self._put('write_best', step, name, float(value))

    def close(self, outcome: str, seconds: float) -> None:
        """Waits until the tracker has taken everything, though not for longer than this.

        Args:
          outcome: 'finished', 'stopped' or 'failed'.
          seconds: how long to wait.
        """
        if self._closing:
            return
        self._closing = True
        self._put('close', outcome)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f'has not taken everything within {seconds:g} s of the end')

    def _put(self, method: str, *arguments) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait((method, arguments))
        except queue.Full:
            self._warn(f'does not keep up: {_MOST_WAITING} reports wait, further ones are left out')

    def _hand_over(self, begin: Callable[[], Mlflow | Wandb]) -> None:
        try:
            tracker = begin()
        except Exception as error:
            self._warn(f'{error}; this run goes on without it')
            return
        method = ''
        while method != 'close':
            method, arguments = self._waiting.get()
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                self._warn(f'{error}; training goes on')

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            logging.warning('config.log.trackers: %s: %s', self._name, ' '.join(text.split())[:300])


@contextlib.contextmanager
def follow(names: Sequence[str], workdir: str, fields: Mapping[str, object]) -> Iterator[list[Tracker]]:
    """Hands a run over to trackers until the block ends, and tells them how it ended.

    Args:
      names: of KINDS.
      workdir: the run's folder.
      fields: the config, by dotted name.
    """
    folder, changing = pathlib.Path(workdir), threading.Lock()

    def begin(name: str) -> Mlflow | Wandb:
        with changing:
            known = _read_ids(folder)
        tracker = KINDS[name](folder, fields, known.get(name))
        with changing:
            files.write_atomically(folder / IDS, json.dumps(_read_ids(folder) | {name: tracker.id}) + '\n')
        return tracker

    found = [Tracker(name, lambda name=name: begin(name)) for name in names]

    def close(outcome: str, seconds: float) -> None:
        for tracker in found:
            tracker.close(outcome, seconds)

    with shutdown.cleaned(lambda: close('failed', _END_WITHIN)):  # where the process is ended from outside
        outcome = 'failed'
        try:
            yield found
            outcome = 'finished'
        except entry.UserError as error:
            outcome = 'stopped' if error.status == entry.STOPPED else 'failed'
            raise
        finally:
            close(outcome, _CLOSE_WITHIN if outcome == 'finished' else _STOP_WITHIN)


def _read_ids(folder: pathlib.Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / IDS).read_text())
        return found if isinstance(found, dict) else {}
    return {}
