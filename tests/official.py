"""The official Cityscapes evaluator, run on the same predictions as ours.

    python -m tests.official --cityscapes_dir=dataset --sets=50         # every score of both, compared
    python -m tests.official --cityscapes_dir=dataset --compiled=cityscapesScripts   # and how fast both count

Reads `gtFine/*/*/*_labelIds.png` and `*_instanceIds.png` of any tree in the Cityscapes layout and makes predictions up:
the truth moved and worn, another image's truth, void, ids at random. `--compiled` names a clone of
https://github.com/mcordts/cityscapesScripts, whose Cython part is built aside (needs Cython and a C compiler); the
package on PyPI lacks it.
"""

import importlib.util
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
from absl import flags
from PIL import Image

from data_prep import labels
from launch import entry
from unet import instances, metrics

TABLE = labels.CITYSCAPES
IDS = labels.num_ids(TABLE)

# What our scores are called there: the result's entry, and what stands before a class's or category's name in ours.
_MEANS = {
    'eval/miou': 'averageScoreClasses',
    'eval/miou_categories': 'averageScoreCategories',
    'eval/iiou': 'averageScoreInstClasses',
    'eval/iiou_categories': 'averageScoreInstCategories',
}
_EACH = {
    'eval/iou/': 'classScores',
    'eval/category_iou/': 'categoryScores',
    'eval/iiou/': 'classInstScores',
    'eval/category_iiou/': 'categoryInstScores',
}


def evaluator():
    """The official module; NumPy's in1d, which its instance part calls, has gone and was isin for flat arrays."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as module

    np.in1d = np.isin
    module.args.quiet = True
    module.args.JSONOutput = False
    return module


def scores(folder: pathlib.Path, images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, dict]:
    """The official evaluator's confusion matrix and its scores under our names.

    Args:
      folder: an empty one for the files it reads.
      images: label ids, instance ids and predicted label ids, [h, w] each.
    """
    truths, predictions = [], []
    for number, (label_ids, instance_ids, predicted) in enumerate(images):
        names = [f'{number}_gtFine_labelIds.png', f'{number}_gtFine_instanceIds.png', f'{number}_pred.png']
        for name, array in zip(names, (label_ids, instance_ids, predicted), strict=True):
            Image.fromarray(array).save(folder / name, compress_level=0)
        truths.append(str(folder / names[0]))
        predictions.append(str(folder / names[2]))
    module = evaluator()
    result = module.evaluateImgLists(predictions, truths, module.args)
    found = {ours: result[theirs] for ours, theirs in _MEANS.items()}
    for prefix, theirs in _EACH.items():
        found |= {prefix + name: value for name, value in result[theirs].items()}
    return np.array(result['confMatrix'], np.int64), found


def our_scores(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, dict]:
    """The same by ours."""
    confusion = np.zeros((IDS, IDS), np.int64)
    rows = []
    for label_ids, instance_ids, predicted in images:
        confusion += metrics.count_pairs(label_ids, predicted, IDS)[:-1].reshape(IDS, IDS)
        rows.append(instances.measure(instance_ids.astype(np.int32), predicted, TABLE))
    return confusion, metrics.scores(confusion, TABLE) | instances.scores(np.concatenate(rows), confusion, TABLE)


def largest_difference(theirs: dict[str, float], ours: dict[str, float]) -> float:
    """Over all scores that theirs defines; NaN on one side alone is infinitely wrong."""
    for name, value in theirs.items():
        if np.isnan(value) != np.isnan(ours.get(name, np.nan)):
            return np.inf
    return max((abs(value - ours[name]) for name, value in theirs.items() if not np.isnan(value)), default=0.0)


def predictions_for(truths: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """A made-up prediction for each of the label maps, such as no network would spare an evaluator."""
    hidden = rng.permutation(IDS)[: rng.integers(0, 12)]  # classes that are never predicted
    predictions = []
    for truth in truths:
        kind = rng.integers(6)
        other = truths[rng.integers(len(truths))]
        predicted = np.roll(truth, rng.integers(-9, 10, 2), (0, 1))
        if kind == 0:
            predicted = rng.integers(0, IDS, truth.shape).astype(np.uint8)
        elif kind == 1:
            predicted = np.full_like(truth, rng.integers(IDS))  # one class all over, void at times
        elif kind == 2 and other.shape == truth.shape:
            predicted = other.copy()
        elif kind == 3:
            worn = rng.random(truth.shape) < 0.05
            predicted[worn] = rng.integers(0, IDS, np.count_nonzero(worn))
        elif kind == 4:
            predicted = rng.permutation(IDS).astype(np.uint8)[predicted]  # classes taken for each other
        predicted[np.isin(predicted, hidden)] = rng.integers(IDS)
        predictions.append(predicted)
    return predictions


def build_compiled(clone: pathlib.Path, folder: pathlib.Path):
    """Builds the Cython part of a clone of the official repository in `folder` and loads it."""
    for name in ('addToConfusionMatrix.pyx', 'addToConfusionMatrix_impl.c'):
        shutil.copy(clone / 'cityscapesscripts' / 'evaluation' / name, folder)
    (folder / 'setup.py').write_text(
        'import numpy\nfrom setuptools import Extension, setup\nfrom Cython.Build import cythonize\n'
        "part = Extension('addToConfusionMatrix', ['addToConfusionMatrix.pyx'], include_dirs=[numpy.get_include()])\n"
        "setup(name='part', ext_modules=cythonize([part], language_level=2))\n"
    )
    command = [sys.executable, 'setup.py', '--quiet', 'build_ext', '--inplace']
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    spec = importlib.util.spec_from_file_location('addToConfusionMatrix', next(folder.glob('*.so')))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counting_speed(
    pairs: list[tuple[np.ndarray, np.ndarray]], compiled: object | None = None, rounds: int = 9
) -> dict[str, float]:
    """Milliseconds per image that each counts in, the median of rounds in which all take turns.

    Args:
      pairs: label ids and predicted label ids, uint8 [h, w] each.
      compiled: the official compiled part, see `build_compiled`; None: left out.
      rounds: times that each counts all pairs; the official Python part, by far the slowest, counts once in three.

    Returns:
      'ours', 'official python', and 'official compiled' if there is one.
    """
    counters = {'ours': lambda truth, predicted: metrics.count_pairs(truth, predicted, IDS)}
    if compiled:
        counters['official compiled'] = lambda truth, predicted: compiled.cEvaluatePair(
            predicted, truth, np.zeros((IDS, IDS), np.ulonglong), list(range(IDS))
        )
    counters['official python'] = _count_in_python
    seconds = {name: [] for name in counters}
    for number in range(rounds):
        for name, count in counters.items():
            if name == 'official python' and number % 3:
                continue
            started = time.perf_counter()
            for truth, predicted in pairs:
                count(truth, predicted)
            seconds[name].append((time.perf_counter() - started) / len(pairs))
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def _count_in_python(truth: np.ndarray, predicted: np.ndarray) -> None:
    """The official function itself, which opens files, with arrays in their place and without instances."""
    module = evaluator()
    files, options = module.Image, module.args.evalInstLevelScore
    module.Image, module.CSUPPORT, module.args.evalInstLevelScore = (
        types.SimpleNamespace(open=Image.fromarray),
        0,
        False,
    )
    try:
        module.evaluatePair(predicted, truth, module.generateMatrix(module.args), {}, {}, module.args)
    finally:
        module.Image, module.args.evalInstLevelScore = files, options


def read_tree(root: pathlib.Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Label ids and instance ids of all images of a tree; without instance files, every class is one crowd."""
    found = []
    for path in sorted(root.glob('gtFine/*/*/*_labelIds.png')):
        label_ids = np.asarray(Image.open(path))
        instance_file = path.with_name(path.name.replace('labelIds', 'instanceIds'))
        instance_ids = np.asarray(Image.open(instance_file)) if instance_file.exists() else label_ids.astype(np.int32)
        found.append((label_ids, instance_ids))
    if not found:
        raise entry.Failure(entry.MISSING_INPUT, f'{root}: no gtFine/*/*/*_labelIds.png')
    return found


_CITYSCAPES_DIR = flags.DEFINE_string('cityscapes_dir', 'dataset', 'Folder that holds gtFine.')
_SETS = flags.DEFINE_integer('sets', 50, 'Prediction sets to compare.', lower_bound=1)
_IMAGES = flags.DEFINE_integer('images', 4, 'Images per set, drawn at random.', lower_bound=1)
_COMPILED = flags.DEFINE_string('compiled', None, 'Clone of cityscapesScripts: compares speeds instead of scores.')


def main() -> None:
    tree = read_tree(pathlib.Path(_CITYSCAPES_DIR.value))
    rng = np.random.default_rng(0)
    if _COMPILED.value:
        truths = [label_ids for label_ids, _ in tree[: _IMAGES.value]]
        predictions = [np.roll(truth, 3, 1) for truth in truths]  # as smooth as the labels, wrong along every outline
        with tempfile.TemporaryDirectory() as folder:
            compiled = build_compiled(pathlib.Path(_COMPILED.value), pathlib.Path(folder))
            speed = counting_speed(list(zip(truths, predictions, strict=True)), compiled, rounds=31)
        print(json.dumps({name: round(value, 3) for name, value in speed.items()}) + ' ms per image')
        for name in ('official compiled', 'official python'):
            print(f'{speed[name] / speed["ours"]:.1f} times faster than {name}')
        return
    worst = 0.0
    for number in range(_SETS.value):
        chosen = [tree[place] for place in rng.integers(0, len(tree), _IMAGES.value)]
        predictions = predictions_for([label_ids for label_ids, _ in chosen], rng)
        images = [(*pair, predicted) for pair, predicted in zip(chosen, predictions, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            their_confusion, theirs = scores(pathlib.Path(folder), images)
        confusion, ours = our_scores(images)
        if not np.array_equal(confusion, their_confusion):
            raise AssertionError(f'set {number}: the matrices differ')
        worst = max(worst, largest_difference(theirs, ours))
    print(f'{_SETS.value} sets of {_IMAGES.value} images: equal matrices, largest difference of any score {worst:.1e}')


if __name__ == '__main__':
    entry.run(main)
