"""Measures the counting of an evaluation beside the official evaluator, per image of 2048x1024.

    python -m benchmarks.counting --cityscapesscripts=/path/to/clone

Without a clone of https://github.com/mcordts/cityscapesScripts, the Python part is compared alone: its package does not
hold the source of the compiled part. Needs what `pip install -e .[test]` installs.
"""

import json
import pathlib
import tempfile

import numpy as np
from absl import flags

from data_prep import street
from launch import entry
from tests import official

_CLONE = flags.DEFINE_string('cityscapesscripts', None, 'Clone of the official repository.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Times that each counts.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')
_IMAGES = 3
_MOVED = 3  # pixels that a prediction is off


def main() -> None:
    scenes = [street.draw((1024, 2048), np.random.default_rng(seed))[1] for seed in range(_IMAGES)]
    pairs = [(truth, np.roll(truth, _MOVED, 1)) for truth in scenes]
    compiled = None
    with tempfile.TemporaryDirectory() as folder:
        if _CLONE.value:
            compiled = official.build_compiled(pathlib.Path(_CLONE.value), pathlib.Path(folder))
        figures = official.counting_speed(pairs, compiled, _ROUNDS.value)
    for name, milliseconds in figures.items():
        print(f'{name:<20}{milliseconds:8.2f} ms of CPU time per image{milliseconds / figures["ours"]:8.1f} times ours')
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    entry.run(main)
