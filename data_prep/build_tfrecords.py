"""Turns a dataset of images and masks into sharded TFRecords.

    python -m data_prep.build_tfrecords --cityscapes_dir=dataset --data_dir=data/cityscapes
    python -m data_prep.build_tfrecords --pairs=pairs.csv --labels=classes.json --data_dir=data/mine
    python -m data_prep.build_tfrecords --images='in/{split}/{name}.jpg' --masks='gt/{split}/{name}.png'

Reads leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png, from folders or
the zip files as downloaded, or the files that a list or two patterns name; checks every file, and writes on all cores.
The files' bytes are copied unchanged unless --image_format, --size or --masks_are say otherwise. Killed and started
again, it finishes what is missing. The folder opens with tensorflow_datasets.builder_from_directory as well.

Other classes are --labels=classes.json, or a table that comes with the project, such as --labels=camvid. On Dataflow,
Flink or Spark: --engine=beam --beam_args=--runner=DataflowRunner --beam_args=--project=...
"""

import os

from absl import flags

from data_prep import build, cityscapes_layout, executors, images, labels, shards, source_flags
from launch import entry, host

flags.adopt_module_key_flags(source_flags)  # so that --help lists them
_CITYSCAPES_DIR = flags.DEFINE_string(
    'cityscapes_dir',
    os.environ.get('CITYSCAPES_DATASET', 'dataset'),
    'Folder that holds leftImg8bit and gtFine, extracted or as zip files; default $CITYSCAPES_DATASET, else dataset.',
)
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Folder for the records.')
_ANNOTATIONS = flags.DEFINE_enum(
    'annotations',
    cityscapes_layout.FINE,
    [cityscapes_layout.FINE, cityscapes_layout.COARSE],
    'Labels to use; train_extra has only coarse ones.',
)
_SPLITS = flags.DEFINE_list(
    'splits', list(cityscapes_layout.SPLITS), 'Split folders to read; those not there are passed over.'
)
_LABELS = flags.DEFINE_string(
    'labels',
    'cityscapes',
    f'Label table: a JSON file, or one that comes with the project: {", ".join(labels.shipped())}.',
)
_IMAGE_FORMAT = flags.DEFINE_enum(
    'image_format', 'source', ['source', 'png', 'jpeg'], 'Format to store images in; source: as they are.'
)
_JPEG_QUALITY = flags.DEFINE_integer(
    'jpeg_quality', 95, 'Of images encoded as JPEG (4:4:4).', lower_bound=1, upper_bound=100
)
_SIZE = flags.DEFINE_string(
    'size', None, 'HEIGHTxWIDTH to store at, e.g. 512x1024: images by area, labels by nearest neighbour; default as is.'
)
_SEED = flags.DEFINE_integer('seed', 2019, 'Of the order of the examples over the shards.', lower_bound=0)
_SKIP_BAD = flags.DEFINE_bool('skip_bad', False, 'Leave out pairs that cannot be used, and list them.')
_WORKERS = flags.DEFINE_integer(
    'workers', host.cores(), 'Processes, one per core by default; the records do not depend on it.', lower_bound=1
)
_ENGINE = flags.DEFINE_enum('engine', 'local', ['local', 'beam'], 'Who writes: processes here, or Apache Beam.')
_BEAM_ARGS = flags.DEFINE_multi_string('beam_args', [], "One of Beam's own options; may be given several times.")


def main() -> None:
    host.ignore_broken_pipes()
    executors.terminate_like_interrupt()
    if (unknown := sorted(set(_SPLITS.value) - set(cityscapes_layout.SPLITS))) or not _SPLITS.value:
        raise entry.UserError(
            entry.BAD_USAGE,
            f'--splits: {", ".join(unknown) or "none"}; possible are {", ".join(cityscapes_layout.SPLITS)}',
        )
    if _BEAM_ARGS.value and _ENGINE.value != 'beam':
        raise entry.UserError(entry.BAD_USAGE, '--beam_args: pass --engine=beam with it')
    layout = source_flags.layout() or cityscapes_layout.Layout(_CITYSCAPES_DIR.value, _ANNOTATIONS.value)
    settings = shards.Settings(
        source=layout.root,
        data_dir=_DATA_DIR.value,
        table=labels.find(_LABELS.value),
        encoding=images.Encoding(
            _IMAGE_FORMAT.value,
            _JPEG_QUALITY.value,
            entry.parse_size('size', _SIZE.value) if _SIZE.value is not None else None,
        ),
        skip_bad=_SKIP_BAD.value,
        masks_are=source_flags.MASKS_ARE.value,
    )

    def write_shards(todo: list[shards.Shard]) -> None:
        if _ENGINE.value == 'beam':
            executors.run_beam(todo, settings, _BEAM_ARGS.value)
        else:
            executors.run_local(todo, settings, min(_WORKERS.value, len(todo)))

    build.build(settings, write_shards, layout, tuple(_SPLITS.value), _SEED.value)


if __name__ == '__main__':
    entry.run(main)
