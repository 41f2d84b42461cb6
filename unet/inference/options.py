"""Sliding-window and test-time-augmentation options of predictions, and the flags that give them; free of TensorFlow.

from unet.inference import options

window = options.parse_window('512x1024', depth=5, padding='same')  # (512, 1024)
chosen = options.InferenceOptions(window=window, scales=options.parse_scales(['0.5', '1']), flip=True)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from configs import validation
from launch import entry


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """How an image is predicted.

    Attributes:
      window: height and width of a sliding window in pixels; (0, 0): the whole image at once. An unpadded model always
        predicts by tiles; this is then the size of its input, (0, 0) being that of training.
      overlap: least share of a window that the next one overlaps, 0 to 0.75. Tiles do not overlap.
      scales: test-time augmentation by scaling: the image is predicted at each of these sizes, 1 being its own, and the
        probabilities are averaged.
      flip: test-time augmentation by mirroring: the image is also predicted mirrored left to right.
    """

    window: tuple[int, int] = (0, 0)
    overlap: float = 0.25
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def slides(self, padding: str) -> bool:
        """Returns whether a sliding window takes a model of this padding over the image; tiles are none."""
        return padding == 'same' and any(self.window)


WHOLE_IMAGE = InferenceOptions()  # predicted once, as it is


def of_evaluation(result: Mapping[str, Any]) -> InferenceOptions:
    """Returns the options that an evaluation was made with, by the contents of its evaluate-<split>.json.

    Older files call them `looks`, leave out those at their defaults, and `tile` for the window of an unpadded one.
    """
    fields = result.get('inference', result.get('looks', {}))
    values: dict[str, Any] = {}
    for name, value in fields.items():
        values['window' if name == 'tile' else name] = tuple(value) if isinstance(value, list) else value
    return InferenceOptions(**values)


def parse_window(text: str, depth: int, padding: str, stem: int = 1) -> tuple[int, int]:
    """Returns the height and width that a flag --window gives: '512x1024' -> (512, 1024).

    Raises:
      UserError: BAD_USAGE if it is of another form, or if a model of this depth, padding and stem takes no such size.
    """
    window = entry.parse_size('window', text)
    if problem := validation.input_size_problem(window, depth, padding, stem):
        raise entry.UserError(entry.BAD_USAGE, f'--window={text}: {problem}')
    return window


def parse_scales(texts: list[str]) -> tuple[float, ...]:
    """Returns the scales that a flag --scales gives: ['0.5', '1'] -> (0.5, 1.0).

    Raises:
      UserError: BAD_USAGE if they are not numbers from 0.1 to 10.
    """
    try:
        scales = tuple(float(text) for text in texts)
        usable = scales and all(0.1 <= scale <= 10 for scale in scales)
    except ValueError:
        usable = False
    if not usable:
        raise entry.UserError(
            entry.BAD_USAGE, f'--scales={",".join(texts)}: must be numbers from 0.1 to 10, separated by commas'
        )
    return scales
