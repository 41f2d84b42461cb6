"""A few examples of a split, decoded, for looking at and comparing with.

for number in examples.spread(split, 8):
    image, truth = examples.read(split, number)
"""

import io

import numpy as np
from PIL import Image

from data_prep import records


def spread(split: records.Split, count: int) -> list[int]:
    """Up to `count` example numbers, evenly over the split."""
    return np.linspace(0, len(split) - 1, min(count, len(split))).astype(int).tolist()


def read(split: records.Split, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [h, w, 3] and label ids uint8 [h, w]."""
    features = records.read_example(split, number)
    image = np.asarray(Image.open(io.BytesIO(features['image_left'])).convert('RGB'))
    return image, np.asarray(Image.open(io.BytesIO(features['segmentation_label'])))


def most_frequent_size(split: records.Split) -> tuple[int, int]:
    """Height and width that most images of a split have."""
    sizes, counts = np.unique(np.stack([split.height, split.width], 1), axis=0, return_counts=True)
    height, width = sizes[counts.argmax()].tolist()
    return height, width


def resized(picture: np.ndarray, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """uint8 [h, w, ...] at another size (height, width): averaged for images, or the nearest pixel for label ids."""
    if picture.shape[:2] == tuple(size):
        return picture
    method = Image.Resampling.BOX if smooth and picture.shape[0] > size[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize(size[::-1], method if smooth else Image.Resampling.NEAREST))
