"""Segments images and videos: label ids, colours, overlays and panels with a legend.

    python -m unet.predict --workdir=runs/cityscapes --images='photos/*.jpg' --output_dir=predictions
    python -m unet.predict --model=runs/cityscapes/export --images=drive.mp4 --outputs=overlays,confidence

For each image NAME, output_dir gets label_ids/NAME.png (label ids, the original size), colors/NAME.png,
overlays/NAME.png, panels/NAME.png (image, colours and overlay side by side with a legend) and, if asked for,
confidence/NAME.png (the probability of the class that was chosen, 0 to 255). The frames of a video drive.mp4 become
drive/000000.png and so on. Files that cannot be read are named and passed over; then the exit status is 65.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from absl import flags

from launch import entry, host, progress

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from data_prep import labels

_OUTPUTS = ('label_ids', 'colors', 'overlays', 'panels', 'confidence')

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; this or --model is required.')
_MODEL = flags.DEFINE_string('model', None, 'Folder that unet.export wrote, instead of --workdir.')
_IMAGES = flags.DEFINE_multi_string(
    'images', [], 'An image, a video, a folder (with its subfolders) or a quoted glob; required, may be repeated.'
)
_OUTPUT_DIR = flags.DEFINE_string('output_dir', 'predictions', 'Folder for the results.')
_WANTED = flags.DEFINE_list('outputs', ','.join(_OUTPUTS[:-1]), f'What to write, of {", ".join(_OUTPUTS)}.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "'best', 'latest', or the path of a checkpoint (without .index)."
)
_BATCH = flags.DEFINE_integer(
    'batch', 1, 'Images predicted together; only neighbours of one size share a batch.', lower_bound=1
)


def main() -> None:
    if not _IMAGES.value:
        raise entry.UserError(entry.BAD_USAGE, 'pass --images, an image, a video, a folder or a quoted glob')
    if bool(_WORKDIR.value) == bool(_MODEL.value):
        raise entry.UserError(
            entry.BAD_USAGE, 'pass --workdir, the folder of a run, or --model, what unet.export wrote'
        )
    unknown = set(_WANTED.value) - set(_OUTPUTS)
    if unknown or not _WANTED.value:
        raise entry.UserError(
            entry.BAD_USAGE, f'--outputs={",".join(_WANTED.value)}: choose from {", ".join(_OUTPUTS)}'
        )
    output = pathlib.Path(_OUTPUT_DIR.value)
    if output.exists() and not output.is_dir():
        raise entry.UserError(entry.BAD_USAGE, f'--output_dir={output}: is a file; pass a folder')

    with host.quiet_import():
        from unet.data import media

    sources = media.find(_IMAGES.value, leave_out=[output / kind for kind in _OUTPUTS])

    with host.quiet_import():
        from unet.distributed import cluster
        from unet.evaluation import predict_split
        from unet.exporting import saved_model
        from unet.inference import build as inference_build
        from unet.models import build as model_build
        from unet.training import restore

    strategy = cluster.make_strategy(0)  # which also refuses to run on the CPU of a machine with GPUs unnoticed
    with strategy.scope():
        if _MODEL.value:
            outputs_of, table, path = saved_model.load(_MODEL.value)
        else:
            config, table, model, path = restore.trained(_WORKDIR.value, _CHECKPOINT.value)
            outputs_of = saved_model.outputs_of_logits(
                inference_build.logits(config, model), model_build.id_of_class(config.labels, table)
            )

    def write(name: str, image: 'np.ndarray', label_ids: 'np.ndarray', confidence: 'np.ndarray') -> None:
        _write(output, name, image, label_ids, confidence, table)

    problems, done = [], 0
    batches = media.batched(media.read(sources, problems), _BATCH.value)
    with progress.show(media.count(sources), 'image') as on_progress:
        for _ in predict_split.in_threads(write, _predictions(outputs_of, batches, problems)):
            done += 1
            on_progress(1)
    kinds = ', '.join(sorted(set(_WANTED.value), key=_OUTPUTS.index))
    print(f'{done} images by {path}: {kinds} in {output}', flush=True)
    if problems:
        raise entry.UserError(
            entry.BAD_DATA, f'{len(problems)} could not be read and were passed over:\n  ' + '\n  '.join(problems)
        )


def _predictions(
    outputs_of: Callable[['tf.Tensor'], dict[str, 'tf.Tensor']],
    batches: 'Iterator[tuple[list[str], np.ndarray]]',
    problems: list[str],
) -> 'Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]':
    """Yields each image's name, the image, its label ids and their confidence 0 to 255, all uint8.

    Args:
      outputs_of: see `saved_model.outputs_of_logits`.
      batches: names, and images [b, h, w, 3] of one size.
      problems: a line is appended for each image that is too large.
    """
    import tensorflow as tf

    from unet.training import device_memory

    @tf.function(reduce_retracing=True)
    def predict(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = outputs_of(images)
        if 'confidence' not in _WANTED.value:
            return outputs['label_ids'], tf.zeros_like(outputs['label_ids'])
        return outputs['label_ids'], tf.cast(tf.round(255.0 * tf.reduce_max(outputs['probabilities'], -1)), tf.uint8)

    for names, images in batches:
        try:
            label_ids, confidence = (tensor.numpy() for tensor in predict(tf.constant(images)))
        except tf.errors.OpError as error:
            if not device_memory.is_out_of_memory(error):
                raise
            size = 'x'.join(map(str, images.shape[1:3]))
            problems += [f'{name}: {len(names)} x {size} pixels are too much for the memory' for name in names]
            continue
        yield from zip(names, images, label_ids, confidence, strict=True)


def _write(
    output: pathlib.Path,
    name: str,
    image: 'np.ndarray',
    label_ids: 'np.ndarray',
    confidence: 'np.ndarray',
    table: 'labels.Table',
) -> None:
    """Writes the files of one image that --outputs asks for."""
    from unet.reporting import draw

    pictures = {'label_ids': label_ids, 'colors': draw.colorize(label_ids, table), 'confidence': confidence}
    pictures['overlays'] = draw.overlay(image, label_ids, table)
    if 'panels' in _WANTED.value:
        panel = draw.side_by_side(image, pictures['colors'], pictures['overlays'])
        pictures['panels'] = draw.with_legend(panel, label_ids, table)
    for kind in _WANTED.value:
        draw.save(pictures[kind], output / kind / f'{name}.png')


if __name__ == '__main__':
    entry.run(main)
