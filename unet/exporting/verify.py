"""Writes a model in a format, compares what was written with the model, and only then gives it its name.

import pathlib, tempfile
import numpy as np
import tensorflow as tf
from data_prep import labels
from unet.exporting import saved_model, verify

outputs_of = saved_model.outputs_of_logits(lambda images: tf.cast(images, tf.float32), np.array([7, 8, 11], np.uint8))
images = [np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)]
folder = pathlib.Path(tempfile.mkdtemp(), '2000')
print(verify.write_saved_model(outputs_of, labels.CITYSCAPES, folder, images))
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from data_prep import labels
from launch import entry, files
from unet.exporting import converters, saved_model

# Format -> share of the pixels that must get the model's class. Rounding decides close calls, int8's more of them.
LEAST_AGREEMENT = {'saved_model': 0.9999, 'float16': 0.99, 'int8': 0.9, 'onnx': 0.999}
_RUN = {'float16': converters.run_tflite, 'int8': converters.run_tflite, 'onnx': converters.run_onnx}


@dataclasses.dataclass
class Agreement:
    """How far an export agrees with its model.

    Attributes:
      images, pixels: compared.
      same: pixels of the same class.
      largest: difference of any probability.
    """

    images: int = 0
    pixels: int = 0
    same: int = 0
    largest: float = 0.0

    def __str__(self) -> str:
        return (
            f'{100 * self.same / self.pixels:8.4f} % of {self.pixels:,} pixels in {self.images} images get the '
            f"model's class; probabilities differ by up to {self.largest:.1e}"
        )


def compare(outputs_of: saved_model.Outputs, run: converters.Run, images: Iterable[np.ndarray]) -> Agreement:
    """Compares what a model and its export make of each of the images, uint8 [h, w, 3].

    Args:
      outputs_of: the model, see `saved_model.outputs_of_logits`.
      run: the export, see `converters`.
      images: of any sizes that the export takes.
    """
    model = tf.function(outputs_of, reduce_retracing=True)
    found = Agreement()
    for image in images:
        expected, got = model(tf.constant(image[None])), run(image[None])
        found.images += 1
        found.pixels += image.shape[0] * image.shape[1]
        found.same += int((expected['label_ids'].numpy() == got['label_ids']).sum())
        difference = np.abs(expected['probabilities'].numpy() - got['probabilities']).max()
        found.largest = max(found.largest, float(difference))
    return found


def write_saved_model(
    outputs_of: saved_model.Outputs, table: labels.Table, folder: pathlib.Path, images: list[np.ndarray]
) -> str:
    """Writes and checks one version of a SavedModel; it replaces a version that is there.

    Args:
      outputs_of: the model, see `saved_model.outputs_of_logits`.
      table: the label table, which goes with it.
      folder: of the version; its name is a number.
      images: uint8 [h, w, 3] of any sizes, to compare on.

    Returns:
      A line with the size of the export and how far it agrees.

    Raises:
      UserError: BAD_DATA if the export does not agree with the model; it is then removed.
    """
    unfinished = folder.with_name(f'.{folder.name}.unfinished')  # a server looks at numbered folders alone
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        saved_model.save(saved_model.servable(outputs_of), table, unfinished)
        loaded, _, _ = saved_model.load(unfinished)

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            return {name: tensor.numpy() for name, tensor in loaded(tf.constant(images)).items()}

        found = compare(outputs_of, run, images)
        _check('saved_model', found)
        saved_model.put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
    return _line('saved_model', size, found, folder)


def write_file(
    kind: str, content: bytes, file: pathlib.Path, outputs_of: saved_model.Outputs, images: list[np.ndarray]
) -> str:
    """Writes and checks an export that is one file.

    Args:
      kind: 'float16', 'int8' or 'onnx'.
      content: the export, from `converters`.
      file: where to write it.
      outputs_of, images: see `write_saved_model`.

    Returns:
      A line with the size of the export and how far it agrees.

    Raises:
      UserError: BAD_DATA if the export does not agree with the model; nothing is then written.
    """
    found = compare(outputs_of, _RUN[kind](content), images)
    _check(kind, found)
    files.write_atomically(file, content)
    return _line(kind, len(content), found, file)


def _check(kind: str, found: Agreement) -> None:
    if found.same < LEAST_AGREEMENT[kind] * found.pixels:
        raise entry.UserError(
            entry.BAD_DATA,
            f'{kind}: not written, since only {100 * found.same / found.pixels:.2f} % of the pixels get the class that '
            f'the model gives them; {100 * LEAST_AGREEMENT[kind]:g} % must.'
            + (' Try more --calibration_images, or --formats=float16.' if kind == 'int8' else ''),
        )


def _line(kind: str, size: int, found: Agreement, path: pathlib.Path) -> str:
    return f'{kind:<12}{size / 1e6:8.1f} MB  {found}\n  {path}'
