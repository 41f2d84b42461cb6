"""The official Cityscapes evaluator, run on the same predictions as ours. `tests.compare` is the command."""

import importlib.util
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import types

import numpy as np
from PIL import Image

from data_prep import labels
from launch import entry
from unet.evaluation import instance_iou, metrics

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
        for name, array in zip(names, (label_ids, instance_ids.astype(np.uint16), predicted), strict=True):
            Image.fromarray(array).save(folder / name, compress_level=0)
        truths.append(str(folder / names[0]))
        predictions.append(str(folder / names[2]))
    module = evaluator()
    result = module.evaluateImgLists(predictions, truths, module.args)
    return np.array(result['confMatrix'], np.int64), as_our_scores(result)


def as_our_scores(result: dict) -> dict[str, float]:
    """What the official evaluator returns, under our names."""
    found = {ours: result[theirs] for ours, theirs in _MEANS.items()}
    for prefix, theirs in _EACH.items():
        found |= {prefix + name: value for name, value in result[theirs].items()}
    return found


def our_scores(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, dict]:
    """The same by ours."""
    confusion = np.zeros((IDS, IDS), np.int64)
    rows = []
    for label_ids, instance_ids, predicted in images:
        confusion += metrics.count_pairs(label_ids, predicted, IDS)[:-1].reshape(IDS, IDS)
        rows.append(instance_iou.measure(instance_ids.astype(np.int32), predicted, TABLE))
    return confusion, metrics.scores(confusion, TABLE) | instance_iou.scores(np.concatenate(rows), confusion, TABLE)


def largest_difference(theirs: dict[str, float], ours: dict[str, float]) -> float:
    """Over all scores that theirs defines; NaN on one side alone is infinitely wrong."""
    for name, value in theirs.items():
        if np.isnan(value) != np.isnan(ours.get(name, np.nan)):
            return np.inf
    return max((abs(value - ours[name]) for name, value in theirs.items() if not np.isnan(value)), default=0.0)


def predictions_for(truths: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """A made-up prediction for each of the label maps, such as no model would spare an evaluator."""
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
    """CPU milliseconds per image that each counts in, the median of rounds in which all take turns. CPU time, so that
    it does not matter what else the machine does; `unet.evaluate` counts in several threads on top of it.

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
            started = time.process_time()
            for truth, predicted in pairs:
                count(truth, predicted)
            seconds[name].append((time.process_time() - started) / len(pairs))
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
        raise entry.UserError(entry.MISSING_INPUT, f'{root}: no gtFine/*/*/*_labelIds.png')
    return found
