"""The files of a record folder, read and written without TensorFlow.

    split = records.read_split('data/cityscapes', 'train')
    example = records.read_example(split, 17)  # {'image_id': b'aachen_000000_000019', 'image_left': b'\\x89PNG', ...}

A folder holds TFRecord shards in the layout of TFDS (`dataset_info.json`, `features.json`) and, beside them,
`manifest.json` (counts, bytes, digests, class histograms, the flags it was made with), `labels.json` (the label table)
and one `index-<split>.json` per split: where each record lies, its image's size and its id, so that any example can be
read without what lies before it. A folder that TFDS itself built has neither manifest nor index; its index is made
once, by walking over the record headers.

The framing of the records and what is in them: tfrecord.py.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np
from etils import epath

from data_prep import labels, png, tfrecord
from launch import entry, files
from launch.record_folder import DATASET_INFO, check_complete, shard_lengths

MANIFEST = 'manifest.json'
MADE_AGAIN = 'places-'  # what the names of files begin with that are made again where they are missing, see places.py
FEATURES = ('image_id', 'image_left', 'segmentation_label')


@dataclasses.dataclass(frozen=True)
class Split:
    """Where the examples of one split lie; all arrays have one entry per example.

    Attributes:
      name: 'train', 'validation', 'test' or 'train_extra'; joined by '+' when several are read as one.
      paths: the shard files.
      shard: int32, index into `paths`.
      offset: int64, bytes from the start of the shard to the record's header.
      length: int64, bytes of the record's data.
      height: int32, width: int32, pixels of the stored image.
      labelled: bool, False for images without labels, which are stored with an all-void label image.
      image_ids: unique names.
    """

    name: str
    paths: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    height: np.ndarray
    width: np.ndarray
    labelled: np.ndarray
    image_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def digest(self) -> str:
        """Returns the SHA-256 of which examples lie where, wherever the folder is: equal for equal copies of it."""
        arrays = (self.shard, self.offset, self.length, self.height, self.width, self.labelled)
        names = [*map(os.path.basename, self.paths), *self.image_ids]
        return hashlib.sha256(b''.join(array.tobytes() for array in arrays) + '\n'.join(names).encode()).hexdigest()


def read_example(split: Split, example: int) -> dict[str, bytes]:
    """Reads the encoded features of one example of a split."""
    return tfrecord.parse(read_serialized(split, example))


def read_serialized(split: Split, example: int) -> bytes:
    """Reads one example of a split, a tf.train.Example as it is stored."""
    path = split.paths[split.shard[example]]
    return tfrecord.read_record(path, int(split.offset[example]), int(split.length[example]))


def index_file(split: str) -> str:
    return f'index-{split}.json'


def read_label_table(data_dir: epath.PathLike) -> labels.Table:
    """Reads the folder's label table; Cityscapes's if it has none."""
    path = epath.Path(data_dir) / labels.FILE
    return labels.read(path) if path.exists() else labels.CITYSCAPES


def read_manifest(data_dir: epath.PathLike) -> dict | None:
    """Reads the folder's manifest; None for a folder that TFDS built. Raises UserError BAD_DATA if it is damaged."""
    path = epath.Path(data_dir) / MANIFEST
    if not path.exists():
        return None
    manifest = files.read_json(path)
    with _as_written(data_dir, MANIFEST):
        for key in ('flags', 'source', 'splits', 'files'):
            manifest[key].items()
    return manifest


def class_pixels(data_dir: epath.PathLike, splits: tuple[str, ...]) -> np.ndarray | None:
    """Returns int64 [256]: pixels per label id in those splits; None for a folder without a manifest."""
    manifest = read_manifest(data_dir)
    if manifest is None:
        return None
    pixels = np.zeros(256, np.int64)
    with _as_written(data_dir, MANIFEST):
        for split in splits:
            for label_id, count in manifest['splits'][split]['class_pixels'].items():
                pixels[int(label_id)] += count
    return pixels


@contextlib.contextmanager
def _as_written(data_dir: epath.PathLike, file: str) -> Iterator[None]:
    """Raises UserError BAD_DATA where the block does not find in a JSON file what it looks for."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise entry.UserError(
            entry.BAD_DATA,
            f'{os.path.join(data_dir, file)}: is not as it was written ({error!r}). Copy the folder again, or build it '
            'again.',
        ) from error


def check_files(data_dir: epath.Path, manifest: dict) -> list[str]:
    """Lists problems of the files around the shards, and shards that are missing, too many or of another size.

    Their content is left to data_prep.verify_tfrecords.
    """
    problems = []
    with _as_written(data_dir, MANIFEST):
        digests = dict(manifest['files'])
        expected = {shard['file']: shard['bytes'] for split in manifest['splits'].values() for shard in split['shards']}
        there = {path.name for path in files.matching(data_dir, f'{manifest["name"]}-*.tfrecord-*')}
    for name, digest in digests.items():
        path = data_dir / name
        if not path.exists():
            if not name.startswith(MADE_AGAIN):
                problems.append(f'{name}: missing. Copy the folder again, or build it again.')
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            problems.append(f'{name}: differs from its digest. Copy the folder again, or build it again.')
    problems += [f'{name}: missing. Copy it again.' for name in sorted(expected.keys() - there)]
    problems += [f'{name}: not in the manifest. Remove it.' for name in sorted(there - expected.keys())]
    for name in sorted(there & expected.keys()):
        size = files.stat(data_dir / name).length
        if size != expected[name]:
            problems.append(f'{name}: {size:,} bytes instead of {expected[name]:,}. Copy it again.')
    return problems


def split_sizes(data_dir: epath.PathLike) -> dict[str, int]:
    """Returns the number of examples of each split, by TFDS's metadata."""
    return {split: sum(lengths) for split, lengths in shard_lengths(data_dir).items()}


def read_split(data_dir: epath.PathLike, names: str) -> Split:
    """Opens one split, or several joined by '+', through the index.

    Raises:
      UserError: MISSING_INPUT if there is no such folder or split, BAD_DATA if folder, index and shards do not agree.
    """
    data_dir = check_complete(data_dir)
    with _as_written(data_dir, index_file(names)):
        return _read_split(data_dir, names)


def _read_split(data_dir: epath.Path, names: str) -> Split:
    sizes = split_sizes(data_dir)
    paths, rows, shard_of = [], [], []
    for name in names.split('+'):
        if not sizes.get(name):
            raise entry.UserError(
                entry.MISSING_INPUT,
                f'{data_dir}: no examples of split {name!r}; it holds '
                + (', '.join(f'{size} of {split}' for split, size in sizes.items() if size) or 'none at all'),
            )
        shards = _read_index(data_dir, name)
        found = sum(len(shard['records']) for shard in shards)
        if found != sizes[name]:
            raise entry.UserError(
                entry.BAD_DATA,
                f'{data_dir / index_file(name)}: lists {found} examples, {DATASET_INFO} says {sizes[name]}. '
                'Delete the index to have it made anew, or build the folder again.',
            )
        for shard in shards:
            shard_of += [len(paths)] * len(shard['records'])
            paths.append(os.fspath(data_dir / shard['file']))
            rows += shard['records']
    offset, length, height, width, labelled, image_ids = zip(*rows, strict=True)
    return Split(
        name=names,
        paths=tuple(paths),
        shard=np.array(shard_of, np.int32),
        offset=np.array(offset, np.int64),
        length=np.array(length, np.int64),
        height=np.array(height, np.int32),
        width=np.array(width, np.int32),
        labelled=np.array(labelled, bool),
        image_ids=image_ids,
    )


def format_index(split: str, shards: list[dict]) -> str:
    """Returns the index file of a split.

    Args:
      split: its name.
      shards: per shard `file`, `bytes` and `records`: a list of [offset, length, height, width, labelled, image id].
    """
    rows = (
        f'{{"file": {json.dumps(shard["file"])}, "bytes": {shard["bytes"]}, "records": [\n'
        + ',\n'.join(json.dumps(record, ensure_ascii=False) for record in shard['records'])
        + '\n]}'
        for shard in shards
    )
    columns = '["offset", "length", "height", "width", "labelled", "image_id"]'
    return f'{{"split": {json.dumps(split)}, "columns": {columns}, "shards": [\n' + ',\n'.join(rows) + '\n]}\n'


def _read_index(data_dir: epath.Path, split: str) -> list[dict]:
    """The shards of the split's index, each there with the size that the index says."""
    path = data_dir / index_file(split)
    if not path.exists():
        shards = list(_scan(data_dir, split))
        with contextlib.suppress(OSError):  # a folder that may not be written to is scanned again by the next run
            files.write_atomically(path, format_index(split, shards))
        return shards
    shards = files.read_json(path)['shards']
    for shard in shards:
        file = data_dir / shard['file']
        size = files.stat(file).length if file.exists() else None
        if size != shard['bytes']:
            found = 'is not there' if size is None else f'has {size:,} bytes'
            raise entry.UserError(
                entry.BAD_DATA,
                f'{file}: {found}, the index says {shard["bytes"]:,} bytes. Copy the folder again, or build it again.',
            )
    return shards


def _scan(data_dir: epath.Path, split: str) -> Iterator[dict]:
    """Makes the index of a folder that TFDS built by walking over the headers of its records."""
    info = files.read_json(data_dir / DATASET_INFO)
    if info.get('fileFormat', 'tfrecord') != 'tfrecord':
        raise entry.UserError(
            entry.BAD_DATA,
            f'{data_dir}: stored as {info["fileFormat"]}; only TFRecords are read: build --file_format=tfrecord.',
        )
    (declared,) = [entry_ for entry_ in info['splits'] if entry_['name'] == split]
    counts = [int(count) for count in declared['shardLengths']]
    template = declared.get('filepathTemplate') or '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    for number, count in enumerate(counts):
        name = (
            template.replace('{DATASET}', info['name'])
            .replace('{SPLIT}', split)
            .replace('{FILEFORMAT}', 'tfrecord')
            .replace('{SHARD_X_OF_Y}', f'{number:05d}-of-{len(counts):05d}')
            .replace('{SHARD_INDEX}', f'{number:05d}')
            .replace('{NUM_SHARDS}', f'{len(counts):05d}')
        )
        path = data_dir / name
        if not path.exists():
            raise entry.UserError(entry.BAD_DATA, f'{path}: this shard of {len(counts)} is not there. Copy it again.')
        size, at, rows = files.stat(path).length, 0, []
        while at < size:
            header = tfrecord.read_at(os.fspath(path), at, tfrecord.HEADER.size)
            if len(header) < tfrecord.HEADER.size or tfrecord.HEADER.unpack(header)[1] != tfrecord.masked_crc(
                header[:8]
            ):
                raise entry.UserError(entry.BAD_DATA, f'{path}: no intact record at byte {at}. Copy or build it again.')
            length = tfrecord.HEADER.unpack(header)[0]
            example = tfrecord.parse(tfrecord.read_record(os.fspath(path), at, length))
            if not set(FEATURES) <= set(example):
                raise entry.UserError(
                    entry.BAD_DATA,
                    f'{path}: its records hold {", ".join(sorted(example))}; needed are {", ".join(FEATURES)}. '
                    'TFDS: build cityscapes/semantic_segmentation.',
                )
            height, width = png.image_size(example['image_left'])
            rows.append([at, length, height, width, 1, example['image_id'].decode()])
            at += tfrecord.HEADER.size + length + tfrecord.FOOTER.size
        if len(rows) != count:
            raise entry.UserError(
                entry.BAD_DATA, f'{path}: holds {len(rows)} records, {DATASET_INFO} says {count}. Copy it again.'
            )
        yield {'file': name, 'bytes': size, 'records': rows}
