"""data_prep.build_tfrecords, which stops itself like Ctrl-Z when it has the first shard, and goes on when continued.

python -m tests.held_build --cityscapes_dir=... --data_dir=...
"""

import os
import signal

from data_prep import build_tfrecords, executors
from launch import entry


def _held(in_pool):
    def held_in_pool(*arguments):
        for number, done in enumerate(in_pool(*arguments)):
            if number == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
            yield done

    return held_in_pool


def _main() -> None:
    executors.in_pool = _held(executors.in_pool)
    build_tfrecords.main()


if __name__ == '__main__':
    entry.run(_main)
