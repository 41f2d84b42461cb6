"""Trains a U-Net on a record folder, evaluates it as it goes, and keeps everything in a workdir.

    python -m unet.main --config=configs/cityscapes.py --data_dir=data/cityscapes --workdir=runs/cityscapes

Started again with the same workdir it goes on where it stopped. Any field of the config can be set from the command
line, e.g. --config.global_batch=8; configs/default.py lists them all. SIGTERM and Ctrl-C save a checkpoint and exit
with 75.
"""

import os

from absl import flags

from launch import entry, host, xla_cache
from unet import config_flag
from unet.distributed import shutdown

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; default runs/<config name>.')
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder, from data_prep.build_tfrecords or TFDS.')
_ACCEPT_CONFIG_CHANGE = flags.DEFINE_bool(
    'accept_config_change', False, 'Go on with a run although its config has changed in meaning.'
)


def main() -> None:
    host.ignore_broken_pipes()
    config = config_flag.checked()
    workdir = _WORKDIR.value or os.path.join('runs', config_flag.name())
    xla_cache.use(workdir)
    with shutdown.StopRequest(config.runtime.grace_seconds) as stop:
        with host.quiet_import():
            from unet import train
        train.train_and_evaluate(
            config, workdir, _DATA_DIR.value, stop, accept_config_change=_ACCEPT_CONFIG_CHANGE.value
        )


if __name__ == '__main__':
    entry.run(main)
