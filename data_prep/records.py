"""The files of a record folder, read and written without TensorFlow.

    split = records.read_split('data/cityscapes', 'train')
    example = records.read_example(split, 17)  # {'image_id': b'aachen_000000_000019', 'image_left': b'\\x89PNG', ...}

A folder holds TFRecord shards in the layout of TFDS (`dataset_info.json`, `features.json`) and, beside them,
`manifest.json` (counts, bytes, digests, class histograms, the flags it was made with), `labels.json` (the label table)
and one `index-<split>.json` per split: where each record lies, its image's size and its id, so that any example can be
read without what lies before it. A folder that TFDS itself built has neither manifest nor index; its index is made
once, by walking over the record headers.

Sources: TFRecord framing, https://www.tensorflow.org/tutorials/load_data/tfrecord (length, its checksum, data, its
checksum, little endian); tf.train.Example, tensorflow/core/example/{example,feature}.proto; protobuf wire format,
https://protobuf.dev/programming-guides/encoding.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c
import numpy as np
from etils import epath
from PIL import Image

from data_prep import labels
from launch import entry

DATASET_INFO = 'dataset_info.json'  # TFDS's own metadata
MANIFEST = 'manifest.json'
BUILDING = 'building'  # folder for what a build needs to go on
PLAN = 'building/plan.json'  # the first file written and the last removed: the dataset is unfinished while it is there
FEATURES = ('image_id', 'image_left', 'segmentation_label')

_HEADER = struct.Struct('<QI')  # length of the data, masked CRC-32C of those 8 bytes
_FOOTER = struct.Struct('<I')  # masked CRC-32C of the data
_MEASURED_BYTES = 1 << 16  # enough of an image file to find its size in


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
        """SHA-256 of which examples lie where, wherever the folder is: equal for equal copies of it."""
        arrays = (self.shard, self.offset, self.length, self.height, self.width, self.labelled)
        names = [*map(os.path.basename, self.paths), *self.image_ids]
        return hashlib.sha256(b''.join(array.tobytes() for array in arrays) + '\n'.join(names).encode()).hexdigest()


def masked_crc(*parts: bytes) -> int:
    """The checksum of the TFRecord format: CRC-32C, rotated right by 15 bits plus a constant."""
    crc = functools.reduce(google_crc32c.extend, parts, 0)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One TFRecord: length, checksum of the length, data, checksum of the data."""
    return b''.join(frame_parts([data]))


def frame_parts(parts: list[bytes]) -> list[bytes]:
    """One TFRecord of data that comes in parts, likewise: images are not copied to make one."""
    length = struct.pack('<Q', sum(map(len, parts)))
    return [length, _FOOTER.pack(masked_crc(length)), *parts, _FOOTER.pack(masked_crc(*parts))]


def record_bytes(length: int) -> int:
    """Bytes in the shard of a record with `length` bytes of data."""
    return _HEADER.size + length + _FOOTER.size


def serialize(features: dict[str, bytes]) -> bytes:
    """A tf.train.Example with one bytes value per feature, keys sorted: the same features give the same bytes."""
    return b''.join(serialize_parts(features))


def serialize_parts(features: dict[str, bytes]) -> list[bytes]:
    """The same in parts, those of `features` among them."""
    entries = []
    for key in sorted(features):
        feature = _field(1, *_field(1, features[key]))
        entries += _field(1, *_field(1, key.encode()), *_field(2, *feature))
    return list(_field(1, *entries))


def parse(example: bytes) -> dict[str, bytes]:
    """The first bytes value of each feature of a serialized tf.train.Example.

    Raises:
      ValueError: if the bytes are not such an Example.
    """
    view = memoryview(example)
    (features,) = _fields(view, 1)
    found = {}
    for item in _fields(features, 1):
        (key,), (feature,) = _fields(item, 1), _fields(item, 2)
        values = [value for bytes_list in _fields(feature, 1) for value in _fields(bytes_list, 1)]
        if values:
            found[bytes(key).decode()] = bytes(values[0])
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, *payload: bytes) -> tuple[bytes, ...]:
    """A length-delimited field (wire type 2), in parts that are yet to be joined: images are copied only once."""
    return (_varint(number << 3 | 2) + _varint(sum(map(len, payload))), *payload)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise ValueError('truncated protobuf message')
        byte = view[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(view: memoryview, number: int) -> list[memoryview]:
    """The payloads of all length-delimited fields with that number, in order."""
    found, at = [], 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        if tag & 7 != 2:
            raise ValueError(f'not a feature map of byte lists: wire type {tag & 7}')
        length, at = _read_varint(view, at)
        if at + length > len(view):
            raise ValueError('truncated protobuf message')
        if tag >> 3 == number:
            found.append(view[at : at + length])
        at += length
    return found


@functools.lru_cache(maxsize=256)  # far fewer than the 1024 files that a process may usually have open
def _opened(path: str) -> IO[bytes]:
    return open(path, 'rb', buffering=0)  # closes itself once it is evicted and no thread reads it any more


def _read_at(path: str, offset: int, size: int) -> bytes:
    """Up to `size` bytes at `offset`; local files stay open for all threads, those read most recently."""
    if is_remote(path):
        with epath.Path(path).open('rb') as file:
            file.seek(offset)
            return file.read(size)
    file = _opened(path)  # held while it is read: another thread may evict it
    return os.pread(file.fileno(), size, offset)


def read_record(path: str, offset: int, length: int) -> bytes:
    """The data of the record whose header lies at `offset` of the shard, both checksums checked.

    Raises:
      Failure: BAD_DATA if the shard does not hold an intact record of that length there.
    """
    end = offset + _HEADER.size + length
    if is_remote(path):  # one request
        block = _read_at(path, offset, end + _FOOTER.size - offset)
        header, data, footer = block[: _HEADER.size], block[_HEADER.size :][:length], block[_HEADER.size + length :]
    else:  # megabytes that need not be copied
        header, data = _read_at(path, offset, _HEADER.size), _read_at(path, offset + _HEADER.size, length)
        footer = _read_at(path, end, _FOOTER.size)
    intact = len(header) == _HEADER.size and len(data) == length and len(footer) == _FOOTER.size
    intact = intact and _HEADER.unpack(header) == (length, masked_crc(header[:8]))
    intact = intact and _FOOTER.unpack(footer) == (masked_crc(data),)
    if not intact:
        raise entry.Failure(
            entry.BAD_DATA,
            f'{path}: the record at byte {offset} is damaged (its checksum differs). Run '
            'python -m data_prep.verify_tfrecords to find all such records, then build the folder again.',
        )
    return data


def read_example(split: Split, example: int) -> dict[str, bytes]:
    """The encoded features of one example of a split."""
    path = split.paths[split.shard[example]]
    return parse(read_record(path, int(split.offset[example]), int(split.length[example])))


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file so that, whatever happens, its name holds either the old content or all of the new."""
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    process = f'{socket.gethostname()}.{os.getpid()}'  # other hosts have processes of the same number
    temporary = path.parent / f'.{path.name}.{process}.tmp'
    with temporary.open('wb') as file:
        file.write(content)
        sync(file, path)
    temporary.replace(path)


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is a URL, such as gs://bucket/folder."""
    return '://' in os.fspath(path)


def sync(file: IO[bytes], path: epath.PathLike) -> None:
    """Brings what was written to a local file onto the disk; remote files are brought there by being closed."""
    if not is_remote(path):
        file.flush()
        os.fsync(file.fileno())


def index_file(split: str) -> str:
    return f'index-{split}.json'


def read_label_table(data_dir: epath.PathLike) -> labels.Table:
    """The folder's label table; Cityscapes's if it has none."""
    path = epath.Path(data_dir) / labels.FILE
    return labels.read(path) if path.exists() else labels.CITYSCAPES


def read_json(path: epath.PathLike) -> dict:
    """Raises Failure BAD_DATA, naming the file, if it does not hold JSON."""
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise entry.Failure(entry.BAD_DATA, f'{path}: not JSON ({error}). Build the folder again.') from error


def read_manifest(data_dir: epath.PathLike) -> dict | None:
    """The folder's manifest; None for a folder that TFDS built."""
    path = epath.Path(data_dir) / MANIFEST
    return read_json(path) if path.exists() else None


def class_pixels(data_dir: epath.PathLike, splits: tuple[str, ...]) -> np.ndarray | None:
    """int64 [256]: pixels per label id in those splits; None for a folder without a manifest."""
    manifest = read_manifest(data_dir)
    if manifest is None:
        return None
    pixels = np.zeros(256, np.int64)
    for split in splits:
        for label_id, count in manifest['splits'][split]['class_pixels'].items():
            pixels[int(label_id)] += count
    return pixels


def check_files(data_dir: epath.Path, manifest: dict) -> list[str]:
    """Problems of the files around the shards, and shards that are missing, too many or of another size.

    Their content is left to data_prep.verify_tfrecords.
    """
    problems = []
    for name, digest in manifest['files'].items():
        path = data_dir / name
        if not path.exists():
            problems.append(f'{name}: missing. Copy the folder again, or build it again.')
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            problems.append(f'{name}: differs from its digest. Copy the folder again, or build it again.')
    expected = {shard['file']: shard['bytes'] for split in manifest['splits'].values() for shard in split['shards']}
    there = {path.name for path in data_dir.glob(f'{manifest["name"]}-*.tfrecord-*')}
    problems += [f'{name}: missing. Copy it again.' for name in sorted(expected.keys() - there)]
    problems += [f'{name}: not in the manifest. Remove it.' for name in sorted(there - expected.keys())]
    for name in sorted(there & expected.keys()):
        size = (data_dir / name).stat().length
        if size != expected[name]:
            problems.append(f'{name}: {size:,} bytes instead of {expected[name]:,}. Copy it again.')
    return problems


def check_complete(data_dir: epath.PathLike) -> epath.Path:
    """The folder as a path, once it is sure to hold a finished dataset.

    Raises:
      Failure: MISSING_INPUT if there is no dataset, BAD_DATA if its build has not finished.
    """
    data_dir = epath.Path(data_dir)
    if (data_dir / PLAN).exists():
        raise entry.Failure(
            entry.BAD_DATA,
            f'{data_dir}: its build has not finished. Run the same python -m data_prep.build_tfrecords again: it goes '
            'on where it stopped.',
        )
    if not (data_dir / DATASET_INFO).exists():
        there = 'has no ' + DATASET_INFO if data_dir.exists() else 'is not there'
        raise entry.Failure(
            entry.MISSING_INPUT,
            f'{data_dir}: no dataset here (the folder {there}). Pass --data_dir, or make it with '
            f'python -m data_prep.build_tfrecords --cityscapes_dir=... --data_dir={data_dir}',
        )
    return data_dir


def split_sizes(data_dir: epath.PathLike) -> dict[str, int]:
    """Split name -> number of examples, by TFDS's metadata."""
    info = read_json(check_complete(data_dir) / DATASET_INFO)
    return {split['name']: sum(map(int, split['shardLengths'])) for split in info['splits']}


def read_split(data_dir: epath.PathLike, names: str) -> Split:
    """Opens one split, or several joined by '+', through the index.

    Raises:
      Failure: MISSING_INPUT if there is no such folder or split, BAD_DATA if folder, index and shards do not agree.
    """
    data_dir = check_complete(data_dir)
    sizes = split_sizes(data_dir)
    paths, rows, shard_of = [], [], []
    for name in names.split('+'):
        if not sizes.get(name):
            raise entry.Failure(
                entry.MISSING_INPUT,
                f'{data_dir}: no examples of split {name!r}; it holds '
                + (', '.join(f'{size} of {split}' for split, size in sizes.items() if size) or 'none at all'),
            )
        shards = _read_index(data_dir, name)
        found = sum(len(shard['records']) for shard in shards)
        if found != sizes[name]:
            raise entry.Failure(
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
    """The index file of a split.

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
            write_atomically(path, format_index(split, shards))
        return shards
    shards = read_json(path)['shards']
    for shard in shards:
        file = data_dir / shard['file']
        size = file.stat().length if file.exists() else None
        if size != shard['bytes']:
            found = 'is not there' if size is None else f'has {size:,} bytes'
            raise entry.Failure(
                entry.BAD_DATA,
                f'{file}: {found}, the index says {shard["bytes"]:,} bytes. Copy the folder again, or build it again.',
            )
    return shards


def _scan(data_dir: epath.Path, split: str) -> Iterator[dict]:
    """Makes the index of a folder that TFDS built by walking over the headers of its records."""
    info = read_json(data_dir / DATASET_INFO)
    if info.get('fileFormat', 'tfrecord') != 'tfrecord':
        raise entry.Failure(
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
            raise entry.Failure(entry.BAD_DATA, f'{path}: this shard of {len(counts)} is not there. Copy it again.')
        size, at, rows = path.stat().length, 0, []
        while at < size:
            header = _read_at(os.fspath(path), at, _HEADER.size)
            if len(header) < _HEADER.size or _HEADER.unpack(header)[1] != masked_crc(header[:8]):
                raise entry.Failure(entry.BAD_DATA, f'{path}: no intact record at byte {at}. Copy or build it again.')
            length = _HEADER.unpack(header)[0]
            example = parse(read_record(os.fspath(path), at, length))
            if not set(FEATURES) <= set(example):
                raise entry.Failure(
                    entry.BAD_DATA,
                    f'{path}: its records hold {", ".join(sorted(example))}; needed are {", ".join(FEATURES)}. '
                    'TFDS: build cityscapes/semantic_segmentation.',
                )
            height, width = image_size(example['image_left'])
            rows.append([at, length, height, width, 1, example['image_id'].decode()])
            at += _HEADER.size + length + _FOOTER.size
        if len(rows) != count:
            raise entry.Failure(
                entry.BAD_DATA, f'{path}: holds {len(rows)} records, {DATASET_INFO} says {count}. Copy it again.'
            )
        yield {'file': name, 'bytes': size, 'records': rows}


def image_size(encoded: bytes) -> tuple[int, int]:
    """Height and width of a PNG or JPEG file, by its header."""
    with Image.open(io.BytesIO(encoded[:_MEASURED_BYTES])) as image:
        return image.height, image.width
