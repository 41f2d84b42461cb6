"""Measures the counting of an evaluation beside the official evaluator, per image of 2048x1024.

    python -m benchmarks.counting --cityscapesscripts=/path/to/clone

The official compiled part is built from a clone of the official repository, since its package does not hold the source;
Cython is fetched for it. Where either cannot be had, the Python part is compared alone. Needs what
`pip install -e .[test]` installs.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags

from data_prep import synthetic_scene
from launch import entry
from tests import official

_REPOSITORY = flags.DEFINE_string(
    'cityscapesscripts', 'https://github.com/mcordts/cityscapesScripts', 'Official repository: an address or a clone.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Times that each counts.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')
_IMAGES = 3
_SIZE = (1024, 2048)
_MOVED = 3  # pixels that a prediction is off
_WORN = 0.02  # share of the pixels that are changed at random


def main() -> None:
    compiled = _compiled_part()
    random = np.random.default_rng(0)
    scenes = [synthetic_scene.draw(_SIZE, np.random.default_rng(seed))[1] for seed in range(_IMAGES)]
    moved = [(truth, np.roll(truth, _MOVED, 1)) for truth in scenes]
    worn = [
        (truth, np.where(random.random(_SIZE) < _WORN, random.integers(0, official.IDS, _SIZE, np.uint8), predicted))
        for truth, predicted in moved
    ]
    figures = {'size': _SIZE, 'images': _IMAGES}
    for name, pairs in ((f'moved by {_MOVED} pixels', moved), (f'and {_WORN:.0%} at random', worn)):
        figures[name] = found = official.counting_speed(pairs, compiled, _ROUNDS.value)
        for side, milliseconds in found.items():
            times = milliseconds / found['ours']
            print(f'{name:<20}{side:<20}{milliseconds:8.2f} ms of CPU time per image{times:8.1f} times ours')
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def _compiled_part() -> object | None:
    with tempfile.TemporaryDirectory() as folder:
        clone, tools, build = (pathlib.Path(folder, name) for name in ('clone', 'tools', 'build'))
        build.mkdir()
        pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
        try:
            for command in (
                ['git', 'clone', '--quiet', '--depth=1', _REPOSITORY.value, clone],
                [*pip, 'install', f'--target={tools}', 'cython', 'setuptools'],
            ):
                subprocess.run(command, check=True, timeout=120)
            os.environ['PYTHONPATH'] = str(tools)
            return official.build_compiled(clone, build)
        except (OSError, subprocess.SubprocessError) as error:
            print(f'The official compiled part is left out: {error}', flush=True)
            return None


if __name__ == '__main__':
    entry.run(main)
