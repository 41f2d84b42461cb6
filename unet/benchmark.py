"""Measures how fast a config trains, predicts and evaluates on these devices, and says what bounds it.

    python -m unet.benchmark --config=configs/cityscapes.py --data_dir=data/cityscapes --workdir=runs/cityscapes
    python -m unet.benchmark --config=configs/cityscapes.py --parts=step --scale=1,2,4,8

`input_pipeline` makes batches that nobody takes a step with; `step` takes the same batch from memory again and again;
`end_to_end` is both together, what training does. Each is measured for --seconds after a warm-up. On several hosts,
start it as unet.main is started (`--module=unet.benchmark` of the launchers): it then also measures, as
`no_communication`, the step of one device of each by itself, at the same time but without a word between them, which no
training on all of them can exceed.

--scale does this on one host: it starts itself once for each number of GPUs, or of workers that have an equal share of
the cores where there is no GPU. A device computes as many images as with --config on the largest of the numbers.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

from absl import flags

from launch import entry, files, host
from unet import config_flag

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from unet.diagnostics import throughput

FILE = 'benchmark.json'
PARTS = ('input_pipeline', 'step', 'end_to_end', 'predict', 'evaluate')
_OLD_PARTS = {'loader': 'input_pipeline', 'both': 'end_to_end'}  # names that --parts had once

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder; --parts=step needs none.')
_PARTS = flags.DEFINE_list('parts', list(PARTS), f'What to measure, of {",".join(PARTS)}.')
_SECONDS = flags.DEFINE_float('seconds', 20, 'For how long each is measured.', lower_bound=0.1)
_SCALE = flags.DEFINE_list('scale', [], 'Numbers of GPUs, or of workers without GPUs, to compare, e.g. 1,2,4.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for benchmark.json, all figures; default none is written.')

_WAITS = 0.05  # share of the time spent waiting for data from which on the input pipeline bounds a run
_ROW = '{:<17}{:>12}{:>12}{:>12}{:>12}  {}'
_SCALING_ROW = '{:<10}{:<17}{:>12}{:>12}{:>21}'


def main() -> None:
    config = config_flag.checked()
    parts = _parts(_PARTS.value)
    if _WORKDIR.value:
        with host.quiet_import():
            from unet.training import workdir
        workdir.check_writable(_WORKDIR.value)
    figures = _scale(config.global_batch, parts) if _SCALE.value else _measure(config, parts)
    if _WORKDIR.value and figures:
        path = pathlib.Path(_WORKDIR.value, FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(str(path), json.dumps(figures, indent=1) + '\n')


def _parts(names: list[str]) -> list[str]:
    """The parts to measure by their names of today. Raises UserError BAD_USAGE for a name that no part has."""
    parts = [_OLD_PARTS.get(name, name) for name in names]
    if not parts or set(parts) - set(PARTS):
        raise entry.UserError(entry.BAD_USAGE, f'--parts={",".join(names)}: choose of {",".join(PARTS)}')
    renamed = [f'{name} is called {_OLD_PARTS[name]} now' for name in names if name in _OLD_PARTS]
    if renamed:
        print(f'--parts: {", ".join(renamed)}', file=sys.stderr, flush=True)
    return parts


def _measure(config: 'ConfigDict', parts: list[str]) -> dict[str, dict]:
    """Measures every part on the devices of this process and of its peers, and prints each as it is done.

    Returns:
      What benchmark.json holds: the conditions, and the figures of each part by its name. Nothing on all but rank 0.
    """
    with host.quiet_import():
        from unet.diagnostics import throughput

    started = []

    def print_conditions(conditions: throughput.Conditions) -> None:
        started.append(conditions)
        print(_hello(conditions), flush=True)
        print(_ROW.format('', 'images/s', 'median ms', 'p90 ms', 'peak GiB', ''), flush=True)

    def print_figures(part: str, figures: throughput.Figures) -> None:
        rate, peak = f'{figures.images_per_second:.2f}', f'{figures.peak_bytes / 2**30:.2f}'
        median, high = f'{figures.milliseconds:.1f}', f'{figures.milliseconds_p90:.1f}'
        print(_ROW.format(part, rate, median, high, peak, _remark(part, figures, *started)), flush=True)

    measured = throughput.measure(
        config,
        _DATA_DIR.value,
        parts=parts,
        seconds=_SECONDS.value,
        on_start=print_conditions,
        on_progress=print_figures,
    )
    if measured is None:
        return {}
    conditions, figures = measured
    if 'end_to_end' in figures:
        print(_verdict(figures), flush=True)
    return {'conditions': dataclasses.asdict(conditions)} | {
        part: {name: value for name, value in dataclasses.asdict(found).items() if value is not None}
        for part, found in figures.items()
    }


def _hello(conditions: 'throughput.Conditions') -> str:
    return (
        f'{conditions.global_batch} images of {"x".join(map(str, conditions.crop))} per step at width '
        f'{conditions.config["model"]["width"]} on '
        f'{conditions.devices} {conditions.device} device(s) of {conditions.workers} worker(s) with '
        f'{conditions.cores} cores, {conditions.precision}, XLA {"on" if conditions.jit_compile else "off"}\n'
        f'{conditions.step_flops_per_image / 1e9:.1f} GFLOP to train on an image; a large matrix product reaches '
        f'{conditions.matrix_flops_per_second / 1e12:.3f} TFLOP/s\n'
        f'Estimated memory of a device: {conditions.estimated_peak_bytes / 2**30:.2f} GiB'
    )


def _remark(part: str, figures: 'throughput.Figures', conditions: 'throughput.Conditions') -> str:
    if part == 'predict':
        return 'one image at a time, from host to host'
    if part == 'end_to_end' and figures.waiting_for_data is not None:
        return f'{100 * figures.waiting_for_data:.1f} % of the time waiting for data'
    if part in ('step', 'no_communication'):
        flops = figures.images_per_second * conditions.step_flops_per_image
        share = f'{100 * flops / conditions.matrix_flops_per_second:.0f} % of the matrix product'
        return share + (f'; {conditions.expected_milliseconds:.1f} ms expected' if part == 'step' else '')
    return ''


def _verdict(figures: Mapping[str, 'throughput.Figures']) -> str:
    """Says whether the input pipeline or the step bounds training, for figures that hold 'end_to_end'."""
    waiting = figures['end_to_end'].waiting_for_data
    rates = {part: found.images_per_second for part, found in figures.items()}
    if waiting is not None:
        waits = waiting > _WAITS
    elif {'input_pipeline', 'step'} <= rates.keys():  # the slower one, of which both together are as fast at the best
        waits = rates['input_pipeline'] < rates['step']
    else:
        return (
            'config.runtime.deterministic reads no clock: what bounds it is known with '
            '--parts=input_pipeline,step,end_to_end.'
        )
    if waits:
        return (
            'The input pipeline bounds it. JPEG records (build_tfrecords --image_format=jpeg), smaller records '
            '(--size), config.data.cache or more cores would help.'
        )
    of_step = ''
    if 'step' in rates:
        share = rates['end_to_end'] / rates['step']
        of_step = f', at {100 * share:.0f} % of its speed alone' if share < 0.995 else ', as fast as alone'
    return f'The step bounds it{of_step}.'


def _scale(global_batch: int, parts: list[str]) -> dict[int, dict[str, dict]]:
    """Measures the same on one, two, ... devices of this host, each in a process of its own, and prints a table.

    Returns:
      What benchmark.json holds: by the number of devices what `_measure` returned there.
    """
    if not all(number.isdecimal() and int(number) for number in _SCALE.value):
        raise entry.UserError(entry.BAD_USAGE, f'--scale={",".join(_SCALE.value)}: give numbers, e.g. 1,2,4')
    counts = sorted({1, *map(int, _SCALE.value)})  # one alone is what the others are compared with
    gpus, cores = host.visible_gpus(), host.cores()
    most, what = (len(gpus), 'GPUs') if gpus else (cores, 'cores')
    if counts[-1] > most:
        raise entry.UserError(entry.BAD_CONFIG, f'--scale={counts[-1]}: this host has {most} {what}')
    if global_batch % counts[-1]:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'--scale={counts[-1]}: config.global_batch={global_batch} does not divide. Set it to a multiple.',
        )
    command, figures = [sys.executable, '-m'], {}
    for count in counts:
        print(f'--- {count} {"GPU" if gpus else "worker"}(s)', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            arguments = [
                *config_flag.arguments(sys.argv[1:]),
                f'--config.global_batch={global_batch // counts[-1] * count}',
                f'--data_dir={_DATA_DIR.value}',
                f'--parts={",".join(parts)}',
                f'--seconds={_SECONDS.value}',
                f'--workdir={folder}',
            ]
            environ = dict(os.environ)
            if gpus:
                environ['CUDA_VISIBLE_DEVICES'] = ','.join(gpus[:count])
                program = ['unet.benchmark']
            else:
                workers = [f'--workers={count}', f'--cores_per_worker={cores // counts[-1]}']
                program = ['launch.local', *workers, '--module=unet.benchmark', '--']
            status = subprocess.run([*command, *program, *arguments], env=environ).returncode
            if status:
                raise entry.UserError(status, f'with {count} it ended with status {status}, for the reason above')
            figures[count] = json.loads(pathlib.Path(folder, FILE).read_text())
    print(_scaling_table(figures), flush=True)
    return figures


def _scaling_table(figures: Mapping[int, Mapping[str, dict]]) -> str:
    """Images per second of each number of devices; efficiency against so many times one alone, which XLA compiles as a
    whole, and against as many workers at the same time that compute the same but do not talk to each other."""
    lines = [_SCALING_ROW.format('devices', 'part', 'images/s', 'efficiency', 'of no_communication')]
    for count, found in figures.items():
        for part in ('input_pipeline', 'step', 'end_to_end', 'evaluate'):
            if part in found:
                rate = found[part]['images_per_second']
                of_first = rate / (figures[1][part]['images_per_second'] * count)
                of_bound = ''
                if part == 'step' and 'no_communication' in found:
                    of_bound = f'{100 * rate / found["no_communication"]["images_per_second"]:.1f} %'
                lines.append(_SCALING_ROW.format(count, part, f'{rate:.2f}', f'{100 * of_first:.1f} %', of_bound))
    return '\n'.join(lines)


if __name__ == '__main__':
    entry.run(main)
