"""Every CPU speed and memory figure of docs/performance.md in one go: tables on the screen, JSON in a folder.

    python -m benchmarks --folder=benchmark

Each part is a program of its own (python -m benchmarks.step --help); this runs them one after the other and then shows
what is aimed at beside what was found. Keep the machine free of other work meanwhile.
"""

import dataclasses
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from absl import flags

from launch import entry, host

_FOLDER = flags.DEFINE_string('folder', 'benchmark', 'Where the figures go.')
_REPOSITORY = flags.DEFINE_string(
    'cityscapesscripts', 'https://github.com/mcordts/cityscapesScripts', 'Official repository, see benchmarks.counting.'
)
_ONLY = flags.DEFINE_list('only', [], 'Parts to run; default all.')

_SMALL = (
    '--config=configs/cityscapes_256.py',
    '--config.model.width=16',
    '--config.global_batch=4',
    '--config.data.crop=(128,256)',
)
_WORKERS = ('--config=configs/cityscapes_256.py', '--config.model.width=32', '--config.global_batch=8')
# Part -> program and arguments; it writes <folder>/<part>.json, or into the folder of that name.
_PARTS = {
    'loading': ('benchmarks.loading', '--cores=1', '--output={folder}/loading.json'),
    'lock': ('benchmarks.lock', '--config=configs/cityscapes_unet.py', '--output={folder}/lock.json'),
    'step': (
        'benchmarks.step',
        *_SMALL,
        '--sides=fit,bare,ours,mirrored,microbatches',
        '--uncompiled=fit,ours',
        '--steps=1',
        '--output={folder}/step.json',
    ),
    'recompute': (
        'benchmarks.step',
        '--config=configs/cityscapes_256.py',
        '--config.global_batch=4',
        '--sides=ours,recompute',
        '--jit_compile=auto',
        '--rounds=3',
        '--steps=1',
        '--output={folder}/recompute.json',
    ),
    'survey': ('benchmarks.survey', '--output={folder}/survey.json'),
    'survey_1_core': (
        'benchmarks.survey',
        '--cores=1',
        '--noexpect',
        '--rounds=2',
        '--output={folder}/survey_1_core.json',
    ),
    'workers': (
        'unet.benchmark',
        *_WORKERS,
        '--parts=step',
        '--seconds=15',
        '--scale=1,2',
        '--workdir={folder}/workers',
    ),
    'launches': (
        'benchmarks.launches',
        '--config=configs/cityscapes_unet.py',
        '--config.model.width=8',
        '--output={folder}/launches.json',
    ),
    'leak': (
        'launch.local',
        '--workers=2',
        '--module=benchmarks.leak',
        '--',
        '--config=configs/default.py',
        '--config.model.width=2',
        '--config.global_batch=4',
        '--config.data.crop=(32,32)',
        '--output={folder}/leak.json',
    ),
    'memory': (
        'benchmarks.memory',
        '--config=configs/cityscapes_256.py',
        '--config.runtime.microbatches=8',
        '--output={folder}/memory.json',
    ),
    'estimates': ('benchmarks.estimates', '--output={folder}/estimates.json'),
    'counting': (
        'benchmarks.counting',
        '--cityscapesscripts={cityscapesscripts}',
        '--output={folder}/counting.json',
    ),
    'converter': ('benchmarks.converter', '--rounds=3', '--output={folder}/converter.json'),
    'converter_memory': ('benchmarks.converter', '--memory=50,500', '--output={folder}/converter_memory.json'),
    'dataset': (
        'data_prep.synthesize',
        '--cityscapes_dir={folder}/dataset',
        '--train_images=24',
        '--val_images=4',
        '--size=128x256',
    ),
    'records': ('data_prep.build_tfrecords', '--cityscapes_dir={folder}/dataset', '--data_dir={folder}/data'),
    'startup': (
        'benchmarks.startup',
        '--config=configs/synthetic.py',
        '--data_dir={folder}/data',
        '--output={folder}/startup.json',
    ),
}


@dataclasses.dataclass(frozen=True)
class Aim:
    """A figure and its limit.

    Attributes:
      what: the figure, in words.
      limit: that it should not fall below, or exceed if `at_most`.
      part: whose JSON it is in.
      value: takes it out of that; None if it could not be measured.
    """

    what: str
    limit: float
    part: str
    value: Callable[[dict], float | None]
    at_most: bool = False


def _memory_share(found: dict) -> float:
    return found['cityscapes_256, recompute']['compiled'] / found['cityscapes_256']['compiled']


def _loading(side: str) -> Callable[[dict], float]:
    """How many times the other side's images one core loads per second."""
    return lambda found: statistics.median(found['cores']['1'][side]['ratios_images_per_second'])


def _later_start(found: dict) -> float:
    starts = [figures['first_batch'] for figures in found['cores']['1'].values() if 'first_batch' in figures]
    return max(last - first for first, last in starts)


def _two_workers(found: dict) -> float:
    """Their rate together over that without communication, which older files call 'apart'."""
    two = found['2']
    alone = two['no_communication'] if 'no_communication' in two else two['apart']
    return two['step']['images_per_second'] / alone['images_per_second']


def _counting(found: dict) -> float:
    """Our milliseconds of CPU time per image, on the predictions that take longest."""
    return max(figures['ours'] for figures in found.values() if isinstance(figures, dict))


_AIMS = (
    Aim('loading at 280x280 / the blog post, images/s', 15, 'loading', _loading('ours 280')),
    Aim('loading crops from JPEG / plain pipeline, images/s', 5, 'loading', _loading('ours jpeg')),
    Aim('loading crops from PNG / plain pipeline, images/s', 1.1, 'loading', _loading('ours png')),
    Aim('first batch at the end of an epoch of 3000, more seconds', 5, 'loading', _later_start, at_most=True),
    Aim(
        "Python's lock per training example, ms",
        0.3,
        'lock',
        lambda found: found['milliseconds'],
        at_most=True,
    ),
    Aim(
        'step, time of ours / Keras fit',
        1.03,
        'step',
        lambda found: found['ratios']['ours / fit'][0],
        at_most=True,
    ),
    Aim(
        'step, time under MirroredStrategy / bare',
        1.02,
        'step',
        lambda found: found['ratios']['mirrored / bare'][0],
        at_most=True,
    ),
    Aim(
        'two workers together / without communication',
        0.93,
        'workers',
        _two_workers,
    ),
    Aim(
        'launches of a replica, normalisation over all',
        500,
        'launches',
        lambda found: found['normalisation over global_batch, XLA auto']['launches'],
        at_most=True,
    ),
    Aim(
        'launches of a replica, normalisation over the device',
        60,
        'launches',
        lambda found: found['normalisation over device, XLA auto']['launches'],
        at_most=True,
    ),
    Aim(
        'normalisation in bfloat16, bytes per element',
        20,
        'launches',
        lambda found: sum(found['bytes_per_element'].values()),
        at_most=True,
    ),
    Aim(
        'memory that a step of two workers leaves behind, KiB',
        3,
        'leak',
        lambda found: max(found['bytes_per_step']) / 1024,
        at_most=True,
    ),
    Aim('recompute, memory of the compiled step', 0.55, 'estimates', _memory_share, at_most=True),
    Aim(
        'recompute, time of the step',
        1.35,
        'recompute',
        lambda found: found['ratios']['recompute / ours'][0],
        at_most=True,
    ),
    Aim(
        'step, time without XLA / with its pieces, least gain',
        1.0,
        'survey',
        lambda found: min(case['off / auto'][0] for case in found['cases']),
    ),
    Aim(
        'expected time of a step / measured, worst case',
        1.5,
        'survey',
        lambda found: max(max(ratio, 1 / ratio) for ratio in (case['expected / measured'] for case in found['cases'])),
        at_most=True,
    ),
    Aim(
        'batch 32 at width 64 in microbatches, GiB',
        8e9 / 2**30,
        'memory',
        lambda found: found['peak_bytes'] / 2**30,
        at_most=True,
    ),
    Aim(
        'memory estimate / compiler, worst case',
        1.3,
        'estimates',
        lambda found: max(max(case['ratio'], 1 / case['ratio']) for case in found.values()),
        at_most=True,
    ),
    Aim('counting, milliseconds of CPU time per image', 8, 'counting', _counting, at_most=True),
    Aim(
        'converter / TFDS builder, images per second of building',
        3,
        'converter',
        lambda found: statistics.median(found['building']['ratios']),
    ),
    Aim('first step / bare program', 1.5, 'startup', lambda found: found['ratio'][0], at_most=True),
)


def main() -> None:
    folder = pathlib.Path(_FOLDER.value)
    if set(_ONLY.value) - set(_PARTS):
        raise entry.UserError(entry.BAD_USAGE, f'--only={",".join(_ONLY.value)}: choose of {",".join(_PARTS)}')
    folder.mkdir(parents=True, exist_ok=True)
    minutes = {}
    for part in _ONLY.value or _PARTS:
        arguments = [
            argument.format(folder=folder, cityscapesscripts=_REPOSITORY.value) for argument in ('-m', *_PARTS[part])
        ]
        print(f'\n=== {part}: python {" ".join(arguments)}', flush=True)
        started = time.monotonic()
        status = subprocess.run([sys.executable, *arguments]).returncode
        if status:
            raise entry.UserError(status, f'{part} ended with status {status}, for the reason above')
        minutes[part] = round((time.monotonic() - started) / 60, 2)
    found = {part: json.loads(path.read_text()) for part in _PARTS if (path := _output(folder, part)).exists()}
    found['machine'] = {'cores': host.cores(), 'processor': _processor(), 'python': platform.python_version()}
    found['minutes'] = minutes
    (folder / 'benchmark.json').write_text(json.dumps(found, indent=1) + '\n')
    print(f'\n=== {found["machine"]["processor"]}, {host.cores()} cores, {sum(minutes.values()):.0f} min: {minutes}')
    for aim in _AIMS:
        if aim.part in found:
            print(_line(aim, aim.value(found[aim.part])))
    print(f'All figures: {folder / "benchmark.json"}')


def _line(aim: Aim, value: float | None) -> str:
    config = [argument.removeprefix('--config') for argument in _PARTS[aim.part] if argument.startswith('--config')]
    sign = 'at most' if aim.at_most else 'at least'
    if value is None:
        found, verdict = f'{"-":>8}', 'not measured'
    else:
        found, verdict = (
            f'{value:8.2f}',
            'met' if (value <= aim.limit if aim.at_most else value >= aim.limit) else 'MISSED',
        )
    return f'{aim.what:<58}{found}   {sign} {aim.limit:.2f}   {verdict:<8}' + ' '.join(
        part.lstrip('.=') for part in config
    )


def _output(folder: pathlib.Path, part: str) -> pathlib.Path:
    return folder / 'workers' / 'benchmark.json' if part == 'workers' else folder / f'{part}.json'


def _processor() -> str:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.machine())


if __name__ == '__main__':
    entry.run(main)
