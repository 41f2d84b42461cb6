"""A few decoded examples of a split, for pictures, calibration and comparisons.

for number in samples.evenly_spaced(split, 8):
    image, label_ids = samples.read(split, number)
"""

import io

import numpy as np
from PIL import Image

from data_prep import records


def evenly_spaced(split: records.Split, count: int) -> list[int]:
    """Returns the numbers of up to `count` examples, at even distances over the split."""
    return np.linspace(0, len(split) - 1, min(count, len(split))).astype(int).tolist()


def read(split: records.Split, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads and decodes an example: image uint8 [h, w, 3] and label ids uint8 [h, w]."""
    features = records.read_example(split, number)
    image = np.asarray(Image.open(io.BytesIO(features['image_left'])).convert('RGB'))
    return image, np.asarray(Image.open(io.BytesIO(features['segmentation_label'])))


def most_frequent_size(split: records.Split) -> tuple[int, int]:
    """Returns the height and width that most images of a split have."""
    sizes, counts = np.unique(np.stack([split.height, split.width], 1), axis=0, return_counts=True)
    height, width = sizes[counts.argmax()].tolist()
    return height, width


def resized(picture: np.ndarray, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """Brings uint8 [h, w, ...] to another size (height, width): by averages for images, else by the nearest pixel."""
    if picture.shape[:2] == tuple(size):
        return picture
    method = Image.Resampling.BOX if smooth and picture.shape[0] > size[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize(size[::-1], method if smooth else Image.Resampling.NEAREST))
