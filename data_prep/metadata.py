"""What makes a folder of shards a dataset: label table, index, TFDS's metadata and, last, the manifest."""

import hashlib
import json

import numpy as np
from etils import epath

from data_prep import labels, places, records
from data_prep.shards import NAME
from launch import files

VERSION = 1  # of the manifest
_FEATURES_FILE = 'features.json'  # TFDS's own


def write(
    data_dir: epath.Path,
    table: labels.Table,
    splits: dict[str, list[dict]],
    flags: dict,
    source: dict,
    skipped: list[str],
) -> dict:
    """Writes all of it and returns the manifest.

    Args:
      data_dir: the folder that holds the shards.
      table: the label table.
      splits: split -> notes of its shards in order, see `shards.write_shard`.
      flags: the flags that shaped the records.
      source: `images` and `sha256` of what the records were made of.
      skipped: a line per pair that was left out.
    """
    written = [labels.FILE, records.DATASET_INFO, _FEATURES_FILE, *map(records.index_file, splits)]
    files.write_atomically(data_dir / labels.FILE, labels.to_json(table))
    for name, notes in splits.items():
        files.write_atomically(data_dir / records.index_file(name), records.format_index(name, notes))
        if all('places' in note for note in notes):  # a build that an older version began goes without
            files.write_atomically(data_dir / places.file_of(name), places.encode(_places(notes)))
            written.append(places.file_of(name))
    _write_tfds_metadata(data_dir, splits)
    manifest = {
        'version': VERSION,
        'name': NAME,
        'flags': flags,
        'source': source,
        'splits': {name: _describe(notes, table) for name, notes in splits.items()},
        'skipped': skipped,
        'files': {file: hashlib.sha256((data_dir / file).read_bytes()).hexdigest() for file in written},
    }
    files.write_atomically(data_dir / records.MANIFEST, format_manifest(manifest))
    return manifest


def format_manifest(manifest: dict) -> str:
    """Returns the manifest's file. Its last field is the digest of what it says without that field.

    The format is canonical: a file that reads the same but is written differently was changed.
    """
    content = {key: value for key, value in manifest.items() if key != 'digest'}
    digest = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
    return json.dumps(content | {'digest': digest}, ensure_ascii=False, indent=1) + '\n'


def _describe(notes: list[dict], table: labels.Table) -> dict:
    pixels = {str(label.id): 0 for label in table}
    for note in notes:
        for id_, count in note['class_pixels'].items():
            pixels[id_] = pixels.get(id_, 0) + count
    return {
        'examples': sum(len(note['records']) for note in notes),
        'labelled': sum(record[4] for note in notes for record in note['records']),
        'turned': sum(len(note.get('turned', [])) for note in notes),  # images and labels, by their EXIF orientation
        'class_pixels': pixels,
        'shards': [
            {'file': note['file'], 'examples': len(note['records']), 'bytes': note['bytes'], 'sha256': note['sha256']}
            for note in notes
        ],
    }


def _places(notes: list[dict]) -> list[np.ndarray]:
    """The places of each example, of `places.DTYPE`."""
    return [
        np.array([(0, *place) for place in of_record], places.DTYPE) for note in notes for of_record in note['places']
    ]


def _write_tfds_metadata(data_dir: epath.Path, splits: dict[str, list[dict]]) -> None:
    """The files that tfds.folder_dataset.write_metadata writes, byte for byte, without the seconds its import takes."""
    sizes = {tuple(record[2:4]) for notes in splits.values() for note in notes for record in note['records']}
    height, width = sizes.pop() if len(sizes) == 1 else (-1, -1)
    features = {
        'image_id': _feature('text_feature.Text', 'text', {}),
        'image_left': _feature('image_feature.Image', 'image', _image(height, width, 3)),
        'segmentation_label': _feature(
            'image_feature.Image', 'image', _image(height, width, 1) | {'useColormap': True}
        ),
    }
    info = {
        'fileFormat': 'tfrecord',
        'name': NAME,
        'splits': [
            {
                'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
                'name': name,
                'numBytes': str(sum(note['bytes'] for note in notes)),
                'shardLengths': [str(len(note['records'])) for note in notes],
            }
            for name, notes in splits.items()
        ],
        'version': '1.0.0',
    }
    everything = _feature('features_dict.FeaturesDict', 'featuresDict', {'features': features})
    files.write_atomically(data_dir / _FEATURES_FILE, json.dumps(everything, indent=4, sort_keys=True))
    files.write_atomically(data_dir / records.DATASET_INFO, json.dumps(info, indent=2, sort_keys=True))


def _feature(python_class: str, kind: str, content: dict) -> dict:
    return {'pythonClassName': f'tensorflow_datasets.core.features.{python_class}', kind: content}


def _image(height: int, width: int, channels: int) -> dict:
    return {'dtype': 'uint8', 'shape': {'dimensions': [str(height), str(width), str(channels)]}}
