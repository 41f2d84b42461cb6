"""The images of a split that a run's model predicts best and worst, with what it predicts and where it errs.

    predict = gallery.predictor('runs/cityscapes', 'best')
    scores, confusion = gallery.score_images(predict, split, table, 100)
    best, worst = gallery.best_and_worst([scores], 4)
    pictures = gallery.draw(worst, [predict], [scores], split, table, [labels.train_id_of_id(table) != labels.IGNORED])
    pictures[0].image, pictures[0].predictions, pictures[0].errors

Each image is predicted by itself, at the size that it is stored in.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from data_prep import labels, records
from unet.data import samples
from unet.evaluation import metrics
from unet.inference import build as inference_build
from unet.inference import options
from unet.training import restore

_SHOWN_WIDTH = 480  # pixels of a picture in a report
_DIM = 0.35  # brightness of what is right or not scored in a picture of errors


@dataclasses.dataclass
class Picture:
    """One image as it is shown; its pictures are uint8 [h, w, 3].

    Attributes:
      image_id: its name.
      scores: per run the mIoU of its classes.
      image: the image.
      truth: its true classes over it.
      predictions: per run the predicted classes over it.
      errors: per run the image in grey with what is wrong in red.
    """

    image_id: str
    scores: list[float]
    image: np.ndarray
    truth: np.ndarray
    predictions: list[np.ndarray]
    errors: list[np.ndarray]


def predictor(
    workdir: str, which: str, inference: options.InferenceOptions = options.WHOLE_IMAGE
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function of one image, uint8 [h, w, 3] -> label ids uint8 [h, w].

    Args:
      workdir: the folder of the run.
      which: the checkpoint, see `restore.trained`.
      inference: the sliding window and test-time augmentation.
    """
    config, table, model, _ = restore.trained(workdir, which)
    predict = tf.function(inference_build.predictor(config, model, table, inference), reduce_retracing=True)
    return lambda image: predict(tf.constant(image[None])).numpy()[0]


def score_images(
    predict: Callable[[np.ndarray], np.ndarray],
    split: records.Split,
    table: labels.Table,
    most: int,
    on_progress: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], np.ndarray]:
    """Scores some images of a split, which lie evenly over it.

    Args:
      predict: see `predictor`.
      split: with labels.
      table: the label table.
      most: the number of images, or all of them if there are fewer.
      on_progress: called after each image.

    Returns:
      Image id -> mIoU of the image's own classes, and the images' confusion matrix, int64 [n, n] in label ids.
    """
    size = labels.num_ids(table)
    total = np.zeros([size, size], np.int64)
    scores = {}
    for number in samples.evenly_spaced(split, most):
        image, truth = samples.read(split, number)
        confusion = metrics.count_pairs(truth, predict(image), size)[:-1].reshape(size, size)
        scores[split.image_ids[number]] = metrics.scores(confusion, table)['eval/miou']
        total += confusion
        on_progress()
    return scores, total


def best_and_worst(scores: list[dict[str, float]], count: int) -> tuple[list[str], list[str]]:
    """Returns the ids of the images with the highest and the lowest mean score over all runs, `count` of each, none
    twice."""
    common = set.intersection(*(set(own) for own in scores))
    means = {image_id: float(np.mean([own[image_id] for own in scores])) for image_id in common}
    ranked = sorted((mean, image_id) for image_id, mean in means.items() if not np.isnan(mean))
    ids = [image_id for _, image_id in ranked]
    worst = ids[: min(count, (len(ids) + 1) // 2)]
    return ids[len(worst) :][::-1][:count], worst


def draw(
    image_ids: list[str],
    predicts: list[Callable[[np.ndarray], np.ndarray]],
    scores: list[dict[str, float]],
    split: records.Split,
    table: labels.Table,
    learnt: list[np.ndarray],
) -> list[Picture]:
    """Predicts images with each of the runs and draws them.

    Args:
      image_ids: of the split.
      predicts: one per run.
      scores: by image id, one per run.
      split, table: where the images lie and what their labels mean.
      learnt: per run bool [256], the label ids that count.
    """
    numbers = {image_id: number for number, image_id in enumerate(split.image_ids)}
    palette = labels.colors(table)
    drawn = []
    for image_id in image_ids:
        image, truth = samples.read(split, numbers[image_id])
        found = [predict(image) for predict in predicts]
        size = _shown_size(image)
        small = samples.resized(image, size, smooth=True)

        def over(label_ids: np.ndarray, small=small, size=size) -> np.ndarray:
            colors = palette[samples.resized(label_ids, size, smooth=False)]
            return np.round(0.35 * small + 0.65 * colors).astype(np.uint8)

        errors = [
            samples.resized(_errors(image, truth, prediction, counts), size, smooth=True)
            for prediction, counts in zip(found, learnt, strict=True)
        ]
        own = [scores_of_run[image_id] for scores_of_run in scores]
        drawn.append(Picture(image_id, own, small, over(truth), [over(label_ids) for label_ids in found], errors))
    return drawn


def _errors(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The image in dark grey, red where a pixel that counts is wrong, blue-grey where none counts."""
    grey = image.mean(-1, keepdims=True) * _DIM
    picture = np.repeat(grey, 3, -1)
    picture[~counts[truth]] = picture[~counts[truth]] * 0.5 + np.array([40, 60, 90]) * 0.5
    wrong = counts[truth] & (truth != prediction)
    picture[wrong] = picture[wrong] * 0.3 + np.array([255, 60, 40]) * 0.7
    return picture.round().astype(np.uint8)


def _shown_size(image: np.ndarray) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = min(_SHOWN_WIDTH / width, 1.0)
    return max(round(height * scale), 1), max(round(width * scale), 1)
