"""unet.main whose rank SLOW_RANK is slow: it reads its examples late, or computes more than the others in each step.

SLOW_RANK=1 SLOW_BY=data python -m launch.local --workers=2 --module=tests.slow_rank -- --config=...
"""

import os
import time

import tensorflow as tf

from launch import entry
from unet import main

_SECONDS = 0.2  # per example
_PRODUCTS = 20  # of matrices of this size, per step
_SIZE = 512


def _main() -> None:
    from unet.data import input_pipeline
    from unet.models import preprocess

    read, normalize = input_pipeline.Reader.read, preprocess.normalize

    def read_late(self, *arguments):
        time.sleep(_SECONDS)
        return read(self, *arguments)

    def normalize_and_more(images, dtype):
        normalized = normalize(images, dtype)
        matrix = tf.fill([_SIZE, _SIZE], tf.reduce_mean(normalized))
        for _ in range(_PRODUCTS):
            matrix = tf.tanh(tf.linalg.matmul(matrix, matrix))
        return normalized + 1e-30 * tf.reduce_mean(matrix)

    if os.environ['UNET_RANK'] == os.environ['SLOW_RANK']:
        if os.environ['SLOW_BY'] == 'data':
            input_pipeline.Reader.read = read_late
        else:
            preprocess.normalize = normalize_and_more
    main.main()


if __name__ == '__main__':
    entry.run(_main)
