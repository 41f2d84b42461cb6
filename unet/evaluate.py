"""Scores a run's checkpoint on a split, every image at its original size, by the official Cityscapes rules.

    python -m unet.evaluate --workdir=runs/cityscapes --data_dir=data/cityscapes --checkpoint=best

Prints the IoU of each class and writes evaluate-<split>.json, with the confusion matrix, to the workdir.
"""

import json
import math
import os

from absl import flags

from launch import entry

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; required.')
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder.')
_SPLIT = flags.DEFINE_string('split', 'validation', 'Split to score.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "'best', 'latest', or the path of a checkpoint (without .index)."
)
_BATCH = flags.DEFINE_integer('batch', None, 'Images per device; default config.eval.batch.', lower_bound=1)


def main() -> None:
    if not _WORKDIR.value:
        raise entry.Failure(entry.BAD_USAGE, 'pass --workdir, the folder of a run of unet.main')

    with entry.quiet_import():
        from tqdm import tqdm

        from data_prep import labels, records
        from unet import cluster, console, from_config, metrics, scoring, workdir

    config = workdir.read_config(_WORKDIR.value)
    split = records.read_split(_DATA_DIR.value, _SPLIT.value)
    strategy = cluster.make_strategy(config.runtime.virtual_devices)
    with strategy.scope():
        config, table, network, path = from_config.trained(_WORKDIR.value, _CHECKPOINT.value)
    with tqdm(total=len(split), unit='image', disable=None) as bar:
        confusion = scoring.confusion_of_split(
            strategy,
            from_config.predictor(config, network, table),
            split,
            num_ids=labels.num_ids(table),
            batch=_BATCH.value or config.eval.batch,
            jit_compile=from_config.jit_compile(config, strategy.num_replicas_in_sync),
            tick=lambda done: bar.update(done - bar.n),
        )
    scores = metrics.scores(confusion, table)
    result = {
        'checkpoint': path,
        'data_dir': _DATA_DIR.value,
        'split': split.name,
        'images': len(split),
        'scores': {name: None if math.isnan(value) else value for name, value in scores.items()},
        'confusion': confusion.tolist(),
    }
    output = os.path.join(_WORKDIR.value, f'evaluate-{split.name}.json')
    records.write_atomically(output, json.dumps(result) + '\n')
    print(metrics.table_of_classes(confusion, table))
    print(f'{path} on {len(split)} images of {split.name}; all figures in {output}')
    print(console.headline(scores))


if __name__ == '__main__':
    entry.run(main)
