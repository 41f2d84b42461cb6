"""Segments images: label ids, colours, overlays and panels with a legend.

    python -m unet.predict --workdir=runs/cityscapes --images='photos/*.png' --output_dir=predictions

For each image NAME, output_dir gets label_ids/NAME.png (label ids, the original size), colors/NAME.png,
overlays/NAME.png and panels/NAME.png (image, colours and overlay side by side with a legend). Files
that cannot be read are named and passed over; then the exit status is 65.
"""

import glob
import os
import pathlib
import sys

from absl import flags

from launch import entry

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; required.')
_IMAGES = flags.DEFINE_string('images', None, 'An image, a folder (with its subfolders) or a quoted glob; required.')
_OUTPUT_DIR = flags.DEFINE_string('output_dir', 'predictions', 'Folder for the results.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "'best', 'latest', or the path of a checkpoint (without .index)."
)

_SUFFIXES = ('.png', '.jpg', '.jpeg')


def find_images(pattern: str) -> list[pathlib.Path]:
    """The images that a file, a folder or a glob stands for, sorted.

    Raises:
      Failure: MISSING_INPUT if there are none.
    """
    path = pathlib.Path(pattern)
    if path.is_dir():
        found = [file for file in path.rglob('*') if file.suffix.lower() in _SUFFIXES]
    elif path.exists():
        found = [path]
    else:
        found = [pathlib.Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
    if not found:
        raise entry.Failure(
            entry.MISSING_INPUT,
            f'--images={pattern}: no images there (looked for {", ".join(_SUFFIXES)}). Quote a glob, so that the shell '
            'leaves it alone.',
        )
    return sorted(found)


def output_names(images: list[pathlib.Path]) -> list[str]:
    """A name for each image's results: its path below the folder that all have in common, without the suffix.

    Raises:
      Failure: BAD_USAGE if two images would have the same name.
    """
    root = os.path.commonpath([image.parent for image in images])
    names = [str(image.relative_to(root).with_suffix('')) for image in images]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        raise entry.Failure(entry.BAD_USAGE, f'--images: several images are named {twice}; predict them one by one')
    return names


def main() -> None:
    for flag in (_WORKDIR, _IMAGES):
        if not flag.value:
            raise entry.Failure(entry.BAD_USAGE, f'pass --{flag.name} (--help tells what it is)')
    images = find_images(_IMAGES.value)
    names = output_names(images)

    with entry.quiet_import():
        import numpy as np
        import tensorflow as tf
        from PIL import Image, UnidentifiedImageError
        from tqdm import tqdm

        from unet import cluster, from_config, visualize

    strategy = cluster.make_strategy(0)  # which also refuses to run on the CPU of a machine with GPUs unnoticed
    with strategy.scope():
        config, table, network, path = from_config.trained(_WORKDIR.value, _CHECKPOINT.value)
    predict = tf.function(from_config.predictor(config, network, table), reduce_retracing=True)
    output = pathlib.Path(_OUTPUT_DIR.value)
    unreadable = []
    for file, name in zip(tqdm(images, unit='image', disable=None), names, strict=True):
        try:
            image = np.asarray(Image.open(file).convert('RGB'))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            unreadable.append(f'{file}: {error}')
            continue
        label_ids = predict(tf.constant(image[None])).numpy()[0]
        pictures = {
            'label_ids': label_ids,
            'colors': visualize.colorize(label_ids, table),
            'overlays': visualize.overlay(image, label_ids, table),
        }
        panel = visualize.side_by_side(image, pictures['colors'], pictures['overlays'])
        pictures['panels'] = visualize.with_legend(panel, label_ids, table)
        for kind, picture in pictures.items():
            visualize.save(picture, output / kind / f'{name}.png')
    print(
        f'{len(images) - len(unreadable)} images by {path}: {output}/label_ids, colors, overlays and panels', flush=True
    )
    if unreadable:
        sys.stdout.flush()
        raise entry.Failure(entry.BAD_DATA, 'not readable as images:\n' + '\n'.join(unreadable))


if __name__ == '__main__':
    entry.run(main)
