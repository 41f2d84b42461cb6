"""What a run must remember besides the model.

import tensorflow as tf
from unet.training import train_state

weights = [tf.Variable(1.0)]
state = train_state.TrainState('adam', weights, ema=True)
with train_state.averaged_weights(weights, state.ema):
    weights[0].numpy()  # 1.0
"""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from unet.training import optimizer

_FIRST_SCALE = 2.0**15  # of float16's loss, https://arxiv.org/abs/1710.03740


class TrainState(tf.Module):
    """What a run must remember besides the model: all of it is in every checkpoint.

    Attributes:
      step: int64, completed steps.
      updates: float, steps whose update was applied; less than `step` only where float16 overflowed.
      slots: the optimizer's.
      ema: running mean of the weights; empty if there is none.
      scale: float32, the loss scale of float16.
      good_steps: int64, steps since the scale last changed.
      best: float64, the best value of the run's best_metric so far.
      evaluated: int64, the step of the last evaluation.
    """

    def __init__(self, optimizer_name: str, variables: list[tf.Variable], *, ema: bool = False):
        super().__init__()

        def variable_of(value, dtype):
            return tf.Variable(value, dtype=dtype, trainable=False, aggregation=tf.VariableAggregation.NONE)

        self.step = variable_of(0, tf.int64)
        self.updates = variable_of(0, variables[0].dtype)
        self.slots = optimizer.make_slots(optimizer_name, variables)
        self.ema = [variable_of(variable, variable.dtype) for variable in variables] if ema else []
        self.scale = variable_of(_FIRST_SCALE, tf.float32)
        self.good_steps = variable_of(0, tf.int64)
        self.best = variable_of(float('-inf'), tf.float64)
        self.evaluated = variable_of(0, tf.int64)


@contextlib.contextmanager
def averaged_weights(variables: list[tf.Variable], ema: list[tf.Variable]) -> Iterator[None]:
    """Replaces the weights by their running means, if there are any, until the block ends."""
    weights = [tf.identity(variable) for variable in variables] if ema else []
    for variable, mean in zip(variables, ema, strict=bool(ema)):
        variable.assign(mean)
    try:
        yield
    finally:
        for variable, value in zip(variables, weights, strict=bool(ema)):
            variable.assign(value)
