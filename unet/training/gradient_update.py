"""What happens to weights and state once the gradients are summed over all replicas, alike on each of them.

    apply_gradients = gradient_update.make_update(variables, statistics, state, update=..., learning_rate=..., ...)
    row = apply_gradients(gradients, loss, new_statistics, statistics_before)

Whether all gradients are finite is read off their sum, so that all replicas decide alike: an overflow on any one of
them withholds the update on all, by `tf.where` on weights, optimizer slots and batch statistics.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from unet.training import optimizer
from unet.training.train_state import TrainState

# (weights, gradients, slots, count=, learning_rate=) -> new weights, new slots; see `optimizer.update`
Rule = Callable[..., tuple[list[tf.Tensor], list[list[tf.Tensor]]]]

_GROW_AFTER = 2000  # good steps after which the loss scale of float16 is doubled
LEAST_SCALE = 1.0  # that overflows halve it to


def make_update(
    variables: list[tf.Variable],
    statistics: list[tf.Variable],
    state: TrainState,
    *,
    learning_rate: Callable[[tf.Tensor], tf.Tensor],
    update: Rule,
    clip_norm: float,
    ema: float,
    loss_scaling: bool,
    statistics_summed_over: int,
) -> Callable[..., tf.Tensor]:
    """Makes the part of the step that follows the sum of all replicas' gradients.

    Args:
      variables: the weights.
      statistics: the running statistics of normalisation.
      state: updated in place, as all of these are.
      learning_rate, update, clip_norm, ema, loss_scaling: see `step.make_replica_step`.
      statistics_summed_over: replicas whose statistics come as their sum; 1: they come as they are.

    Returns:
      A function of the gradients of the scaled loss, the loss, the statistics after and before the step, that returns
      float32 loss, norm of the gradient, learning rate, whether all was finite, and the loss scale.
    """
    dtype = variables[0].dtype

    def apply_gradients(gradients, loss, new_statistics, statistics_before) -> tf.Tensor:
        """Updates model and state and returns SHARED_METRICS but for 'stop'."""
        gradients = [gradient / tf.cast(state.scale, dtype) for gradient in gradients] if loss_scaling else gradients
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in [*gradients, loss]])
        gradients, norm = optimizer.clip_by_global_norm(gradients, clip_norm)
        rate = learning_rate(tf.cast(state.step, dtype))
        count = state.updates + 1
        new_values, new_slots = update(variables, gradients, state.slots, count=count, learning_rate=rate)
        _assign_where(finite, variables, new_values)
        _assign_where(finite, state.ema, _running_means(state.ema, new_values, ema, count) if state.ema else [])
        for slot, new_slot in zip(state.slots, new_slots, strict=True):
            _assign_where(finite, slot, new_slot)
        for variable, new, before in zip(statistics, new_statistics, statistics_before, strict=True):
            mean = new / statistics_summed_over if statistics_summed_over > 1 else new
            variable.assign(tf.where(finite, mean, before))
        scale = tf.identity(state.scale)
        if loss_scaling:
            _adjust_scale(state, finite)
        _assign_where(finite, [state.updates], [count])
        state.step.assign_add(1)
        return tf.stack([tf.cast(x, tf.float32) for x in (loss, norm, rate, finite, scale)])

    return apply_gradients


def _assign_where(condition: tf.Tensor, variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    """Assigns values where the condition holds. A `tf.where` rather than a `tf.cond`: all replicas do the same."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(tf.where(condition, value, variable))


def _running_means(means: list[tf.Variable], values: list[tf.Tensor], ema: float, count: tf.Tensor) -> list[tf.Tensor]:
    """Returns the running means after the update number `count`."""
    decay = tf.minimum(tf.cast(ema, count.dtype), count / (count + 9))
    return [decay * mean + (1 - decay) * value for mean, value in zip(means, values, strict=True)]


def _adjust_scale(state: TrainState, finite: tf.Tensor) -> None:
    """Halves the loss scale after an overflow, and doubles it after many steps without one."""
    good_steps = tf.where(finite, state.good_steps + 1, 0)
    grow = good_steps >= _GROW_AFTER
    scale = tf.where(finite, tf.where(grow, state.scale * 2, state.scale), tf.maximum(state.scale / 2, LEAST_SCALE))
    state.scale.assign(scale)
    state.good_steps.assign(tf.where(grow, tf.zeros_like(good_steps), good_steps))
