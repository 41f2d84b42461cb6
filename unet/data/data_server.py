"""Makes training examples for trainers on other hosts, whose own cores cannot keep their GPUs busy.

    python -m unet.data_server --config=configs/cityscapes.py --data_dir=data/cityscapes --port=5050
    python -m unet.main --config=configs/cityscapes.py --config.data.servers=10.0.0.2:5050 ...    # the trainer

Give it the --config, fields and records of the training run: what makes other examples is refused by the trainer. One
server uses all cores of its host and serves any number of trainers; a run takes any number of servers, written
--config.data.servers="('10.0.0.2:5050','10.0.0.3:5050')". The examples are those that the trainer would make itself, so
a server may come and go at any time. SIGTERM and Ctrl-C end it. unet/serving.py has the protocol.
"""

import contextlib
import os
import signal
import socket
import time

from absl import flags

from data_prep import records
from launch import entry, host
from unet import config_flag

_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder, from data_prep.build_tfrecords or TFDS.')
_PORT = flags.DEFINE_integer('port', 5050, 'TCP port to listen at; 0: any that is free.', 0, 65535)

_LOG_EVERY = 60  # seconds
_WAITING = 1024  # connections that may wait to be taken: a trainer opens one for each example in flight


def main() -> None:
    host.ignore_broken_pipes()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        _serve()


def _serve() -> None:
    config = config_flag.checked()
    split = records.read_split(_DATA_DIR.value, '+'.join(config.data.train_splits))
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # whoever trains on this host needs its GPUs whole
    with host.quiet_import():
        from unet.data import build as data_build
        from unet.data import input_pipeline, serving
        from unet.distributed import sockets
    settings = data_build.example_settings(config)
    make = input_pipeline.example_maker(input_pipeline.Reader(split), **settings, **data_build.cache_settings(config))
    try:
        listener = sockets.listen(_PORT.value, _WAITING)
    except OSError as error:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'--port={_PORT.value}: {error.strerror}. Does another process use it? Pass another --port.',
        ) from error
    served = serving.serve(listener, make, serving.agreement(split, **settings))
    print(
        f'Listening at {socket.gethostname()}:{listener.getsockname()[1]}: {len(split):,} examples of {split.name}, '
        f'{host.cores()} cores',
        flush=True,
    )
    before = 0
    while True:
        time.sleep(_LOG_EVERY)
        if (now := served()) > before:
            print(
                f'{now:,} examples served, {(now - before) / _LOG_EVERY:,.1f} per second of the last minute', flush=True
            )
            before = now


if __name__ == '__main__':
    entry.run(main)
