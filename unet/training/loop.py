"""The loop: trains from boundary to boundary of the schedule, and reports, evaluates and saves at each what is due.

scores = loop.train(run)
"""

import contextlib
import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from launch import entry, xla_cache
from unet.distributed import cluster, shutdown, stragglers
from unet.training import checkpoint, metric_writer, schedule, step, trackers, train_log, wall_time
from unet.training import workdir as workdir_files

_TIMED_CALLS = 3  # of one step each; the first compiles
_MOST_STEPS_PER_CALL = 10  # by then a call costs nothing beside its steps
_ENDLESS_SKIPPING = 100  # overflowed steps in a row after which float16 is given up

# Scores by name, and pictures uint8 [h, w, 3] by name.
Evaluation = tuple[dict[str, float], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that the loop puts together.

    Attributes:
      workdir: the run's folder.
      boundaries: completed steps -> the boundaries from there on, see `schedule.boundaries`.
      num_steps: the last step.
      global_batch: images per step.
      steps_per_call: steps that one call into TensorFlow takes; 0: what fits `grace_seconds`.
      grace_seconds: the time within which a request to stop is answered.
      skips_overflows: whether a step whose gradient is not finite may be skipped, as float16 needs it.
      checkpoints_kept: of the newest, beside the best.
      best_metric: the score by which a model is the best.
      contents: what a checkpoint holds: `model` and `state`.
      train_steps: takes a number of steps (int scalar) and the request to stop (float scalar), and returns what
        `step.read_metrics` reads.
      check_replicas: compares the replicas' weights after so many completed steps, see `replica_check.make_check`.
      evaluate: evaluates the model after so many completed steps, and says how far it has come to a log; None if a
        request to stop came meanwhile.
      writer: of the metrics; None on all ranks but the chief.
      clock: says what the time goes into.
      joined: the processes and devices that share the work.
      stop: becomes true when the run is to stop.
    """

    workdir: str
    boundaries: Callable[[int], Iterator[schedule.Boundary]]
    num_steps: int
    global_batch: int
    steps_per_call: int
    grace_seconds: float
    skips_overflows: bool
    checkpoints_kept: int
    best_metric: str
    contents: tf.train.Checkpoint
    train_steps: Callable[[tf.Tensor, tf.Tensor], step.Taken]
    check_replicas: Callable[[int], None]
    evaluate: Callable[[int, train_log.TrainLog], Evaluation | None]
    writer: metric_writer.MetricsWriter | None
    clock: wall_time.Clock
    joined: cluster.Joined
    stop: shutdown.StopRequest


def train(run: Run) -> dict[str, float]:
    """Trains until the last step and returns the scores of the last evaluation.

    All ranks take every decision alike. A request to stop may reach one of them alone: it rides on the step's
    all-reduce, and all of them read it off the same step.

    Raises:
      UserError: STOPPED after a request to stop, with a checkpoint saved; DIVERGED, NO_STORAGE, PEER_LOST if a
        replica's weights differ, or what `evaluate` raises.
    """
    state, chief = run.contents.state, run.joined.is_chief
    start = saved = int(state.step.numpy())
    scores = {}
    if start == run.num_steps:  # as rank 0 reads them, so that all evaluate once more or none
        scores = run.joined.group.all_gather(workdir_files.last_scores(run.workdir) if chief else None)[0]
    pace = _Pace(run)
    window = []  # metrics of the steps since the last report
    skipped = 0  # overflowed steps in a row
    ranks = stragglers.Stragglers(run.joined.group)
    profiler = contextlib.ExitStack()

    def save(done: int) -> None:
        nonlocal saved
        if chief and done > saved:
            folder = os.path.join(run.workdir, workdir_files.CHECKPOINTS)
            with run.clock.spent_on('saving'):
                checkpoint.save(folder, run.contents, step=done, keep=run.checkpoints_kept)
        saved = done

    with profiler, train_log.TrainLog(run.num_steps, start, run.global_batch) as log:
        for number, boundary in enumerate(run.boundaries(start)):
            rows, stopped = _train_until(boundary.step, run, pace, log)
            if boundary.stop_profile:
                profiler.close()
            done = int(state.step.numpy())  # less than at the boundary if asked to stop
            skipped = _check_finite(rows, done, skipped, run.skips_overflows)
            if chief and number == 1:  # the first steps are done, and no evaluation has compiled what no start finds
                xla_cache.seal(run.workdir)
            window.extend(rows)
            if boundary.log and done == boundary.step and window:
                _report(run, done, log, np.stack(window), ranks)
                window = []
            if (boundary.save or boundary.evaluate or stopped) and done > start:
                with run.clock.spent_on('saving'):
                    run.check_replicas(done)
            # A run that had ended is evaluated once more if its scores were lost.
            evaluated = state.evaluated.numpy() == done and bool(scores or done < run.num_steps)
            if boundary.evaluate and not stopped and not evaluated:
                try:
                    with run.clock.spent_on('evaluating'):
                        evaluation = run.evaluate(done, log)
                except Exception:
                    save(done)  # what has been learnt is good
                    raise
                if evaluation is None:
                    stopped = True
                else:
                    scores, pictures = evaluation
                    _record_evaluation(run, done, scores, pictures)
            if boundary.save or stopped:
                save(done)
            if chief and boundary.start_profile and not stopped:
                profiler.enter_context(_profile(run.workdir))
            run.joined.stall.progress()
            run.clock.record(done)
            if stopped:
                run.joined.group.all_gather(None)  # nobody leaves before the chief has saved
                raise entry.UserError(
                    entry.STOPPED, f'stopped on request after step {done}; the same command goes on from there'
                )
    return scores


class _Pace:
    """How many steps a call into TensorFlow takes. Two calls may be under way when a request to stop comes."""

    def __init__(self, run: Run):
        self._run = run
        self._seconds: list[float] = []  # of the first calls, of one step each
        self.steps = run.steps_per_call or 1
        self.is_known = run.steps_per_call > 0

    def timed(self, seconds: float) -> None:
        """Takes the seconds of a call of one step, and after a few of them decides, on all ranks alike."""
        self._seconds.append(seconds)
        if len(self._seconds) == _TIMED_CALLS:
            slowest = max(self._run.joined.group.all_gather(min(self._seconds)))
            self.steps = int(np.clip(self._run.grace_seconds / 4 / max(slowest, 1e-9), 1, _MOST_STEPS_PER_CALL))
            self.is_known = True


def _train_until(boundary: int, run: Run, pace: _Pace, log: train_log.TrainLog) -> tuple[np.ndarray, bool]:
    """Trains up to a boundary, or until a request to stop.

    Returns:
      float32 [steps, len(step.METRICS)] of the steps taken, and whether all ranks are to stop now.
    """
    done = int(run.contents.state.step.numpy())
    alone = run.joined.group.size == 1
    rows = [np.zeros([0, len(step.METRICS)], np.float32)]
    queued = []  # what the last call returned, if it has not been waited for
    stopped = alone and bool(run.stop)
    with run.clock.spent_on('training'), log.timed():
        while done < boundary and not stopped:
            started = time.monotonic()
            count = min(pace.steps, boundary - done)
            queued.append(run.train_steps(tf.constant(count), tf.constant(float(bool(run.stop)))))
            done += count
            # Wait for the call before this one: one stays queued, so that a GPU is busy, and a stop waits for two.
            rows += [step.read_metrics(taken) for taken in (queued[:-1] if pace.is_known else queued)]
            queued = queued[-1:] if pace.is_known else []
            log.advance(count)
            run.clock.first_steps_done()
            run.joined.stall.progress()
            if not pace.is_known:
                pace.timed(time.monotonic() - started)
            stopped = bool(run.stop) if alone else _asked_to_stop(rows[-1])
        rows += [step.read_metrics(taken) for taken in queued]
    return np.concatenate(rows), stopped or _asked_to_stop(rows[-1])


def _asked_to_stop(rows: np.ndarray) -> bool:
    return bool(step.column(rows, 'stop').any())


def _check_finite(rows: np.ndarray, done: int, skipped: int, skips_overflows: bool) -> int:
    """Raises UserError DIVERGED naming the step if training cannot go on; returns the overflowed steps in a row so far.

    The update of a non-finite step has been withheld already, so the last checkpoint, if there is one, is good.
    """
    steps = zip(step.column(rows, 'finite'), step.column(rows, 'loss'), step.column(rows, 'loss_scale'), strict=True)
    for number, (finite, loss, scale) in enumerate(steps, done - len(rows) + 1):
        skipped = 0 if finite else skipped + 1
        if skipped and not skips_overflows:
            raise entry.UserError(
                entry.DIVERGED,
                f'step {number}: the loss or its gradient is not finite (loss {loss}). Checkpoints are good. '
                'Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or lengthen the warm-up.',
            )
        if skipped >= _ENDLESS_SKIPPING:
            raise entry.UserError(
                entry.DIVERGED,
                f'step {number}: float16 has overflowed {skipped} times in a row, now at loss scale {scale:g}. '
                'Lower config.optimizer.learning_rate or use config.precision=bfloat16.',
            )
    return skipped


def _report(run: Run, done: int, log: train_log.TrainLog, rows: np.ndarray, ranks: stragglers.Stragglers) -> None:
    """Says how training has gone since the last report, and which rank held the others up."""
    compared, sentences = ranks.compare(
        seconds=log.seconds,
        without_data=float(step.column(rows, 'seconds_without_data').sum()),
        in_sums=float(step.column(rows, 'seconds_in_sums').sum()),
    )
    reported = log.report(done, rows) | compared
    for sentence in sentences:
        log.log(f'step {done}/{run.num_steps}  {sentence}')
    if run.writer:
        run.writer.write(done, reported)


def _record_evaluation(run: Run, done: int, scores: dict[str, float], pictures: trackers.Pictures) -> None:
    """Writes an evaluation, and saves the model if it is the best so far."""
    state, metric = run.contents.state, run.best_metric
    state.evaluated.assign(done)
    best = scores[metric] > state.best.numpy()
    if best:
        state.best.assign(scores[metric])
    if run.writer:
        run.writer.write(done, scores, pictures)
    if run.writer and best:
        run.writer.write_best(done, metric, scores[metric])
        with run.clock.spent_on('saving'):
            checkpoint.save(os.path.join(run.workdir, workdir_files.BEST), run.contents, step=done, keep=1)


@contextlib.contextmanager
def _profile(workdir: str) -> Iterator[None]:
    """Traces what is computed until the block ends."""
    tf.profiler.experimental.start(os.path.join(workdir, workdir_files.TENSORBOARD))
    try:
        yield
    finally:
        tf.profiler.experimental.stop()
    where = shlex.quote(f'--logdir={workdir}')
    print(f'Profile written: tensorboard {where} (its Profile tab needs pip install xprof)', flush=True)
