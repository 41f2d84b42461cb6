"""Files for the Cityscapes benchmark server: a PNG of label ids per image, checked as its evaluator would, and zipped.

    submission.prepare('submission', split, manifest)
    for path, prediction in zip(submission.paths('submission', split), predictions):
        submission.write(path, prediction)
    archive = submission.check_and_zip('submission', split, table)

The server looks for `<city>_<sequence>_<frame>*.png` of one channel in the size of the image, whose values are label
ids, not train ids. Source: cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py, getPrediction.
"""

import io
import os
import pathlib
import re
import zipfile

import numpy as np
from PIL import Image

from data_prep import labels, records
from launch import entry, files, folders

_SUFFIX = '_pred_labelIds.png'
_LONGEST = 255  # bytes of a file's name, on all usual file systems
_IMAGE_ID = re.compile(r'[^_/]+_\d{6}_\d{6}')


def prepare(folder: str | os.PathLike, split: records.Split, manifest: dict | None) -> None:
    """Makes the folder for a submission, after checks that the split and the folder are fit for one.

    Args:
      folder: where the predictions will be written.
      split: the images that will be predicted.
      manifest: the manifest of their record folder, if there is one.

    Raises:
      UserError: BAD_DATA if images are not named as in Cityscapes or were resized when the records were made; BAD_USAGE
        if the folder holds PNGs that this submission would not replace, or a name would be too long.
    """
    strange = [image_id for image_id in split.image_ids if not _IMAGE_ID.fullmatch(image_id)]
    if strange:
        raise entry.UserError(
            entry.BAD_DATA,
            f'split {split.name!r}: {strange[0]!r} is no name of the benchmark, which are like '
            'berlin_000000_000019. For other images use python -m unet.predict.',
        )
    if manifest and manifest['flags']['size']:
        size = 'x'.join(map(str, manifest['flags']['size']))
        raise entry.UserError(
            entry.BAD_DATA,
            f'these records hold images resized to {size}; the server wants predictions of the original size. Build '
            'records of the test images without --size.',
        )
    folder = pathlib.Path(folder)
    ours = {path.name for path in paths(folder, split)}
    found = folders.files_below(folder, []) if folder.is_dir() else ()
    foreign = [name for name in found if name.endswith('.png') and name not in ours]
    if foreign:
        raise entry.UserError(
            entry.BAD_USAGE,
            f'--submission_dir={folder} holds other PNGs, such as {foreign[0]}, which the server would take for '
            'predictions too. Pass another folder.',
        )
    longest = max((_archive(folder).name, *ours), key=lambda name: len(os.fsencode(name)))
    if len(os.fsencode(longest)) > _LONGEST:
        raise entry.UserError(
            entry.BAD_USAGE, f'--submission_dir={folder}: {longest} is longer than the {_LONGEST} bytes of a file name'
        )
    folder.mkdir(parents=True, exist_ok=True)


def paths(folder: str | os.PathLike, split: records.Split) -> list[pathlib.Path]:
    """Returns the path of each example's file in the folder of a submission."""
    return [pathlib.Path(folder, image_id + _SUFFIX) for image_id in split.image_ids]


def write(path: pathlib.Path, label_ids: np.ndarray) -> None:
    """Writes label ids, uint8 [h, w], as a PNG of one channel."""
    content = io.BytesIO()
    Image.fromarray(label_ids).save(content, 'PNG')
    files.write_atomically(path, content.getvalue())


def check_and_zip(folder: str | os.PathLike, split: records.Split, table: labels.Table) -> pathlib.Path:
    """Reads every file back and packs them all into `<folder>.zip`.

    Args:
      folder: the folder that `prepare` made.
      split: the images of the submission.
      table: the label table, whose ids alone may occur.

    Returns:
      The path of the zip file.

    Raises:
      UserError: NO_STORAGE, naming the file, if one is missing or not what the server wants.
    """
    known = np.zeros(256, bool)
    known[[label.id for label in table]] = True
    for path, height, width in zip(paths(folder, split), split.height, split.width, strict=True):
        problem = _problem(path, (int(height), int(width)), known)
        if problem:
            raise entry.UserError(
                entry.NO_STORAGE,
                f'{path}: {problem}. It was changed or lost after it was written; run again, with --submission_dir on '
                'storage that all processes share.',
            )
    archive = _archive(folder)
    unfinished = archive.with_name(files.temporary_name(archive.name))
    try:
        with files.naming(archive):
            with zipfile.ZipFile(unfinished, 'w', zipfile.ZIP_STORED) as file:  # PNGs are compressed already
                for path in paths(folder, split):
                    file.write(path, path.name)
            with unfinished.open('rb+') as file:
                files.sync(file, archive)
            unfinished.replace(archive)
    finally:
        unfinished.unlink(missing_ok=True)
    return archive


def _archive(folder: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(f'{os.path.normpath(folder)}.zip')


def _problem(path: pathlib.Path, size: tuple[int, int], known: np.ndarray) -> str:
    """What the server would not take about a file; '' if nothing."""
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except (OSError, ValueError) as error:
        return f'not readable ({error})'
    if mode != 'L' or values.ndim != 2:
        return f'of mode {mode}, not 8 bits of one channel'
    if values.shape != size:
        return f'{values.shape[0]}x{values.shape[1]}, its image is {size[0]}x{size[1]}'
    if not known[values].all():
        return f'holds {int(values[~known[values]][0])}, which is no label id'
    return ''
