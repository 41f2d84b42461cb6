"""Compares our scores, and how fast we count, with the official evaluator's on any tree in the Cityscapes layout.

    python -m tests.compare --cityscapes_dir=dataset --sets=50         # every score of both
    python -m tests.compare --cityscapes_dir=dataset --compiled=cityscapesScripts   # and how fast both count

Reads `gtFine/*/*/*_labelIds.png` and `*_instanceIds.png` and makes predictions up: the truth moved and worn, another
image's truth, void, ids at random. `--compiled` names a clone of https://github.com/mcordts/cityscapesScripts, whose
Cython part is built aside (needs Cython and a C compiler); the package on PyPI lacks it.
"""

import json
import pathlib
import tempfile

import numpy as np
from absl import flags

from launch import entry
from tests import official

_CITYSCAPES_DIR = flags.DEFINE_string('cityscapes_dir', 'dataset', 'Folder that holds gtFine.')
_SETS = flags.DEFINE_integer('sets', 50, 'Prediction sets to compare.', lower_bound=1)
_IMAGES = flags.DEFINE_integer('images', 4, 'Images per set, drawn at random.', lower_bound=1)
_COMPILED = flags.DEFINE_string('compiled', None, 'Clone of cityscapesScripts: compares speeds instead of scores.')


def main() -> None:
    tree = official.read_tree(pathlib.Path(_CITYSCAPES_DIR.value))
    rng = np.random.default_rng(0)
    if _COMPILED.value:
        chosen = (tree * -(-_IMAGES.value // len(tree)))[: _IMAGES.value]
        # As smooth as the labels, and wrong along every outline.
        pairs = [(label_ids, np.roll(label_ids, 3, 1)) for label_ids, _ in chosen]
        with tempfile.TemporaryDirectory() as folder:
            compiled = official.build_compiled(pathlib.Path(_COMPILED.value), pathlib.Path(folder))
            speed = official.counting_speed(pairs, compiled, rounds=31)
        print(json.dumps({name: round(value, 3) for name, value in speed.items()}) + ' CPU ms per image')
        for name in ('official compiled', 'official python'):
            print(f'{speed[name] / speed["ours"]:.1f} times faster than {name}')
        return
    worst = 0.0
    for number in range(_SETS.value):
        chosen = [tree[place] for place in rng.integers(0, len(tree), _IMAGES.value)]
        predictions = official.predictions_for([label_ids for label_ids, _ in chosen], rng)
        images = [(*pair, predicted) for pair, predicted in zip(chosen, predictions, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            their_confusion, theirs = official.scores(pathlib.Path(folder), images)
        confusion, ours = official.our_scores(images)
        if not np.array_equal(confusion, their_confusion):
            raise AssertionError(f'set {number}: the matrices differ')
        worst = max(worst, official.largest_difference(theirs, ours))
    print(f'{_SETS.value} sets of {_IMAGES.value} images: equal matrices, largest difference of any score {worst:.1e}')


if __name__ == '__main__':
    entry.run(main)
