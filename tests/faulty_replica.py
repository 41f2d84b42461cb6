"""unet.main with one bit flipped in a weight of one replica, after step FLIP_AFTER: on the rank FLIP_RANK its last
device.

    FLIP_AFTER=4 FLIP_RANK=1 python -m launch.local --workers=2 --module=tests.faulty_replica -- --config=...
"""

import dataclasses
import os

import numpy as np

from launch import entry
from unet import main


def _with_flip(train):
    def train_with_flip(run):
        state, weight = run.contents.state, run.contents.model.trainable_variables[-1].value
        mine = int(os.environ['FLIP_RANK']) == run.joined.workers.rank

        def train_steps(count, stop):
            if mine and int(state.step.numpy()) == int(os.environ['FLIP_AFTER']):
                copy = weight.values[-1]
                bits = copy.numpy().reshape(-1).view(np.int32)
                bits[0] ^= 1 << 12  # half way in its mantissa: rounding does not undo it
                copy.assign(bits.view(np.float32).reshape(copy.shape))
            return run.train_steps(count, stop)

        return train(dataclasses.replace(run, train_steps=train_steps))

    return train_with_flip


def _main() -> None:
    from unet.training import loop

    loop.train = _with_flip(loop.train)
    main.main()


if __name__ == '__main__':
    entry.run(_main)
