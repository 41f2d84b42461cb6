"""Measures how fast a config trains, predicts and evaluates on these devices, and says what bounds it.

    python -m unet.benchmark --config=configs/cityscapes.py --data_dir=data/cityscapes --workdir=runs/cityscapes
    python -m unet.benchmark --config=configs/cityscapes.py --parts=step --scale=1,2,4,8

The loader alone makes batches that nobody takes; the step alone takes the same batch from memory again and again; both
together are what training does. Each is measured for --seconds after a warm-up. On several hosts, start it as unet.main
is started (`--module=unet.benchmark` of the launchers): it then also measures, as 'apart', the step of one device of
each by itself, at the same time but without a word between them, which no training on all of them can exceed.

--scale does this on one host: it starts itself once for each number of GPUs, or of workers that have an equal share of
the cores where there is no GPU. A device computes as many images as with --config on the largest of the numbers.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from launch import entry, files, host
from unet import config_flag

FILE = 'benchmark.json'
PARTS = ('loader', 'step', 'both', 'predict', 'evaluate')
flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder; --parts=step needs none.')
_PARTS = flags.DEFINE_list('parts', list(PARTS), f'What to measure, of {",".join(PARTS)}.')
_SECONDS = flags.DEFINE_float('seconds', 20, 'For how long each is measured.', lower_bound=0.1)
_SCALE = flags.DEFINE_list('scale', [], 'Numbers of GPUs, or of workers without GPUs, to compare, e.g. 1,2,4.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for benchmark.json, all figures; default none is written.')

_WAITS = 0.05  # share of the time spent waiting for data from which on the loader bounds a run
_ROW = '{:<10}{:>12}{:>12}{:>12}{:>12}  {}'


def main() -> None:
    config = config_flag.checked()
    if not _PARTS.value or set(_PARTS.value) - set(PARTS):
        raise entry.UserError(entry.BAD_USAGE, f'--parts={",".join(_PARTS.value)}: choose of {",".join(PARTS)}')
    if _WORKDIR.value:
        with host.quiet_import():
            from unet.training import workdir
        workdir.check_writable(_WORKDIR.value)
    figures = _scale(config.global_batch) if _SCALE.value else _measure(config)
    if _WORKDIR.value and figures:
        path = pathlib.Path(_WORKDIR.value, FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(str(path), json.dumps(figures, indent=1) + '\n')


def _measure(config) -> dict[str, dict]:
    """Every part on the devices of this process and of its peers, printed as it goes; nothing on all but rank 0."""
    with host.quiet_import():
        from unet.diagnostics import throughput

    conditions = {}

    def tell(name: str, figures: dict) -> None:
        if name == 'conditions':
            conditions.update(figures)
            print(_hello(figures), flush=True)
            print(_ROW.format('', 'images/s', 'median ms', 'p90 ms', 'peak GiB', ''), flush=True)
            return
        print(
            _ROW.format(
                name,
                f'{figures["images_per_second"]:.2f}',
                f'{figures["milliseconds"]:.1f}',
                f'{figures["milliseconds_p90"]:.1f}',
                f'{figures["peak_bytes"] / 2**30:.2f}',
                _remark(name, figures, conditions),
            ),
            flush=True,
        )

    figures = throughput.measure(config, _DATA_DIR.value, parts=_PARTS.value, seconds=_SECONDS.value, tell=tell)
    if 'both' in figures:
        print(_verdict(figures), flush=True)
    return figures


def _hello(conditions: dict) -> str:
    step = conditions['step_flops_per_image']
    return (
        f'{conditions["global_batch"]} images of {"x".join(map(str, conditions["crop"]))} per step at width '
        f'{conditions["config"]["model"]["width"]} on '
        f'{conditions["devices"]} {conditions["device"]} device(s) of {conditions["workers"]} worker(s) with '
        f'{conditions["cores"]} cores, {conditions["precision"]}, XLA {"on" if conditions["jit_compile"] else "off"}\n'
        f'{step / 1e9:.1f} GFLOP to train on an image; a large matrix product reaches '
        f'{conditions["matrix_flops_per_second"] / 1e12:.3f} TFLOP/s\n'
        f'Estimated memory of a device: {conditions["estimated_peak_bytes"] / 2**30:.2f} GiB'
    )


def _remark(name: str, figures: dict, conditions: dict) -> str:
    if name == 'predict':
        return 'one image at a time, from host to host'
    if name == 'both' and 'waiting_for_data' in figures:
        return f'{100 * figures["waiting_for_data"]:.1f} % of the time waiting for data'
    if name in ('step', 'apart'):
        flops = figures['images_per_second'] * conditions['step_flops_per_image']
        share = f'{100 * flops / conditions["matrix_flops_per_second"]:.0f} % of the matrix product'
        return share + (f'; {conditions["expected_milliseconds"]:.1f} ms expected' if name == 'step' else '')
    return ''


def _verdict(figures: dict) -> str:
    both, rates = figures['both'], {name: found.get('images_per_second') for name, found in figures.items()}
    if 'waiting_for_data' in both:
        waits = both['waiting_for_data'] > _WAITS
    elif {'loader', 'step'} <= rates.keys():  # the slower one, of which both together are as fast at the best
        waits = rates['loader'] < rates['step']
    else:
        return 'config.runtime.deterministic reads no clock: what bounds it is known with --parts=loader,step,both.'
    if waits:
        return (
            'The loader bounds it. JPEG records (build_tfrecords --image_format=jpeg), smaller records (--size), '
            'config.data.cache or more cores would help.'
        )
    of_step = ''
    if 'step' in rates:
        share = rates['both'] / rates['step']
        of_step = f', at {100 * share:.0f} % of its speed alone' if share < 0.995 else ', as fast as alone'
    return f'The step bounds it{of_step}.'


def _scale(global_batch: int) -> dict[str, dict]:
    """The same on one, two, ... devices of this host."""
    if not all(number.isdecimal() and int(number) for number in _SCALE.value):
        raise entry.UserError(entry.BAD_USAGE, f'--scale={",".join(_SCALE.value)}: give numbers, e.g. 1,2,4')
    counts = sorted(map(int, _SCALE.value))
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
                f'--parts={",".join(_PARTS.value)}',
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


def _scaling_table(figures: dict[int, dict]) -> str:
    """Images per second of each number of devices; efficiency against so many times the first, and against as many
    workers at the same time that do not talk to each other."""
    lines = [f'{"devices":<10}{"part":<10}{"images/s":>12}{"efficiency":>12}{"of apart":>12}']
    first = next(iter(figures))
    for count, found in figures.items():
        for part in ('loader', 'step', 'both', 'evaluate'):
            if part in found:
                rate = found[part]['images_per_second']
                of_first = rate / (figures[first][part]['images_per_second'] * count / first)
                apart = rate / found['apart']['images_per_second'] if part == 'step' and 'apart' in found else None
                shown = f'{100 * apart:10.1f} %' if apart else ''
                lines.append(f'{count:<10}{part:<10}{rate:>12.2f}{100 * of_first:>10.1f} %{shown:>12}')
    return '\n'.join(lines)


if __name__ == '__main__':
    entry.run(main)
