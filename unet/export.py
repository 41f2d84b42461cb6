"""Exports a trained model: SavedModel for TensorFlow and TensorFlow Serving, TensorFlow Lite, ONNX.

    python -m unet.export --workdir=runs/cityscapes --data_dir=data/cityscapes
    python -m unet.export --workdir=runs/cityscapes --formats=saved_model,float16,int8,onnx --size=512x1024

Writes <workdir>/export: saved_model/<step> (any size; unet/exporting/saved_model.py has its signatures),
model.float16.tflite and model.int8.tflite (one image of --size), model.onnx (any size). All take uint8 RGB images as
they come and give label ids and probabilities; normalisation and padding are inside. Each is compared with the model on
images of the records, and gets its name only if they agree.
"""

import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags

from launch import entry, host, progress

_FORMATS = ('saved_model', 'float16', 'int8', 'onnx')

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; required.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "'best', 'latest', or the path of a checkpoint (without .index)."
)
_OUTPUT_DIR = flags.DEFINE_string('output_dir', None, 'Folder for the exports; default <workdir>/export.')
_WANTED = flags.DEFINE_list('formats', 'saved_model', f'What to write, of {", ".join(_FORMATS)}.')
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder, for comparison and calibration.')
_SPLIT = flags.DEFINE_string('split', 'validation', 'Split to compare on.')
_CHECK_IMAGES = flags.DEFINE_integer('check_images', 8, 'Images to compare on.', lower_bound=1)
_CALIBRATION_SPLIT = flags.DEFINE_string('calibration_split', 'train', 'Split that int8 takes its ranges from.')
_CALIBRATION_IMAGES = flags.DEFINE_integer('calibration_images', 100, 'Images of it.', lower_bound=1)
_SIZE = flags.DEFINE_string(
    'size', None, 'HEIGHTxWIDTH in pixels of the images for TensorFlow Lite; default: the most frequent of --split.'
)
_PRECISION = flags.DEFINE_enum(
    'precision',
    None,
    ['float32', 'bfloat16', 'float16'],
    "What the SavedModel computes in; default: the run's. CPUs are slow in anything but float32.",
)


def main() -> None:
    if not _WORKDIR.value:
        raise entry.UserError(entry.BAD_USAGE, 'pass --workdir, the folder of a run of unet.main')
    if not _WANTED.value or set(_WANTED.value) - set(_FORMATS):
        raise entry.UserError(
            entry.BAD_USAGE, f'--formats={",".join(_WANTED.value)}: choose from {", ".join(_FORMATS)}'
        )
    size = entry.parse_size('size', _SIZE.value) if _SIZE.value else None

    with host.quiet_import():
        from data_prep import records
        from unet.data import samples
        from unet.exporting import converters, fold_batch_norm, saved_model, verify
        from unet.inference import build as inference_build
        from unet.models import build as model_build
        from unet.training import restore

    if 'onnx' in _WANTED.value:
        converters.check_onnx()
    config, table, model, path = restore.trained(_WORKDIR.value, _CHECKPOINT.value)
    if config.model.padding == 'valid' and set(_WANTED.value) != {'saved_model'}:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'--formats={",".join(_WANTED.value)}: the run is of an unpadded model, which predicts by tiles, in '
            'a loop that TensorFlow Lite and ONNX cannot express. Pass --formats=saved_model.',
        )
    split = records.read_split(_DATA_DIR.value, _SPLIT.value)
    calibration = records.read_split(_DATA_DIR.value, _CALIBRATION_SPLIT.value) if 'int8' in _WANTED.value else None
    images = [samples.read(split, number)[0] for number in samples.evenly_spaced(split, _CHECK_IMAGES.value)]
    size = size or samples.most_frequent_size(split)
    output = pathlib.Path(_OUTPUT_DIR.value or os.path.join(_WORKDIR.value, 'export'))
    output.mkdir(parents=True, exist_ok=True)
    print(f'{path}, compared on {_SPLIT.value} of {_DATA_DIR.value}', flush=True)

    def outputs_in(precision: str, *, folded: bool = False) -> saved_model.Outputs:
        own_config, own_model = model_build.build_in_precision(config, model, table, precision)
        if folded:
            fold_batch_norm.fold(own_model)
        return saved_model.outputs_of_logits(
            inference_build.logits(own_config, own_model), model_build.id_of_class(config.labels, table)
        )

    def calibration_images(on_progress: Callable[[int], None]) -> Iterator[np.ndarray]:
        for number in samples.evenly_spaced(calibration, _CALIBRATION_IMAGES.value):
            yield samples.resized(samples.read(calibration, number)[0], size, smooth=True)
            on_progress(1)

    if 'saved_model' in _WANTED.value:
        folder = output / saved_model.FOLDER / str(restore.step_of(path))
        outputs_of = outputs_in(_PRECISION.value or config.precision)
        print(verify.write_saved_model(outputs_of, table, folder, images), flush=True)
    if set(_WANTED.value) == {'saved_model'}:
        return
    outputs_of, folded = outputs_in('float32'), outputs_in('float32', folded=True)
    at_size = [samples.resized(image, size, smooth=True) for image in images]
    if 'float16' in _WANTED.value:
        content = converters.float16(folded, size)
        print(verify.write_file('float16', content, output / 'model.float16.tflite', outputs_of, at_size), flush=True)
    if 'int8' in _WANTED.value:
        count = min(_CALIBRATION_IMAGES.value, len(calibration))
        with progress.show(count, 'calibration image') as on_progress:
            content = converters.int8(folded, size, lambda: calibration_images(on_progress))
        print(verify.write_file('int8', content, output / 'model.int8.tflite', outputs_of, at_size), flush=True)
    if 'onnx' in _WANTED.value:
        content = converters.onnx(folded)
        print(verify.write_file('onnx', content, output / 'model.onnx', outputs_of, images), flush=True)


if __name__ == '__main__':
    entry.run(main)
