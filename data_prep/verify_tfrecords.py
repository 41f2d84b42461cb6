"""Reads a record folder again, all of it, and compares it with its manifest and, if given, with its source.

    python -m data_prep.verify_tfrecords --data_dir=data/cityscapes --cityscapes_dir=dataset
    python -m data_prep.verify_tfrecords --data_dir=data/mine --pairs=pairs.csv

Every file against its digest, every record against its checksum, every image and label decoded, every label id counted;
with their source (--cityscapes_dir, --pairs, or --images and --masks) every image and label against the file it was
made of instead of decoding it, since files that are stored as they are have the same bytes. Exits with 65 if anything
differs, and names the shard and the image id. A folder that TFDS built has no manifest; its records are checked all the
same.
"""

import time

from absl import flags
from etils import epath

from data_prep import cityscapes_layout, executors, records, source_flags, verification
from launch import entry, host

flags.adopt_module_key_flags(source_flags)  # so that --help lists them
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder.')
_CITYSCAPES_DIR = flags.DEFINE_string('cityscapes_dir', None, 'The dataset it was made of, to compare with.')
_WORKERS = flags.DEFINE_integer('workers', host.cores(), 'Processes, one per core by default.', lower_bound=1)


def main() -> None:
    executors.terminate_like_interrupt()
    started = time.monotonic()
    data_dir, source = epath.Path(_DATA_DIR.value), source_flags.layout() or _CITYSCAPES_DIR.value
    manifest = verification.check(data_dir, source, _WORKERS.value, source_flags.MASKS_ARE.value)
    against = source if isinstance(source, str) else ' '.join(source.flags) if source else None
    _print_summary(data_dir, manifest, against, time.monotonic() - started)


def _print_summary(data_dir: epath.Path, manifest: dict | None, source: str | None, seconds: float) -> None:
    sizes = records.split_sizes(data_dir)
    print(f'{data_dir}: ' + ', '.join(f'{size:,} {name}' for name, size in sizes.items()))
    if manifest:
        print(f'Stored as: {describe(manifest["flags"])}')
        if manifest['skipped']:
            print(f'Left out when it was built:\n{cityscapes_layout.shorten(manifest["skipped"])}')
    else:
        print('No manifest, as in a folder that TFDS built: records were checked, but not whether any are missing.')
    against = ' and '.join((['its manifest'] if manifest else []) + ([source] if source else []))
    count = sum(sizes.values())
    equal = f' and equal to {against}' if against else ''
    print(f'All {count:,} records are whole{equal} ({count / seconds:,.0f} images/s).', flush=True)


def describe(used: dict) -> str:
    """Returns, in words, the flags that a folder was built with."""
    image_format = 'images as in the source' if used['image_format'] == 'source' else f'{used["image_format"]} images'
    quality = f', quality {used["jpeg_quality"]}' if used['jpeg_quality'] else ''
    size = f'{used["size"][0]}x{used["size"][1]}' if used['size'] else 'original size'
    held = f'{used["annotations"]} labels' if used['annotations'] else f'masks of {used["masks_are"] or "grey ids"}'
    return f'{image_format}{quality}, {size}, {held}, seed {used["seed"]}'


if __name__ == '__main__':
    entry.run(main)
