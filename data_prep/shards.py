"""The unit of work of a build: one shard, from the files of its pairs to a finished TFRecord file.

What a shard holds depends on the input and the flags alone, so it may be written by any process on any machine.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from data_prep import cityscapes_layout, images, labels, masks, orientation, places, polygons, source_files, tfrecord
from launch import files, record_folder

NAME = 'cityscapes'  # of the dataset in TFDS

_SHARD_BYTES = 128 << 20  # of source files
_LEAST_SHARDS = 8  # so that small datasets are converted and read in parallel too

stop = threading.Event()  # set in a worker process when the build is to end


class Stopped(Exception):
    """The build was asked to end; the shard was not written."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a worker needs to know besides its shard."""

    source: str
    data_dir: str
    table: labels.Table
    encoding: images.Encoding
    skip_bad: bool
    masks_are: str | None = None  # see masks.to_label_ids

    @functools.cached_property
    def void(self) -> list[int]:
        """Returns the label ids that count as no label; the first fills what is not labelled."""
        return labels.void_ids(self.table)

    @functools.cached_property
    def known(self) -> set[int]:
        """Returns the ids that records may hold."""
        return labels.known_ids(self.table)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file and what it is to hold, in order."""

    file: str
    pairs: tuple[cityscapes_layout.Pair, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """A pair as it is stored.

    Attributes:
      image, label: encoded files.
      height, width: of both, pixels.
      labelled: False if the label is void everywhere because there is none.
      counts: int64 [256], pixels per label id.
      label_ids: uint8 [h, w].
      converted_from: what the image was, if it had to be made RGB; else None.
      turned: the files whose pixels were turned, by their EXIF orientation.
    """

    image: bytes
    label: bytes
    height: int
    width: int
    labelled: bool
    counts: np.ndarray
    label_ids: np.ndarray
    converted_from: str | None
    turned: list[str]


def plan(pairs: list[cityscapes_layout.Pair], seed: int) -> dict[str, list[Shard]]:
    """Plans the shards of each split: a seeded shuffle across cities, cut into shards of about equal count.

    It depends on names and sizes of the files alone, so the same input gives the same shards.
    """
    shards = {}
    for split in cityscapes_layout.SPLITS.values():
        chosen = sorted((pair for pair in pairs if pair.split == split), key=lambda pair: pair.image_id)
        if not chosen:
            continue
        order = np.random.default_rng(seed).permutation(len(chosen))
        count = max(-(-sum(pair.size for pair in chosen) // _SHARD_BYTES), min(_LEAST_SHARDS, len(chosen)))
        shards[split] = [
            Shard(f'{NAME}-{split}.tfrecord-{number:05d}-of-{count:05d}', tuple(chosen[place] for place in part))
            for number, part in enumerate(np.array_split(order, count))
        ]
    return shards


def note_path(data_dir: epath.PathLike, file: str) -> epath.Path:
    """Returns where a worker leaves what is known of a shard: see `write_shard`."""
    return epath.Path(data_dir) / record_folder.BUILDING / f'{file}.json'


def encode_pair(pair: cityscapes_layout.Pair, settings: Settings) -> Example:
    """Reads, checks and encodes one pair.

    Raises:
      ValueError: with a line that names the file, what is wrong, the likely cause and the remedy.
    """
    image_file = _read(settings.source, pair.image)
    with _naming(pair.image):
        image = images.encode_image(image_file, pair.image, settings.encoding)
    turned = [pair.image] if image.orientation != orientation.UPRIGHT else []
    if pair.label is None:
        size = image.height, image.width
        label, counts = images.encode_void(size, settings.void[0])
        void = np.broadcast_to(np.uint8(settings.void[0]), size)
        return Example(image.encoded, label, *size, False, counts, void, image.converted_from, turned)
    label_file = _read(settings.source, pair.label)
    turned += [pair.label] if orientation.read(label_file) != orientation.UPRIGHT else []
    with _naming(pair.label):
        if pair.label.endswith('.json'):
            label_ids = polygons.draw(label_file, settings.table, settings.void[0])
        else:
            label_ids = masks.to_label_ids(label_file, pair.label, settings.masks_are, settings.table)
        label, counts, ids = images.encode_label(
            label_ids, pair.label, image.source_size, settings.known, settings.encoding.size, image.orientation
        )
    # Cityscapes ships label files for its test images that hold nothing but void.
    labelled = pair.split != 'test' or int(counts[settings.void].sum()) < int(counts.sum())
    return Example(image.encoded, label, image.height, image.width, labelled, counts, ids, image.converted_from, turned)


def write_shard(shard: Shard, settings: Settings) -> int:
    """Writes a shard under a hidden name, leaves a note of what is in it, and renames it.

    The note is a JSON file with `file`, `bytes`, `sha256`, `records` (rows of the index), `places` (row, column and id
    of those of each record), `class_pixels`, `sources` (the pairs' listing), `problems` (a line per unusable pair; if
    there are any and they are not to be skipped, the shard itself is not written), `void` (label files without any
    class), `converted` ([what it was, file]) and `turned` (files).

    Returns:
      The number of its pairs.

    Raises:
      OSError: if it cannot be written; the hidden file is gone then.
      Stopped: if `stop` was set meanwhile.
    """
    final = epath.Path(settings.data_dir) / shard.file
    part = final.parent / f'.{shard.file}.{os.getpid()}.part'
    digest, at, pixels = hashlib.sha256(), 0, np.zeros(256, np.int64)
    note: dict[str, Any] = {'file': shard.file}
    note |= {name: [] for name in ('records', 'places', 'problems', 'void', 'converted', 'turned')}
    try:
        with files.naming(final), part.open('wb') as file:
            for pair in shard.pairs:
                if stop.is_set():
                    raise Stopped
                try:
                    example = encode_pair(pair, settings)
                except ValueError as error:
                    note['problems'].append(str(error))
                    continue
                data = tfrecord.serialize_parts(
                    {
                        'image_id': pair.image_id.encode(),
                        'image_left': example.image,
                        'segmentation_label': example.label,
                    }
                )
                length = sum(map(len, data))
                note['records'].append(
                    [at, length, example.height, example.width, int(example.labelled), pair.image_id]
                )
                found = places.find(example.label_ids, example.counts)
                note['places'].append(found[['row', 'column', 'id']].tolist())
                if pair.split != 'test' and example.counts[settings.void].sum() == example.counts.sum():
                    note['void'].append(pair.label)
                if example.converted_from:
                    note['converted'].append([example.converted_from, pair.image])
                note['turned'] += example.turned
                pixels += example.counts
                for piece in tfrecord.frame_parts(data):
                    digest.update(piece)
                    file.write(piece)
                at += tfrecord.record_bytes(length)
            files.sync(file, part)
        note |= {
            'bytes': at,
            'sha256': digest.hexdigest(),
            'class_pixels': {str(id_): int(count) for id_, count in enumerate(pixels) if count},
            'sources': [pair.listing for pair in shard.pairs],
        }
        files.write_atomically(note_path(settings.data_dir, shard.file), json.dumps(note))
        if not note['problems'] or settings.skip_bad:
            part.replace(final)
    finally:
        part.unlink(missing_ok=True)
    return len(shard.pairs)


def _read(root: str, location: str) -> bytes:
    try:
        return source_files.read(root, location)
    except source_files.READ_ERRORS as error:
        raise ValueError(source_files.unreadable(location, error)) from error


@contextlib.contextmanager
def _naming(location: str) -> Iterator[None]:
    """Puts the file before the message of a ValueError, or of what Pillow raises of an image that it cannot write."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f'{location}: {error}') from error
