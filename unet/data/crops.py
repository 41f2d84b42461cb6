"""Which part of which image the example at a position of a run shows: a function of (seed, position) alone.

    import numpy as np
    from unet.data import crops

    sampler = crops.Sampler(np.array([[1024, 2048]] * 10), seed=1, crop=(512, 1024), scale=(0.5, 2.0))
    example, window = next(sampler.candidates(0, draws=(0.5, 0.5, 0.5)))

By default the examples of each epoch are a seeded permutation of the split and a crop lies anywhere. Two things bring
the rare classes: class-uniform sampling (`class_uniform`), which draws a class, evenly, then an image and the centre of
the crop from the places of that class; and `largest_share`, by which a crop of hardly more than one class is drawn
again. Sources: https://arxiv.org/abs/1812.01593, section 3.3, and the `cat_max_ratio` of
https://github.com/open-mmlab/mmsegmentation.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.labels import IGNORED

_COUNTED = 2**14  # pixels of a window, at the least, by which the shares of its classes are judged
_REDRAWS = 10  # of a crop in which one class has too large a share; the last is taken as it is

Window = tuple[int, int, int, int]  # top, left, height, width in pixels of the image


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns int64 [size]: the examples of an epoch in the order they are trained on."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def example_at(position: int, size: int, seed: int) -> int:
    """Returns the example of a split of `size` examples that stands at a position of the run."""
    epoch, place = divmod(position, size)
    return int(epoch_order(size, seed, epoch)[place])


def generator(position: int, seed: int, stream: int = 0) -> np.random.Generator:
    """Returns the random numbers of a position, of which there are independent streams.

    They are made by a counter, https://doi.org/10.1145/2063384.2063405: of no state but its key.
    """
    return np.random.Generator(np.random.Philox(key=[position, seed], counter=[0, 0, 0, stream]))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws crops.

    Attributes:
      sizes: int [examples, 2], height and width of the images that crops are cut from.
      seed: of order and crops.
      crop: height and width of what a window is brought to, pixels.
      scale: random zoom, (smallest, largest).
      log_scale: the zoom is uniform in its logarithm.
      class_uniform: probability with which class, image and centre are drawn from `places`.
      places: float [n, 3] for each class that occurs: example, and row and column as shares of height and width.
      largest_share: of one class among the pixels of a crop that count; 1: any.
      class_of_id: int [256], label id -> class, 255 for those that do not count; for `largest_share`.
    """

    sizes: np.ndarray
    seed: int
    crop: tuple[int, int]
    scale: tuple[float, float]
    log_scale: bool = False
    class_uniform: float = 0.0
    places: Sequence[np.ndarray] = ()
    largest_share: float = 1.0
    class_of_id: np.ndarray | None = None

    def candidates(self, position: int, draws: Sequence[float] | np.ndarray) -> Iterator[tuple[int, Window]]:
        """Yields the example and the window of a position and then those to take instead while `accepts` says no.

        Args:
          position: of the run.
          draws: three numbers in [0, 1), from which zoom, top and left of the first follow.
        """
        example, places = example_at(position, len(self.sizes), self.seed), None
        extra = generator(position, self.seed, stream=1) if self.class_uniform or self.largest_share < 1 else None
        if self.class_uniform:
            chance, which = extra.random(2)
            if chance < self.class_uniform:
                places = self.places[int(which * len(self.places))]
        for attempt in range(1 if self.largest_share >= 1 else 1 + _REDRAWS):
            zoom, *top_left = draws if attempt == 0 else extra.random(3)
            centre = None
            if places is not None:
                number, *centre = places[int(extra.random() * len(places))]
                example = int(number)
            window_size = [max(round(side / self._zoom(zoom)), 1) for side in self.crop]
            yield example, window_at(self.sizes[example], window_size, top_left, centre)

    def _zoom(self, draw: float) -> float:
        smallest, largest = self.scale
        if self.log_scale:
            return smallest * (largest / smallest) ** float(draw)
        return smallest + (largest - smallest) * float(draw)

    def accepts(self, label: np.ndarray) -> bool:
        """Says whether no class has more than `largest_share` of the pixels that count of a window's label ids, by a
        look at every so many in each direction of a large one."""
        if self.largest_share >= 1:
            return True
        step = max(1, math.isqrt(label.size // _COUNTED))
        ids = np.bincount(label[::step, ::step].reshape(-1), minlength=256)
        pixels = np.bincount(self.class_of_id, ids, minlength=256)[:IGNORED]
        return bool(pixels.max() <= self.largest_share * pixels.sum() and pixels.any())


def window_at(
    size: Sequence[int], window: Sequence[int], draws: Sequence[float], centre: Sequence[float] | None = None
) -> Window:
    """Returns where a window lies in an image.

    Args:
      size: height and width of the image.
      window: height and width of the window. It may be larger than the image; then the image lies at a random place
        within it.
      draws: two numbers in [0, 1), from which top and left follow.
      centre: where its centre lies, as shares of height and width, as nearly as it goes without leaving the image;
        None: anywhere.
    """
    top_left = []
    for axis, (whole, part) in enumerate(zip(size, window, strict=True)):
        slack = int(whole) - part  # negative where the window is larger
        if centre is not None and slack >= 0:
            place = min(max(math.floor(centre[axis] * int(whole)) - part // 2, 0), slack)
        else:
            # floor(draw * (slack + 1)) is uniform over 0..slack; mirrored for a negative slack.
            place = min(int(float(draws[axis]) * (abs(slack) + 1)), abs(slack))
        top_left.append(place if slack >= 0 else -place)
    return top_left[0], top_left[1], window[0], window[1]


def places_by_class(found: np.ndarray, sizes: np.ndarray, class_of_id: np.ndarray) -> list[np.ndarray]:
    """Sorts places by class, for `Sampler.places`.

    Args:
      found: of `places.DTYPE`.
      sizes: int [examples, 2], height and width of the stored images.
      class_of_id: int [256], label id -> class, 255 for those that do not count.
    """
    shares = np.stack([found['row'], found['column']], 1) + 0.5
    rows = np.column_stack([found['example'], shares / sizes[found['example']]])
    classes = class_of_id[found['id']]
    return [rows[classes == number] for number in np.unique(classes) if number != IGNORED]
