"""Checks of a finished record folder: its files, its records, its sums, and their equality with the source."""

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np
from etils import epath

from data_prep import cityscapes_layout, executors, images, metadata, orientation, pair_list, records, shards, tfrecord
from launch import entry, folders, progress

Source = str | pair_list.CsvFile | pair_list.Patterns  # a text: the folder of a dataset in the Cityscapes layout

_BLOCK = 1 << 20  # bytes read at a time where a file is only digested


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard and what it should hold.

    Attributes:
      file: its name.
      size, sha256: of the file, by the manifest; None if there is none.
      rows: of the index: [offset, length, height, width, labelled, image id].
      pairs: image id -> the pair it was made of; None if it is not to be compared.
    """

    file: str
    size: int | None
    sha256: str | None
    rows: tuple[tuple, ...]
    pairs: dict[str, cityscapes_layout.Pair] | None


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was seen in a shard: problems, one line each, and int64 [256] pixels per label id."""

    file: str
    problems: list[str]
    counts: np.ndarray


def check(data_dir: epath.PathLike, source: Source | None, workers: int, masks_are: str | None = None) -> dict | None:
    """Returns the folder's manifest, if it has one, once everything has been found to be right.

    Args:
      data_dir: the record folder.
      source: what it was made of, to compare with.
      workers: processes.
      masks_are: what the source's masks hold, if that is to be compared with the manifest.

    Raises:
      UserError: BAD_DATA with all problems, BAD_USAGE if the records were made of another kind of source.
    """
    data_dir = records.check_complete(data_dir)
    manifest = read_intact_manifest(data_dir)
    cityscapes_layout.raise_problems(
        data_dir, records.check_files(data_dir, manifest) if manifest else [], 'nothing more was read.'
    )
    passed_over: list[str] = []
    with folders.named_at_the_end(passed_over):
        pairs, problems = (None, []) if source is None else find_pairs(data_dir, manifest, source, passed_over)
        settings = _settings(data_dir, manifest, source)
        if masks_are not in (None, settings.masks_are):
            raise entry.UserError(
                entry.BAD_USAGE, f'--masks_are={masks_are}: {data_dir} was made with {settings.masks_are or "none"}.'
            )
        problems += verify(data_dir, manifest, settings, pairs, workers)
        cityscapes_layout.raise_problems(data_dir, problems, 'the records are not to be trusted.')
    return manifest


def read_intact_manifest(data_dir: epath.Path) -> dict | None:
    """Reads the folder's manifest; None if it has none.

    Raises:
      UserError: BAD_DATA if it is not as it was written.
    """
    manifest = records.read_manifest(data_dir)
    if manifest is None:
        return None
    path = data_dir / records.MANIFEST
    if not isinstance(manifest, dict) or path.read_bytes() != metadata.format_manifest(manifest).encode():
        raise entry.UserError(
            entry.BAD_DATA, f'{path}: was changed since it was written. Copy the folder again, or build it again.'
        )
    if manifest['version'] != metadata.VERSION:
        raise entry.UserError(
            entry.BAD_DATA, f'{path}: is of version {manifest["version"]}, this program knows {metadata.VERSION}.'
        )
    return manifest


def find_pairs(
    data_dir: epath.Path, manifest: dict | None, source: Source, passed_over: list[str]
) -> tuple[dict[str, cityscapes_layout.Pair], list[str]]:
    """Finds the pair of the source for each image id, and problems: images that only one side has.

    Files that look like images and are not read are appended to `passed_over`.

    Raises:
      UserError: BAD_USAGE if the records were made of another kind of source.
    """
    used = manifest['flags'] if manifest else {'annotations': cityscapes_layout.FINE}
    if isinstance(source, str) == (used['annotations'] is None):
        made = '--pairs, or --images and --masks' if isinstance(source, str) else '--cityscapes_dir'
        raise entry.UserError(entry.BAD_USAGE, f'{data_dir}: was made with {made}: pass the same.')
    layout = cityscapes_layout.Layout(source, used['annotations']) if isinstance(source, str) else source
    folder_of = {split: folder for folder, split in cityscapes_layout.SPLITS.items()}
    splits = [name for name, size in records.split_sizes(data_dir).items() if size]
    found = layout.scan(tuple(folder_of[split] for split in splits if split in folder_of), used.get('masks_are'))
    passed_over += found.passed_over
    skipped = manifest['skipped'] if manifest else []
    left_out = {line.partition(': ')[0] for line in skipped}
    pairs = {pair.image_id: pair for pair in found.pairs}
    stored = {image_id for split in splits for image_id in records.read_split(data_dir, split).image_ids}
    problems = [] if skipped else list(found.problems)
    problems += [
        f'{pair.image}: image id {pair.image_id} is not in the records.'
        for pair in found.pairs
        if pair.image_id not in stored and not {pair.image, pair.label} & left_out
    ]
    problems += [
        f'image id {image_id}: stored, but not in {layout.root}.' for image_id in sorted(stored - pairs.keys())
    ]
    return pairs, problems


def verify(
    data_dir: epath.Path,
    manifest: dict | None,
    settings: shards.Settings,
    pairs: dict[str, cityscapes_layout.Pair] | None,
    workers: int,
) -> list[str]:
    """Lists problems of the shards, and of the manifest's sums over them."""
    tasks, split_of = [], {}
    for name, size in records.split_sizes(data_dir).items():
        split = records.read_split(data_dir, name) if size else None
        declared = {shard['file']: shard for shard in manifest['splits'][name]['shards']} if manifest else {}
        rows = _rows_by_file(split) if split else {}
        for file in declared or rows:
            wanted = tuple(rows.get(file, ()))
            shard = declared.get(file, {})
            chosen = None if pairs is None else {row[-1]: pairs[row[-1]] for row in wanted if row[-1] in pairs}
            tasks.append(Task(file, shard.get('bytes'), shard.get('sha256'), wanted, chosen))
            split_of[file] = name
    problems, counts = [], {name: np.zeros(256, np.int64) for name in split_of.values()}
    total = sum(len(task.rows) for task in tasks)
    with executors.worker_pool(min(workers, max(len(tasks), 1))) as pool, progress.show(total, 'image') as advance:
        size_of = {task.file: len(task.rows) for task in tasks}
        for finding in executors.in_pool(pool, verify_shard, tasks, settings):
            problems += finding.problems
            counts[split_of[finding.file]] += finding.counts
            advance(size_of[finding.file])
    if manifest and not problems:
        problems += _check_sums(manifest, counts)
    return sorted(problems)


def verify_shard(task: Task, settings: shards.Settings) -> Finding:
    """Reads a shard twice, as a file and record by record."""
    path = epath.Path(settings.data_dir) / task.file
    problems, counts, at = [], np.zeros(256, np.int64), 0
    for row in task.rows:
        offset, length, *_, image_id = row
        if offset != at:
            problems.append(f'{task.file}: the index leaves out bytes {at:,} to {offset:,}.')
        at = offset + tfrecord.record_bytes(length)
        try:
            found = _check_record(tfrecord.read_record(os.fspath(path), offset, length), row, task, settings)
            counts += found
        except (ValueError, OSError, entry.UserError) as error:
            text = 'its checksum differs' if isinstance(error, entry.UserError) else error
            problems.append(f'{task.file}: image id {image_id}: {text}')
    if task.size is not None and task.rows and at != task.size:
        problems.append(f'{task.file}: the index ends at byte {at:,}, the file at {task.size:,}.')
    try:
        if task.sha256 and _digest(path) != task.sha256:
            problems.append(f'{task.file}: the file differs from its digest in the manifest.')
    except OSError as error:
        problems.append(f'{task.file}: cannot be read ({error.strerror}).')
    return Finding(task.file, problems, counts)


def _check_record(data: bytes, row: tuple, task: Task, settings: shards.Settings) -> np.ndarray:
    """int64 [256] pixels per label id; raises ValueError if the record is not what it should be."""
    _, _, height, width, labelled, image_id = row
    example = tfrecord.parse_in_place(data)
    missing = sorted(set(records.FEATURES) - set(example))
    if missing:
        raise ValueError(f'has no {", ".join(missing)}')
    if example['image_id'] != image_id.encode():
        raise ValueError(f'the record says it is {bytes(example["image_id"]).decode(errors="replace")}')
    stored = example['image_left'], example['segmentation_label']
    pair = (task.pairs or {}).get(image_id)
    size, counts = _decode(*stored) if pair is None else _compare(*stored, pair, settings)
    if size != (height, width):
        raise ValueError(f'is {size[1]}x{size[0]}, by the index {width}x{height}')
    turned = [name for name in records.FEATURES[1:] if orientation.read(example[name]) != orientation.UPRIGHT]
    if turned:
        raise ValueError(f'{turned[0]} is not upright by its EXIF, which training ignores. Build the records again')
    images.check_label_counts(counts, settings.known)
    if not labelled and counts[settings.void].sum() < counts.sum():
        raise ValueError('is flagged as having no labels, but its label image holds classes')
    return counts


def _decode(encoded_image: memoryview, encoded_label: memoryview) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width of both, and int64 [256] pixels per label id; raises ValueError unless they are RGB and grey."""
    image, label = images.decode(encoded_image), images.decode(encoded_label)
    if image.size != label.size:
        raise ValueError(f'image {image.width}x{image.height}, label {label.width}x{label.height}')
    if image.mode != 'RGB' or label.mode != 'L':
        raise ValueError(f'image of mode {image.mode}, label of mode {label.mode}; expected RGB and L')
    return (image.height, image.width), images.count_pixels(label)


def _compare(
    image: memoryview, label: memoryview, pair: cityscapes_layout.Pair, settings: shards.Settings
) -> tuple[tuple[int, int], np.ndarray]:
    """The same of a record that equals its source, which is checked as it is for a build; raises ValueError if not.

    What a build stores as it is is not decoded for that, apart from the pixels of labels, which are counted.
    """
    wanted = shards.encode_pair(pair, settings)
    for kind, stored, made, source in (
        ('label', label, wanted.label, pair.label),
        ('image', image, wanted.image, pair.image),
    ):
        if not _equal(stored, made):  # another version of the encoder may have written other bytes of the same pixels
            pixels, expected = (np.asarray(images.decode(file)) for file in (stored, made))
            if not np.array_equal(pixels, expected):
                raise ValueError(f'its {kind} differs from {source}')
    return (wanted.height, wanted.width), wanted.counts


def _equal(stored: memoryview, wanted: bytes) -> bool:
    """Says whether the bytes are the same; memoryviews compare them one by one, at a tenth of this speed."""
    return np.array_equal(np.frombuffer(stored, np.uint8), np.frombuffer(wanted, np.uint8))


def _rows_by_file(split: records.Split) -> dict[str, list[tuple]]:
    rows = {os.path.basename(path): [] for path in split.paths}
    columns = (split.offset, split.length, split.height, split.width, split.labelled)
    numbers = zip(*(column.tolist() for column in columns), split.image_ids, strict=True)
    for shard, row in zip(split.shard.tolist(), numbers, strict=True):
        rows[os.path.basename(split.paths[shard])].append(row)
    return rows


def _check_sums(manifest: dict, counts: dict[str, np.ndarray]) -> list[str]:
    problems = []
    for name, split in manifest['splits'].items():
        found = {id_: int(counts[name][int(id_)]) for id_ in split['class_pixels']}
        if found != split['class_pixels']:
            problems.append(f'{records.MANIFEST}: the class histogram of {name} is not that of its labels.')
    return problems


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _settings(data_dir: epath.Path, manifest: dict | None, source: Source | None) -> shards.Settings:
    """Those that the folder was built with."""
    as_they_are = {'image_format': 'source', 'jpeg_quality': None, 'size': None}
    used: dict[str, Any] = manifest['flags'] if manifest else as_they_are
    encoding = images.Encoding(
        used['image_format'], used['jpeg_quality'] or 95, tuple(used['size']) if used['size'] else None
    )
    return shards.Settings(
        source=source if isinstance(source, str) else source.root if source else '',
        data_dir=os.fspath(data_dir),
        table=records.read_label_table(data_dir),
        encoding=encoding,
        skip_bad=False,
        masks_are=used.get('masks_are'),
    )
