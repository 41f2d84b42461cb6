"""Turns a dataset in the Cityscapes layout into sharded TFRecords.

    python -m data_prep.build_tfrecords --cityscapes_dir=dataset --data_dir=data/cityscapes

Reads leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png on all cores; the
files' bytes are copied unchanged. Killed and started again, it finishes what is missing. The folder opens with
tensorflow_datasets.builder_from_directory as well.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import time
import zlib

import numpy as np
from absl import flags
from etils import epath
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data_prep import labels, records, sources
from launch import entry

_CITYSCAPES_DIR = flags.DEFINE_string(
    'cityscapes_dir', os.environ.get('CITYSCAPES_DATASET', 'dataset'), 'Folder that holds leftImg8bit and gtFine.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Folder for the records.')
_WORKERS = flags.DEFINE_integer(
    'workers', entry.cores(), 'Processes, one per core by default; the records do not depend on it.', lower_bound=1
)

NAME = 'cityscapes'
_SHARD_BYTES = 128 << 20
_LEAST_SHARDS = 8  # so that small datasets are converted and read in parallel too
_SEED = 2019  # of the order of the examples over the shards
_PLAN = 'plan.json'


@dataclasses.dataclass(frozen=True)
class Shard:
    """One unit of work: a file and what it is to hold, in order."""

    file: str
    pairs: tuple[sources.Pair, ...]


def plan_shards(pairs: list[sources.Pair]) -> dict[str, list[Shard]]:
    """Split -> its shards: a seeded shuffle across cities, cut into shards of about equal count.

    It depends on names and sizes of the files alone, so the same input gives the same shards.
    """
    plan = {}
    for split in sources.SPLITS.values():
        chosen = sorted((pair for pair in pairs if pair.split == split), key=lambda pair: pair.image_id)
        if not chosen:
            continue
        order = np.random.default_rng(_SEED).permutation(len(chosen))
        count = max(-(-sum(pair.size for pair in chosen) // _SHARD_BYTES), min(_LEAST_SHARDS, len(chosen)))
        plan[split] = [
            Shard(f'{NAME}-{split}.tfrecord-{number:05d}-of-{count:05d}', tuple(chosen[place] for place in part))
            for number, part in enumerate(np.array_split(order, count))
        ]
    return plan


def write_shard(shard: Shard, source: str, data_dir: str, table: labels.Table) -> dict:
    """Checks and writes the examples of one shard under a temporary name, then renames it.

    Returns:
      What the index and the manifest say of it: `file`, `bytes`, `sha256`, `records`, `class_pixels`; and `problems`,
      one line per unusable pair, in which case no shard was written.
    """
    final, part = epath.Path(data_dir) / shard.file, epath.Path(data_dir) / f'.{shard.file}.part'
    digest, at, rows, problems, pixels = hashlib.sha256(), 0, [], [], np.zeros(256, np.int64)
    known = {label.id for label in table}
    with part.open('wb') as file:
        for pair in shard.pairs:
            try:
                image = (epath.Path(source) / pair.image).read_bytes()
                height, width = check_image(image)
                if pair.label:
                    label = (epath.Path(source) / pair.label).read_bytes()
                    counts = check_label(label, (height, width), known)
                else:
                    label, counts = void_label(height, width), np.zeros(256, np.int64)
            except ValueError as error:
                problems.append(f'{pair.image}: {error}')
                continue
            pixels += counts
            example = records.serialize(
                {'image_id': pair.image_id.encode(), 'image_left': image, 'segmentation_label': label}
            )
            record = records.frame(example)
            rows.append([at, len(example), height, width, int(pair.label is not None), pair.image_id])
            at += len(record)
            digest.update(record)
            file.write(record)
        file.flush()
        os.fsync(file.fileno())
    if problems:
        part.unlink()
    else:
        part.replace(final)
    return {
        'file': shard.file,
        'bytes': at,
        'sha256': digest.hexdigest(),
        'records': rows,
        'class_pixels': {str(id_): int(pixels[id_]) for id_ in sorted(known)},
        'problems': problems,
    }


def check_image(encoded: bytes) -> tuple[int, int]:
    """Height and width of an image file that is whole: 8 bits, three channels.

    A PNG is checked by the checksums of its chunks, without decoding it; any other format by decoding it.

    Raises:
      ValueError: saying what is wrong with it.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode != 'RGB':
                raise ValueError(f'expected 8-bit RGB, found mode {image.mode}. Convert it to RGB.')
            if image.format == 'PNG':
                _check_chunks(encoded)
            else:
                image.load()
            return image.height, image.width
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f'not a readable image ({error}). Copy it again.') from error


def _check_chunks(encoded: bytes) -> None:
    """Raises ValueError unless all chunks of a PNG are there with the right checksums (RFC 2083, section 3.2)."""
    at = 8
    while at + 12 <= len(encoded):
        length = int.from_bytes(encoded[at : at + 4], 'big')
        kind = encoded[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(encoded):
            break
        if zlib.crc32(memoryview(encoded)[at + 4 : end]) != int.from_bytes(encoded[end : end + 4], 'big'):
            raise ValueError(f'damaged: checksum of its {kind!r} chunk at byte {at} differs. Copy it again.')
        if kind == b'IEND':
            return
        at = end + 4
    raise ValueError('truncated. Copy it again.')


def check_label(encoded: bytes, size: tuple[int, int], known: set[int]) -> np.ndarray:
    """int64 [256]: pixels per label id of a label file.

    Raises:
      ValueError: saying what is wrong with it.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as label:
            label.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f'its label file is not a readable image ({error}). Copy it again.') from error
    if label.mode != 'L' or label.format != 'PNG':
        raise ValueError(
            f'its label file is a {label.format} of mode {label.mode}; expected an 8-bit one-channel PNG of label ids. '
            'Was a colour or instance file renamed?'
        )
    if (label.height, label.width) != size:
        raise ValueError(
            f'is {size[1]}x{size[0]}, its label file {label.width}x{label.height}. Do they belong together?'
        )
    counts = np.array(label.histogram(), np.int64)
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - known)
    if unknown:
        hint = (
            ' They look like train ids: use the labelIds files.'
            if unknown == [255] and not counts[19:255].any()
            else ''
        )
        raise ValueError(f'its label file holds ids {unknown[:5]}, which are not in the label table.{hint}')
    return counts


def void_label(height: int, width: int) -> bytes:
    """A label PNG that is unlabeled (id 0) everywhere, for images without labels."""
    content = io.BytesIO()
    Image.new('L', (width, height)).save(content, 'PNG')
    return content.getvalue()


def build(cityscapes_dir: str, data_dir: str, workers: int) -> dict[str, list[dict]]:
    """Builds the folder, or finishes it. Returns split -> what is known of each shard, see `write_shard`."""
    pairs = sources.find_pairs(cityscapes_dir)
    plan = plan_shards(pairs)
    table, target = labels.CITYSCAPES, epath.Path(data_dir)
    building = target / records.BUILDING
    listing = '\n'.join(f'{pair.image} {pair.label} {pair.size}' for pair in pairs)
    summary = {'images': len(pairs), 'files_sha256': hashlib.sha256(listing.encode()).hexdigest()}
    manifest = records.read_manifest(target)
    if manifest and not building.exists():
        if manifest['source'] == summary:
            print(f'{data_dir} is complete; nothing to do.')
            return {name: split['shards'] for name, split in manifest['splits'].items()}
        raise entry.Failure(
            entry.IN_USE,
            f'{data_dir} holds a finished dataset of {manifest["source"]["images"]} images; {cityscapes_dir} has '
            f'{len(pairs)} or other ones. Pass another --data_dir, or remove that folder.',
        )
    if target.exists() and not building.exists() and any(target.iterdir()):
        raise entry.Failure(
            entry.IN_USE, f'{data_dir} is not empty and holds no dataset of ours. Pass another --data_dir.'
        )
    building.mkdir(parents=True, exist_ok=True)
    if (building / _PLAN).exists() and records.read_json(building / _PLAN) != summary:
        raise entry.Failure(
            entry.IN_USE,
            f'{data_dir} holds an unfinished build of other files than {cityscapes_dir} has now. Restore them, pass '
            'another --data_dir, or remove that folder.',
        )
    records.write_atomically(building / _PLAN, json.dumps(summary))

    done = _finished(plan, target)
    missing = [shard for shards in plan.values() for shard in shards if shard.file not in done]
    if done:
        print(f'Going on: {len(done)} shards are there, {len(missing)} are missing.')
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'))
    bar = tqdm(total=sum(len(shard.pairs) for shard in missing), unit='image', disable=None)
    with pool, bar:
        futures = [pool.submit(write_shard, shard, cityscapes_dir, data_dir, table) for shard in missing]
        try:
            for future in concurrent.futures.as_completed(futures):
                result = future.result()
                done[result['file']] = result
                if not result['problems']:
                    records.write_atomically(building / f'{result["file"]}.json', json.dumps(result))
                bar.update(len(result['records']))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    sources.report(cityscapes_dir, [problem for result in done.values() for problem in result['problems']])
    splits = {name: [done[shard.file] for shard in shards] for name, shards in plan.items()}
    _finish(target, table, splits, summary)
    return splits


def _finished(plan: dict[str, list[Shard]], target: epath.Path) -> dict[str, dict]:
    """File -> what is known of the shards that an earlier attempt finished."""
    done = {}
    for shard in (shard for shards in plan.values() for shard in shards):
        note = target / records.BUILDING / f'{shard.file}.json'
        if note.exists() and (target / shard.file).exists():
            result = records.read_json(note)
            if (target / shard.file).stat().length == result['bytes']:
                done[shard.file] = result
    return done


def _finish(target: epath.Path, table: labels.Table, splits: dict[str, list[dict]], summary: dict) -> None:
    """Writes what makes the shards a dataset: label table, index, TFDS's metadata, the manifest last."""
    records.write_atomically(target / labels.FILE, labels.to_json(table))
    for name, shards in splits.items():
        records.write_atomically(target / records.index_file(name), records.format_index(name, shards))
    _write_tfds_metadata(target, splits)
    files = [labels.FILE, records.DATASET_INFO, 'features.json', *map(records.index_file, splits)]
    manifest = {
        'version': 1,
        'name': NAME,
        'source': summary,
        'files': {file: hashlib.sha256((target / file).read_bytes()).hexdigest() for file in files},
        'splits': {
            name: {
                'examples': sum(len(shard['records']) for shard in shards),
                'class_pixels': {
                    str(label.id): sum(shard['class_pixels'][str(label.id)] for shard in shards) for label in table
                },
                'shards': [
                    {'file': shard['file'], 'examples': len(shard['records'])}
                    | {key: shard[key] for key in ('bytes', 'sha256')}
                    for shard in shards
                ],
            }
            for name, shards in splits.items()
        },
    }
    records.write_atomically(target / records.MANIFEST, json.dumps(manifest, indent=1) + '\n')
    (target / records.BUILDING).rmtree()


def _write_tfds_metadata(target: epath.Path, splits: dict[str, list[dict]]) -> None:
    with entry.quiet_import():
        import tensorflow_datasets as tfds

    sizes = {tuple(record[2:4]) for shards in splits.values() for shard in shards for record in shard['records']}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    tfds.folder_dataset.write_metadata(
        data_dir=os.fspath(target),
        features=tfds.features.FeaturesDict(
            {
                'image_id': tfds.features.Text(),
                'image_left': tfds.features.Image(shape=(height, width, 3)),
                'segmentation_label': tfds.features.Image(shape=(height, width, 1)),
            }
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[len(shard['records']) for shard in shards],
                num_bytes=sum(shard['bytes'] for shard in shards),
                filename_template=tfds.core.ShardedFileTemplate(
                    dataset_name=NAME, data_dir=os.fspath(target), filetype_suffix='tfrecord', split=name
                ),
            )
            for name, shards in splits.items()
        ],
        check_data=False,
    )


def main() -> None:
    started = time.monotonic()
    splits = build(_CITYSCAPES_DIR.value, _DATA_DIR.value, _WORKERS.value)
    images = 0
    for name, shards in splits.items():
        count = sum(shard['examples'] if 'examples' in shard else len(shard['records']) for shard in shards)
        size = sum(shard['bytes'] for shard in shards)
        print(f'{name:<12}{count:>8,} images {len(shards):>6} shards {size / 1e6:>10,.1f} MB')
        images += count
    print(f'{_DATA_DIR.value}: {images:,} images in {time.monotonic() - started:.1f} s', flush=True)


if __name__ == '__main__':
    entry.run(main)
