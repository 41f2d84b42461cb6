"""A dataset in the Cityscapes layout, as large as a measurement needs, from copies of a few frames.

folder = frames.copy('/data/cityscapes', scratch / 'source', 240)
records = frames.build(folder, scratch / 'records', ['--image_format=jpeg'])
"""

import pathlib
import subprocess
import sys

from data_prep import cityscapes_layout, source_files, synthesize

_FRAMES = 8  # of the source, at most, that the copies are made of


def copy(source: str | None, root: pathlib.Path, images: int) -> pathlib.Path:
    """Makes the folder `root` of that many copies: ten twelfths of them train, one val, one test.

    Args:
      source: dataset whose first labelled frames are copied; None: two synthetic ones of 2048x1024.
      root: the folder to make.
      images: number of copies.
    """
    if source is None:
        source = root.with_name('frames')
        for index in range(2):
            synthesize.write_scene(('train', index), root=source, size=(1024, 2048), seed=0)
    pairs = [pair for pair in cityscapes_layout.scan(source).pairs if pair.label and pair.label.endswith('.png')][
        :_FRAMES
    ]
    for number in range(images):
        pair, part = pairs[number % len(pairs)], number * 12 // images
        split = 'val' if part == 10 else 'test' if part == 11 else 'train'
        for kind, location, suffix in (
            ('leftImg8bit', pair.image, 'leftImg8bit'),
            ('gtFine', pair.label, 'gtFine_labelIds'),
        ):
            path = root / kind / split / 'ulm' / f'ulm_{number:06d}_000019_{suffix}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source_files.read(source, location))
    return root


def build(source: pathlib.Path, data_dir: pathlib.Path, options: list[str]) -> pathlib.Path:
    """Builds the records `data_dir` of a dataset, with more flags of data_prep.build_tfrecords."""
    folders = (f'--cityscapes_dir={source}', f'--data_dir={data_dir}')
    command = [sys.executable, '-m', 'data_prep.build_tfrecords', *folders, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return data_dir
