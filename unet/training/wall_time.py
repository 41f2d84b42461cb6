"""What the time since a run was first started went into, over all its starts.

    clock = wall_time.Clock('runs/cityscapes', step=0, started=time.time())
    with clock.spent_on('training'):
        clock.first_steps_done()
    clock.record(50)
    wall_time.shares('runs/cityscapes')  # {'training that counts': 0.0, 'starts': 1.0, ...}

Each process of the run appends lines to a file that, unlike the metrics, keeps what came after the checkpoint that the
run went on from: what was trained there and had to be repeated is known by it.
"""

import contextlib
import itertools
import json
import pathlib
import time
from collections.abc import Iterator

from launch import files

FILE = 'wall_time.jsonl'
KINDS = ('starting', 'training', 'evaluating', 'saving', 'other')
SHARES = ('training that counts', 'repeated steps', 'starts', 'evaluations', 'saves', 'other', 'not running')


class Clock:
    """Adds up what this process spends its time on.

    It is starting until its first steps are done, the compilation of the step included.
    """

    def __init__(self, workdir: str | None, *, step: int, started: float):
        """Begins to count.

        Args:
          workdir: where to keep the record; None: nowhere, as on all ranks but the chief.
          step: completed steps.
          started: when this process began, of time.time().
        """
        self._path = pathlib.Path(workdir) / FILE if workdir else None
        self._started = started
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._starting, self._kind = True, 'other'
        self._since = time.monotonic() - (time.time() - started)
        if self._path and self._path.exists():
            with files.naming(self._path), self._path.open('a') as file:
                file.write('\n')  # after what a killed process may have left unfinished
        self.record(step)

    @contextlib.contextmanager
    def spent_on(self, kind: str) -> Iterator[None]:
        """Counts the time until the block ends as of one of KINDS."""
        self._add()
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._add()
            self._kind = before

    def first_steps_done(self) -> None:
        """Ends the start, unless it has ended already."""
        if self._starting:
            self._add()
            self._starting = False

    def record(self, step: int) -> None:
        """Writes down the seconds so far and the completed steps. Raises UserError NO_STORAGE if it cannot."""
        self._add()
        if self._path:
            line = {'started': self._started, 'now': time.time(), 'step': step} | self._seconds
            with files.naming(self._path), self._path.open('a') as file:
                file.write(json.dumps(line) + '\n')

    def _add(self) -> None:
        now = time.monotonic()
        kind = 'starting' if self._starting and self._kind in ('training', 'other') else self._kind
        self._seconds[kind] += now - self._since
        self._since = now


def shares(workdir: str | pathlib.Path) -> tuple[float, dict[str, float]] | None:
    """Returns the seconds from a run's first start to its last record, and what share of them each of SHARES was.

    Not running are the times between a process's last record and the next start: what a killed process did after its
    last record is among them. Steps count if no later start took them again. None if there is no record.
    """
    processes = _read(pathlib.Path(workdir) / FILE)
    if not processes:
        return None
    first, last = processes[0][0]['started'], processes[-1][-1]['now']
    wall = max(last - first, 1e-9)
    spent = dict.fromkeys(SHARES, 0.0)
    for number, lines in enumerate(processes):
        kept = min((later[0]['step'] for later in processes[number + 1 :]), default=float('inf'))
        for before, after in itertools.pairwise(lines):
            trained = after['training'] - before['training']
            steps = after['step'] - before['step']
            counts = min(max(kept - before['step'], 0), steps) / steps if steps else 1.0
            spent['training that counts'] += counts * trained
            spent['repeated steps'] += (1 - counts) * trained
        lost = {'starts': 'starting', 'evaluations': 'evaluating', 'saves': 'saving', 'other': 'other'}
        for name, kind in lost.items():
            spent[name] += lines[-1][kind]
    spent['not running'] = max(wall - sum(spent.values()), 0.0)
    return wall, {name: seconds / wall for name, seconds in spent.items()}


def _read(path: pathlib.Path) -> list[list[dict[str, float]]]:
    """The lines of each process in turn; damaged ones, as a kill leaves them, are left out."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            found = json.loads(text)
            lines.append({name: float(found[name]) for name in ('started', 'now', 'step', *KINDS)})
    return [list(group) for _, group in itertools.groupby(lines, key=lambda line: line['started'])]
