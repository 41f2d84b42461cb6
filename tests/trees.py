"""Small datasets in the Cityscapes layout, made in tests, and the converter run on them."""

import pathlib
import subprocess
import sys
import zipfile

import numpy as np

from data_prep import build as data_build
from data_prep import images, labels, shards
from tests import tiny

SIZE = (24, 40)


def write_tree(root: pathlib.Path, splits: dict[str, list[str]], size=SIZE, kind='gtFine') -> pathlib.Path:
    """A tree with a scene per stem; the city is what comes before the first '_'."""
    for split, stems in splits.items():
        for number, stem in enumerate(stems):
            image, label = tiny.scene(size, number)
            write(root, f'leftImg8bit/{split}/{stem.split("_")[0]}/{stem}_leftImg8bit.png', tiny.png(image))
            write(root, f'{kind}/{split}/{stem.split("_")[0]}/{stem}_{kind}_labelIds.png', tiny.png(label))
    return root


def write(root: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zip_tree(tree: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """The same files as the official zip files hold them: leftImg8bit_trainvaltest.zip and so on."""
    root.mkdir(exist_ok=True)
    for kind in sorted(path.name for path in tree.iterdir()):
        with zipfile.ZipFile(root / f'{kind}_trainvaltest.zip', 'w') as archive:
            archive.writestr('README', 'as in the download')
            for path in sorted((tree / kind).rglob('*')):
                archive.write(path, path.relative_to(tree))
    return root


def command(source, data_dir, *flags) -> list[str]:
    program = [sys.executable, '-m', 'data_prep.build_tfrecords']
    return [*program, f'--cityscapes_dir={source}', f'--data_dir={data_dir}', *flags]


def build(source, data_dir, *flags) -> subprocess.CompletedProcess:
    return tiny.run(command(source, data_dir, *flags))


def build_here(source, data_dir, **changes) -> None:
    """The same in this process, without worker processes."""
    values = {'table': labels.CITYSCAPES, 'encoding': images.Encoding(), 'skip_bad': False} | changes
    settings = shards.Settings(str(source), str(data_dir), **values)

    def write_shards(todo):
        for shard in todo:
            shards.write_shard(shard, settings)

    data_build.build(settings, write_shards)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def grey(value: int, size=SIZE) -> bytes:
    return tiny.png(np.full(size, value, np.uint8))
