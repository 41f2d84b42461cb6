"""Everything there is to measure where GPUs are, in one command: a table, a JSON file, and limits that are kept or not.

    python -m benchmarks.gpu --scale=1,8 --minutes=10

Each cell is a program of its own (see gpu.log in the folder for what it said), on one GPU unless it is about several.
One that fails is named with its last lines, and the others go on; its exit status is that of the command. What matters
most comes first: cells that --minutes leaves no time for are named too, and make the status 75. A limit that is missed
makes it 1. Where there is no GPU the same cells run in miniature, and limits of speed are not judged. The files are
written after each cell; with --parts, figures of others that the folder holds stay.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection

from absl import flags

from benchmarks import cells
from launch import entry, files, host

_FOLDER = flags.DEFINE_string('folder', 'gpu', 'Where tables and figures go.')
_SCALE = flags.DEFINE_list('scale', ['1'], 'Numbers of GPUs, or of workers without GPUs, to compare, e.g. 1,8.')
_MINUTES = flags.DEFINE_float('minutes', 10, 'For all cells; a cell is begun only before.', lower_bound=0.1)
_PARTS = flags.DEFINE_list('parts', list(cells.PARTS), f'What to measure, of {",".join(cells.PARTS)}.')
_CITYSCAPES_DIR = flags.DEFINE_string('cityscapes_dir', None, 'Dataset to read; default a synthetic one is drawn.')

_START_SECONDS = 30  # of a cell: imports, compilation
_OVERTIME_SECONDS = 120  # that a cell may take beyond --minutes, if it began before; one that hangs is stopped then
MISSED = 1  # exit status where all cells did their work, and a limit was missed
FILE = 'gpu.json'
_TAIL = 5  # last lines that are shown of a cell that failed


@dataclasses.dataclass(frozen=True)
class Limit:
    """A figure that should not fall below a limit, or exceed it if `at_most`.

    Attributes:
      what: the figure, in words.
      limit: in the unit of the figure.
      cells: whose JSON it is taken from.
      value: takes it out of theirs.
      at_most: the figure should not exceed the limit.
      everywhere: it is judged in miniature too.
    """

    what: str
    limit: float
    cells: tuple[str, ...]
    value: Callable[..., float]
    at_most: bool = False
    everywhere: bool = False


def _rate(found: dict, part: str) -> float:
    return found[part]['images_per_second']


def _share_of_matrix(found: dict) -> float:
    conditions = found['conditions']
    return _rate(found, 'step') * conditions['step_flops_per_image'] / conditions['matrix_flops_per_second']


def _efficiency(found: dict) -> float:
    most = max(found, key=int)
    return _rate(found[most], 'step') / (
        int(most) / int(min(found, key=int)) * _rate(found[min(found, key=int)], 'step')
    )


LIMITS = (
    Limit('checks of preflight that failed', 0, ('preflight',), lambda found: found['failed'], True, True),
    Limit('step / matrix product in bfloat16', 0.4, ('step cityscapes bfloat16 XLA',), _share_of_matrix),
    Limit(
        'memory of the step / its estimate',
        1.3,
        ('step cityscapes bfloat16 XLA',),
        lambda found: found['step']['peak_bytes'] / found['conditions']['estimated_peak_bytes'],
        at_most=True,
    ),
    Limit('time of the step / Keras fit', 1.0, ('fit',), lambda found: found['ratios']['ours / fit'][0], at_most=True),
    *(
        Limit(
            f'loading {kind} and step together / step alone',
            0.95,
            (f'loading {kind}',),
            lambda found: _rate(found, 'end_to_end') / _rate(found, 'step'),
        )
        for kind in ('png', 'jpeg')
    ),
    Limit('efficiency of the most devices', 0.9, ('scaling',), _efficiency),
    Limit('values that differ in a rerun', 0, ('rerun',), lambda found: len(found['rerun_differs']), True, True),
    Limit('values that differ when resumed', 0, ('rerun',), lambda found: len(found['resumed_differs']), True, True),
    *(
        Limit(
            f'{cell}, bytes per step',
            3072,
            (cell,),
            lambda found: max(found['bytes_per_step']),
            at_most=True,
        )
        for cell in ('leak', 'leak of workers')
    ),
)


@dataclasses.dataclass
class Results:
    """What has been measured so far.

    Attributes:
      devices: names of the GPUs; none: the cells ran in miniature.
      seconds: for how long a cell was measured.
      cells: name of a cell -> what its program wrote.
      failed: name of a cell -> its exit status and last lines.
      left_out: cells that there was no time for.
    """

    devices: list[str]
    seconds: float = 0
    cells: dict[str, dict] = dataclasses.field(default_factory=dict)
    failed: dict[str, dict] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def write(self, folder: pathlib.Path) -> None:
        """Writes the JSON file and the Markdown page."""
        everything = {'miniature': not self.devices} | dataclasses.asdict(self) | {'limits': self.limits()}
        files.write_atomically(str(folder / FILE), json.dumps(everything, indent=1) + '\n')
        files.write_atomically(str(folder / 'gpu.md'), self.table() + '\n')

    def limits(self) -> list[dict]:
        """Judges each of `LIMITS`."""
        verdicts = []
        for limit in LIMITS:
            verdict, value = 'not measured', None
            if all(cell in self.cells for cell in limit.cells):
                value = limit.value(*(self.cells[cell] for cell in limit.cells))
                kept = value <= limit.limit if limit.at_most else value >= limit.limit
                verdict = 'not judged' if not (self.devices or limit.everywhere) else 'met' if kept else 'MISSED'
            sign = 'at most' if limit.at_most else 'at least'
            verdicts.append({'what': limit.what, 'value': value, 'limit': f'{sign} {limit.limit}', 'verdict': verdict})
        return verdicts

    def table(self) -> str:
        """Returns the Markdown page."""
        device = self.cells.get('ceilings', {}).get('device', 'unknown device')
        lines = [
            f'On {device}, {host.cores()} cores, {self.seconds:.0f} s per cell:\n',
            '| what | figure |',
            '|---|---|',
        ]
        for name, figures in self.cells.items():
            lines += [f'| {row} | {text} |' for row, text in cells.rows(name, figures)]
        for name, failure in self.failed.items():
            last = failure['said'][-1] if failure['said'] else 'it said nothing'
            lines.append(f'| {name} | FAILED with status {failure["status"]}: {last.replace("|", "/")} |')
        if self.left_out:
            lines.append(f'| no time left for | {", ".join(self.left_out)} |')
        lines += ['', '| limit | found | aim | |', '|---|---|---|---|']
        for verdict in self.limits():
            value = '' if verdict['value'] is None else f'{verdict["value"]:.2f}'
            lines.append(f'| {verdict["what"]} | {value} | {verdict["limit"]} | {verdict["verdict"]} |')
        return '\n'.join(lines)


def main() -> int:
    unknown = set(_PARTS.value) - set(cells.PARTS)
    if unknown or not all(count.isdecimal() and int(count) for count in _SCALE.value):
        raise entry.UserError(
            entry.BAD_USAGE,
            f'--parts={",".join(_PARTS.value)} --scale={",".join(_SCALE.value)}: choose parts of '
            f'{",".join(cells.PARTS)}, and give numbers, e.g. 1,8',
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(entry.STOPPED))
    gpus, folder = host.visible_gpus(), pathlib.Path(_FOLDER.value)
    counts = sorted({1, *map(int, _SCALE.value)})
    most = len(gpus) or host.cores()
    if counts[-1] > most:
        raise entry.UserError(
            entry.BAD_CONFIG, f'--scale={counts[-1]}: this host has {most} {"GPUs" if gpus else "cores"}'
        )
    folder.mkdir(parents=True, exist_ok=True)
    planned = [
        cell for cell in cells.plan(folder, counts, not gpus, _CITYSCAPES_DIR.value) if cell.part in _PARTS.value
    ]
    if not planned:
        raise entry.UserError(
            entry.BAD_USAGE, f'--parts={",".join(_PARTS.value)}: nothing to measure with --scale={counts[-1]}'
        )
    seconds = min(20.0, max(2.0, _MINUTES.value * 60 / len(planned) - _START_SECONDS)) if gpus else 1.0
    results = _earlier(folder, gpus, {cell.name for cell in planned})
    results.seconds, results.left_out = seconds, [cell.name for cell in planned]
    deadline = time.monotonic() + 60 * _MINUTES.value
    with (folder / 'gpu.log').open('a' if _PARTS.present else 'w') as log:
        for cell in planned:
            if time.monotonic() > deadline:
                break
            print(f'--- {cell.name}', flush=True)
            status, said = _run(cell, seconds, gpus, deadline + _OVERTIME_SECONDS - time.monotonic())
            log.write(f'=== {cell.name}: status {status}\n{said}\n')
            log.flush()
            results.left_out.remove(cell.name)
            figures = _figures(cell, said)
            if figures is not None:
                results.cells[cell.name] = figures
            if status:
                results.failed[cell.name] = {'status': status, 'said': said.splitlines()[-_TAIL:]}
                print('\n'.join([f'FAILED with status {status}:', *results.failed[cell.name]['said']]), flush=True)
            results.write(folder)
    print(f'\n{results.table()}\n\nAll figures: {folder / FILE}')
    failed = [results.failed[cell.name] for cell in planned if cell.name in results.failed]
    if failed:
        return failed[0]['status']
    if any(verdict['verdict'] == 'MISSED' for verdict in results.limits()):
        return MISSED
    return entry.STOPPED if results.left_out else entry.OK


def _earlier(folder: pathlib.Path, gpus: list[str], again: Collection[str]) -> Results:
    """What the folder holds of cells that are not measured again; nothing without --parts.

    Raises:
      UserError: BAD_CONFIG if that was measured on other devices.
    """
    devices = _names(gpus)
    results = Results(devices)
    if not _PARTS.present or not (folder / FILE).exists():
        return results
    earlier = files.read_json(str(folder / FILE))
    theirs = earlier.get('devices', ['unknown devices'])  # of a file from before devices were noted
    if theirs != devices:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'{folder / FILE} has figures of {" + ".join(theirs) or "a CPU"}, and here is '
            f'{" + ".join(devices) or "a CPU"}. Pass another --folder.',
        )
    results.cells = {name: figures for name, figures in earlier['cells'].items() if name not in again}
    results.failed = {name: failure for name, failure in earlier['failed'].items() if name not in again}
    return results


def _names(gpus: list[str]) -> list[str]:
    """What the driver calls this host's GPUs; an empty list where there is none."""
    if not gpus:
        return []
    said = ''
    with contextlib.suppress(OSError):
        command = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return said.splitlines() or [f'{len(gpus)} unknown GPU(s)']


def _run(cell: cells.Cell, seconds: float, gpus: list[str], longest: float) -> tuple[int, str]:
    """Runs a cell's program for so many seconds at the longest. Returns its status, as a program may end with it, and
    all that it said."""
    cell.output.unlink(missing_ok=True)
    cell.output.parent.mkdir(parents=True, exist_ok=True)
    environ = dict(os.environ)
    if gpus:
        environ['CUDA_VISIBLE_DEVICES'] = ','.join(gpus[: cell.devices])
    command = [argument.format(seconds=seconds, steps=max(6, int(10 * seconds))) for argument in cell.command]
    with subprocess.Popen(
        [sys.executable, '-m', *command],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too: workers and data loaders
            said, _ = process.communicate()
            return entry.PEER_LOST, f'{said}\nstopped: it took more than {longest:.0f} s'
        except BaseException:  # asked to stop: nothing is left behind that would use the GPUs
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode if 0 <= process.returncode < 128 else entry.BUG, said


def _figures(cell: cells.Cell, said: str) -> dict | None:
    """What the program wrote; for preflight, which prints an object per check, the checks by name."""
    if cell.name == 'preflight':
        checks = [json.loads(line) for line in said.splitlines() if line.startswith('{')]
        failed = sum(not check['passed'] and check['status'] != entry.OK for check in checks)  # others are warnings
        return {'failed': failed, 'checks': checks} if checks else None
    return files.read_json(str(cell.output)) if cell.output.exists() else None


if __name__ == '__main__':
    entry.run(main)
