"""Trains a U-Net on a record folder, evaluates it as it goes, and keeps everything in a workdir.

    python -m unet.main --config=configs/cityscapes.py --data_dir=data/cityscapes --workdir=runs/cityscapes

Started again with the same workdir it goes on where it stopped. Any field of the config can be set from the command
line, e.g. --config.global_batch=8; configs/default.py lists them all. SIGTERM and Ctrl-C save a checkpoint and exit
with 75.
"""

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from configs import default
from launch import entry
from unet import stopping

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, e.g. configs/cityscapes.py; required.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; default runs/<config name>.')
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder, from data_prep.build_tfrecords or TFDS.')
_ACCEPT_CONFIG_CHANGE = flags.DEFINE_bool(
    'accept_config_change', False, 'Go on with a run although its config has changed in meaning.'
)


def main() -> None:
    if _CONFIG.value is None:
        raise entry.Failure(entry.BAD_USAGE, 'pass --config, e.g. --config=configs/cityscapes.py')
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    workdir = _WORKDIR.value or os.path.join('runs', name)

    problems = default.validate(_CONFIG.value)
    if problems:
        raise entry.Failure(entry.BAD_CONFIG, '\n'.join(problems))

    with stopping.StopRequest(_CONFIG.value.runtime.grace_seconds) as stop:
        with entry.quiet_import():
            from unet import train
        train.train_and_evaluate(
            _CONFIG.value, workdir, _DATA_DIR.value, stop, accept_config_change=_ACCEPT_CONFIG_CHANGE.value
        )


if __name__ == '__main__':
    entry.run(main)
