"""Where the classes are: some pixels of each label id in each image of a split, from which crops are drawn.

    from data_prep import places, records

    split = records.read_split('data/cityscapes', 'train')
    found = places.read(split)                          # or makes the file, once, from the labels
    found[found['id'] == 33]['example']                 # the images with a bicycle, each up to 8 times

`places-<split>.npy` lies beside the index of each split and is written with it. The places of an id in an image are
spread over its pixels in reading order, so they are the same whoever looks for them.
"""

import concurrent.futures
import contextlib
import io

import numpy as np
from etils import epath

from data_prep import png, records
from launch import entry, files, host, progress

DTYPE = np.dtype([('example', '<i4'), ('row', '<i4'), ('column', '<i4'), ('id', 'u1')])
_REMEDY = 'Delete it, to have it made anew.'
PER_CLASS = 8  # places of an id in an image, at the most
_SPREAD = np.arange(1, 1 + PER_CLASS) * 0.6180339887 % 1  # multiples of the golden ratio: even, and never periodic
_SAMPLE = 2**15  # pixels among which frequent ids are looked for


def file_of(split: str) -> str:
    """Returns the name of a split's file."""
    return f'{records.MADE_AGAIN}{split}.npy'


def find(label: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Finds places of each id in a label image.

    Args:
      label: uint8 [h, w].
      counts: int [256], its pixels per label id.

    Returns:
      [places] of DTYPE, of example 0, by id.
    """
    pixels = label.reshape(-1)
    step = max(1, len(pixels) // _SAMPLE) | 1  # odd: not all in the same columns
    sample = pixels[::step]
    found = []
    for id_ in np.flatnonzero(counts):
        of_id = np.flatnonzero(sample == id_) * step
        if len(of_id) < PER_CLASS * 8:
            of_id = np.flatnonzero(pixels == id_)
        chosen = np.unique(of_id[(_SPREAD * len(of_id)).astype(int)])
        rows = np.zeros(len(chosen), DTYPE)
        rows['row'], rows['column'] = np.divmod(chosen, label.shape[1])
        rows['id'] = id_
        found.append(rows)
    return np.concatenate(found)


def encode(found: list[np.ndarray]) -> bytes:
    """Returns the file of a split, from the places of each of its examples in order."""
    numbered = [rows.copy() for rows in found]
    for example, rows in enumerate(numbered):
        rows['example'] = example
    content = io.BytesIO()
    np.save(content, np.concatenate(numbered), allow_pickle=False)
    return content.getvalue()


def read(split: records.Split) -> np.ndarray:
    """Reads the places of a split, or of several that were opened as one; makes the file of a split that has none.

    Returns:
      [places] of DTYPE, by example.

    Raises:
      UserError: BAD_DATA if a file does not fit the split, or a label cannot be decoded.
    """
    found, first, data_dir = [], 0, epath.Path(split.paths[0]).parent
    for name in split.name.split('+'):
        path = data_dir / file_of(name)
        single = split if split.name == name else records.read_split(data_dir, name)
        if path.exists():
            rows = _load(path)
        else:
            encoded = encode(_look(single))
            with contextlib.suppress(OSError):  # in a folder that may not be written to each run looks again
                files.write_atomically(path, encoded)
            rows = np.load(io.BytesIO(encoded))
        _check(path, rows, single)
        rows['example'] += first
        found.append(rows)
        first += len(single)
    return np.concatenate(found)


def _look(split: records.Split) -> list[np.ndarray]:
    """The places of every example, from the decoded labels."""

    def of_example(example: int) -> np.ndarray:
        encoded = records.read_example(split, example)['segmentation_label']
        try:
            label = png.read_window(encoded, (0, 0, *png.image_size(encoded)), channels=1)[..., 0]
            return find(label, np.bincount(label.reshape(-1), minlength=256))
        except ValueError as error:
            raise entry.UserError(
                entry.BAD_DATA,
                f'{split.paths[split.shard[example]]}: label of {split.image_ids[example]} cannot be decoded: {error}. '
                'Run python -m data_prep.verify_tfrecords to find all such records, then build the folder again.',
            ) from error

    found = []
    print(f'Looking for the classes in {len(split):,} labels of {split.name}, once', flush=True)
    with concurrent.futures.ThreadPoolExecutor(host.cores()) as pool, progress.show(len(split), 'label') as advance:
        for rows in pool.map(of_example, range(len(split))):
            found.append(rows)
            advance(1)
    return found


def _load(path: epath.Path) -> np.ndarray:
    try:
        rows = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if rows.dtype != DTYPE or rows.ndim != 1:
            raise ValueError(f'it holds {rows.dtype}')
    except (ValueError, EOFError) as error:
        raise entry.UserError(entry.BAD_DATA, f'{path}: is not as it was written ({error}). {_REMEDY}') from error
    return rows


def _check(path: epath.Path, rows: np.ndarray, split: records.Split) -> None:
    """Raises UserError BAD_DATA if places lie outside of the split's images."""
    examples = rows['example']
    fits = (examples >= 0) & (examples < len(split))
    if fits.all():
        fits = (rows['row'] < split.height[examples]) & (rows['column'] < split.width[examples])
    if not fits.all() or len(np.unique(examples)) != len(split):
        raise entry.UserError(entry.BAD_DATA, f'{path}: does not fit the records of {split.name}. {_REMEDY}')
