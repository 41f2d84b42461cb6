"""Segments images and videos: label ids, colours, overlays and panels with a legend.

    python -m unet.predict --workdir=runs/cityscapes --images='photos/*.jpg' --output_dir=predictions
    python -m unet.predict --model=runs/cityscapes/export --images=drive.mp4 --outputs=overlays,confidence

For each image NAME, output_dir gets label_ids/NAME.png (label ids, the original size), colors/NAME.png,
overlays/NAME.png, panels/NAME.png (image, colours and overlay side by side with a legend) and, if asked for,
confidence/NAME.png (the probability of the class that was chosen, 0 to 255). The frames of a video drive.mp4 become
drive/000000.png and so on. NAME keeps its suffix where results would overwrite each other: a.jpg.png beside a.png.png.
Files that cannot be read or written are named at the end, and cost the others nothing; then the exit status is 65.
"""

import errno
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from absl import flags

from launch import entry, folders, host, progress

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from data_prep import labels

# What the system says of one name; all else that hinders writing would hinder the next image too.
_OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ, errno.ELOOP)
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

    problems: list[str] = []
    passed_over: list[str] = []
    with folders.named_at_the_end(passed_over):
        sources = media.find(_IMAGES.value, problems, passed_over, leave_out=[output / kind for kind in _OUTPUTS])
        _predict_all(sources, output, problems)
    if problems:
        listed = '\n  '.join(problems)
        raise entry.UserError(entry.BAD_DATA, f'{len(problems)} could not be read or written:\n  {listed}')


def _predict_all(sources: dict[str, pathlib.Path], output: pathlib.Path, problems: list[str]) -> None:
    """Predicts images and videos, by name, and writes what --outputs asks for.

    Args:
      sources: see `media.find`.
      output: the folder for the results.
      problems: a line is appended for each file that cannot be read, and each result that cannot be written.
    """
    with host.quiet_import():
        from unet.data import media
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

    def write(name: str, image: 'np.ndarray', label_ids: 'np.ndarray', confidence: 'np.ndarray') -> bool:
        try:
            _write(output, name, image, label_ids, confidence, table)
        except OSError as error:
            if error.errno not in _OF_ONE_NAME:
                raise
            problems.append(f'{error.filename or name}: {error.strerror}')
            return False
        return True

    for kind in _WANTED.value:
        (output / kind).mkdir(parents=True, exist_ok=True)
    done = 0
    batches = media.batched(media.read(sources, problems), _BATCH.value)
    with progress.show(media.count(sources), 'image') as on_progress:
        for written in predict_split.in_threads(write, _predictions(outputs_of, batches, problems)):
            done += written
            on_progress(1)
    kinds = ', '.join(sorted(set(_WANTED.value), key=_OUTPUTS.index))
    print(f'{done} images by {path}: {kinds} in {output}', flush=True)


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

    def outputs_of_batch(names: list[str], images: 'np.ndarray') -> 'Iterator[tuple]':
        try:
            label_ids, confidence = (tensor.numpy() for tensor in predict(tf.constant(images)))
        except tf.errors.OpError as error:
            if not device_memory.is_out_of_memory(error):
                raise
            if len(names) > 1:
                for place, name in enumerate(names):
                    yield from outputs_of_batch([name], images[place : place + 1])
                return
            problems.append(f'{names[0]}: {"x".join(map(str, images.shape[1:3]))} pixels are too much for the memory')
        else:
            yield from zip(names, images, label_ids, confidence, strict=True)

    for names, images in batches:
        yield from outputs_of_batch(names, images)


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
