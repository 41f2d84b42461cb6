"""Writes a synthetic street-scene dataset in the layout of Cityscapes, for whoever has no download.

    python -m data_prep.synthesize --cityscapes_dir=dataset --train_images=320 --val_images=60 --size=512x1024

Each scene is drawn from random street geometry (data_prep/synthetic_scene.py) and written as
leftImg8bit/<split>/<city>/*.png with its gtFine label ids and instance ids. The cities of train and val differ. The
same seed gives the same bytes whatever the number of cores, and a scene does not depend on how many others are written.
"""

import functools
import io
import os
import pathlib
import shlex

import numpy as np
from absl import flags
from PIL import Image

from data_prep import executors, synthetic_scene
from launch import entry, files, folders, host, progress

_CITYSCAPES_DIR = flags.DEFINE_string(
    'cityscapes_dir',
    os.environ.get('CITYSCAPES_DATASET', 'dataset'),
    'Folder to write leftImg8bit and gtFine to; default $CITYSCAPES_DATASET, else dataset.',
)
_TRAIN_IMAGES = flags.DEFINE_integer('train_images', 320, 'Scenes of the split train.', lower_bound=0)
_VAL_IMAGES = flags.DEFINE_integer('val_images', 60, 'Scenes of the split val.', lower_bound=0)
_SIZE = flags.DEFINE_string('size', '512x1024', 'Height x width in pixels, from 64x64; the real images are 1024x2048.')
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives other scenes.', lower_bound=0)
_PROCESSES = flags.DEFINE_integer('processes', None, 'Scenes drawn at a time; default one per core.', lower_bound=1)

# Invented, and disjoint: a score on val is a score on cities never seen.
CITIES = {
    'train': ('altenquell', 'birkmoor', 'drosselau', 'eulenfurt', 'felsenried', 'grauhafen'),
    'val': ('hasselbruck', 'lindensee', 'moostal'),
}
_FRAME = 19  # the labelled frame of each sequence, as in Cityscapes
_SMALLEST_SIDE = 64


def stem(split: str, index: int) -> str:
    """Returns the name that the files of one scene share, with its folders:
    'train/altenquell/altenquell_000000_000019'."""
    cities = CITIES[split]
    city = cities[index % len(cities)]
    return f'{split}/{city}/{city}_{index // len(cities):06d}_{_FRAME:06d}'


def paths(root: pathlib.Path, split: str, index: int) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    """Returns the files of one scene: image, label ids, instance ids."""
    name = stem(split, index)
    return (
        root / 'leftImg8bit' / f'{name}_leftImg8bit.png',
        root / 'gtFine' / f'{name}_gtFine_labelIds.png',
        root / 'gtFine' / f'{name}_gtFine_instanceIds.png',
    )


def write_scene(task: tuple[str, int], *, root: pathlib.Path, size: tuple[int, int], seed: int) -> None:
    """Draws scene (split, index) at `size` (height, width) and writes its three files."""
    split, index = task
    arrays = synthetic_scene.draw(size, np.random.default_rng([seed, list(CITIES).index(split), index]))
    for path, array in zip(paths(root, split, index), arrays, strict=True):
        content = io.BytesIO()
        Image.fromarray(array).save(content, 'PNG', compress_level=1)  # sensor noise hardly compresses: 5 times faster
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f'.{path.name}')
        with files.naming(path):
            unfinished.write_bytes(content.getvalue())
            unfinished.replace(path)


def refuse_foreign_images(root: pathlib.Path, tasks: list[tuple[str, int]]) -> None:
    """Refuses a folder that holds images which this command would not write, such as the real Cityscapes.

    Raises:
      UserError: BAD_USAGE, naming one of them.
    """
    ours = {paths(root, *task)[0] for task in tasks}
    images = root / 'leftImg8bit'
    problems: list[str] = []
    found = [images / name for name in folders.files_below(images, problems)] if images.is_dir() else []
    if problems:
        raise entry.UserError(entry.BAD_USAGE, f'--cityscapes_dir={root}: {problems[0]}')
    if foreign := [path for path in found if path not in ours]:
        raise entry.UserError(
            entry.BAD_USAGE,
            f'--cityscapes_dir={root} holds {len(foreign)} images that this command would not write, such as '
            f'{foreign[0].relative_to(root)}: they would be mixed with the synthetic ones. Pass another folder.',
        )


def main() -> None:
    root = pathlib.Path(_CITYSCAPES_DIR.value)
    counts = {'train': _TRAIN_IMAGES.value, 'val': _VAL_IMAGES.value}
    height, width = entry.parse_size('size', _SIZE.value)
    if min(height, width) < _SMALLEST_SIDE:
        raise entry.UserError(
            entry.BAD_USAGE, f'--size={_SIZE.value}: each side must be at least {_SMALLEST_SIDE} pixels'
        )
    tasks = [(split, index) for split, count in counts.items() for index in range(count)]
    if not tasks:
        raise entry.UserError(entry.BAD_USAGE, '--train_images=0 and --val_images=0: nothing to write')
    refuse_foreign_images(root, tasks)

    write = functools.partial(write_scene, root=root, size=(height, width), seed=_SEED.value)
    processes = min(_PROCESSES.value or host.cores(), len(tasks))
    with executors.worker_pool(processes) as pool, progress.show(len(tasks), 'scene') as advance:
        for _ in executors.in_pool(pool, write, tasks):
            advance(1)
    print(f'{counts["train"]} train and {counts["val"]} val scenes of {height}x{width} in {root}')
    source = shlex.quote(f'--cityscapes_dir={root}')
    print(f'Next: python -m data_prep.build_tfrecords {source} --data_dir=data/synthetic')


if __name__ == '__main__':
    entry.run(main)
