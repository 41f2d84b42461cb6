"""Trains every row of a table of recipes at equal CPU or GPU time and says what each learns: mean and spread of seeds.

    python -m benchmarks.accuracy --config=configs/camvid.py --data_dir=data/camvid --rows=rows.json --minutes=20

The rows are a JSON file: {"today": {}, "stem": {"model.stem": 2, "data.crop": [256, 320]}, ...}, for each the fields of
the config that it changes. Two short runs of a row find what a step of it costs, and so how many steps it may take:
its schedule ends with its time. What is equal is CPU time where there is no GPU, else wall time, start and evaluation
included. A row and seed that has been trained is not trained again; results.json in --folder holds all of them.
"""

import json
import math
import os
import pathlib
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from launch import entry, files, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Record folder; required.')
_ROWS = flags.DEFINE_string('rows', None, 'JSON file of the rows, see above; required.')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1'], 'Seeds to train each row with.')
_MINUTES = flags.DEFINE_float('minutes', 30, 'CPU or GPU minutes of a run, all in all.', lower_bound=0.001)
_RARE = flags.DEFINE_list('rare', ['fence', 'pole', 'traffic sign', 'bicycle'], 'Classes whose mean IoU is shown too.')
_FOLDER = flags.DEFINE_string('folder', 'accuracy', 'Where the runs and results.json go.')

_SHORT, _LONGER = 10, 30  # steps of the two runs that find the cost of a step


def main() -> None:
    config = config_flag.checked()
    for flag in (_DATA_DIR, _ROWS):
        if flag.value is None:
            raise entry.UserError(entry.BAD_USAGE, f'pass --{flag.name}')
    rows = _read_rows(_ROWS.value, config)
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'results.json'
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, fields in rows.items():
        steps = None
        for seed in _SEEDS.value:
            key = f'{name}, seed {seed}, {_MINUTES.value:g} minutes'
            if results.get(key, {}).get('fields') == fields:
                continue
            steps = steps or _steps_within(folder, fields)
            figures = _train(folder / f'{name}-{seed}', fields, seed, steps)
            results[key] = {'row': name, 'seed': seed, 'fields': fields} | figures
            files.write_atomically(os.fspath(path), json.dumps(results, indent=1) + '\n')
            print(f'{key}: {steps} steps, mIoU {100 * figures["miou"]:.1f} %', flush=True)
    keys = {name: [f'{name}, seed {seed}, {_MINUTES.value:g} minutes' for seed in _SEEDS.value] for name in rows}
    print(table({name: [results[key] for key in of_row] for name, of_row in keys.items()}))


def table(results: dict[str, list[dict]]) -> str:
    """Returns a table in Markdown: a line for each row, mean and half the range of its seeds.

    Args:
      results: by row, the figures of each seed: `miou`, `rare`, `least` (fractions), `images_per_second`, `minutes`.
    """
    columns = {
        'mIoU of those present, %': ('miou', 100),
        'rare classes, %': ('rare', 100),
        'lowest class, %': ('least', 100),
        'images/s': ('images_per_second', 1),
        'minutes': ('minutes', 1),
    }
    lines = ['| row | seeds | ' + ' | '.join(columns) + ' |', '|---|---' + '|---' * len(columns) + '|']
    for name, runs in results.items():
        cells = []
        for key, factor in columns.values():
            values = [factor * run[key] for run in runs]
            spread = f' ± {(max(values) - min(values)) / 2:.1f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.1f}{spread}')
        lines.append(f'| {name} | {len(runs)} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _read_rows(path: str, config) -> dict[str, dict]:
    """The rows, each of which makes a config that can be trained. Raises UserError BAD_CONFIG if one does not."""
    from configs import default

    rows = files.read_json(path, 'See python -m benchmarks.accuracy --help for what it holds.')
    for name, fields in rows.items():
        changed = config.copy_and_resolve_references()
        try:
            changed.update_from_flattened_dict({key: _value(value) for key, value in fields.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise entry.UserError(entry.BAD_CONFIG, f'{path}: row {name!r}: {error}') from error
        if problems := default.validate(changed):
            raise entry.UserError(entry.BAD_CONFIG, f'{path}: row {name!r}: {"; ".join(problems)}')
    return rows


def _value(value):
    return tuple(value) if isinstance(value, list) else value


def _steps_within(folder: pathlib.Path, fields: dict) -> int:
    """The steps that a row may take: the rest of its time is for start and evaluation."""
    minutes = []
    for steps in (_SHORT, _LONGER):
        with tempfile.TemporaryDirectory(dir=folder) as workdir:
            minutes.append(_train(pathlib.Path(workdir, 'run'), fields, '0', steps)['minutes'])
    of_step = max((minutes[1] - minutes[0]) / (_LONGER - _SHORT), 1e-9)
    return max(1, _SHORT + int((_MINUTES.value - minutes[0]) / of_step))


def _train(workdir: pathlib.Path, fields: dict, seed: str, steps: int) -> dict:
    """Trains from scratch, evaluates after the last step, and returns the figures of a row and seed."""
    shutil.rmtree(workdir, ignore_errors=True)
    changes = fields | {'seed': int(seed), 'num_steps': steps, 'eval.every_steps': steps, 'eval.pictures': 0}
    command = [
        *(sys.executable, '-m', 'unet.main', *config_flag.arguments(sys.argv[1:])),
        *(f'--data_dir={_DATA_DIR.value}', f'--workdir={workdir}'),
        *(f'--config.{name}={_value(value)}' for name, value in changes.items()),
    ]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    if done.returncode:
        raise entry.UserError(done.returncode, f'{shlex.join(command)}: {(done.stdout + done.stderr)[-2000:]}')
    if not host.visible_gpus():
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    scores = next(row for row in reversed(rows) if 'eval/miou' in row)
    of_classes = {
        name.removeprefix('eval/iou/'): value
        for name, value in scores.items()
        if name.startswith('eval/iou/') and value is not None
    }
    rare = [of_classes[name] for name in _RARE.value if name in of_classes]
    return {
        'miou': scores['eval/miou_present'],
        'rare': statistics.mean(rare) if rare else math.nan,
        'least': min(of_classes.values()),
        'images_per_second': next(
            row['time/images_per_second'] for row in reversed(rows) if 'time/images_per_second' in row
        ),
        'minutes': seconds / 60,
        'steps': steps,
    }


if __name__ == '__main__':
    entry.run(main)
