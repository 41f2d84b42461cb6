"""One training step: forward, backward, one all-reduce, one update, alike on every replica.

The order of things makes N replicas equal one: the loss is the sum over a replica's valid pixels divided by the valid
pixels of the *global* batch, gradients are summed over replicas, and only then tested, unscaled, clipped and applied.
Whether all of them are finite is read off the summed gradients, so that all replicas decide alike: an overflow on any
one of them withholds the update on all, by `tf.where` on weights, optimizer slots and batch statistics.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from unet.models import preprocess
from unet.training import losses, optimizer

# Of each step; all but the last are the same on all replicas.
METRICS = ('loss', 'gradient_norm', 'learning_rate', 'finite', 'loss_scale', 'stop', 'seconds_without_data')

# Dynamic loss scale of float16, https://arxiv.org/abs/1710.03740: halved on overflow, doubled after many good steps.
_FIRST_SCALE = 2.0**15
_GROW_AFTER = 2000


@contextlib.contextmanager
def averaged_weights(variables: list[tf.Variable], ema: list[tf.Variable]) -> Iterator[None]:
    """Within it the weights are their running means, if there are any."""
    kept = [tf.identity(variable) for variable in variables] if ema else []
    for variable, mean in zip(variables, ema, strict=bool(ema)):
        variable.assign(mean)
    try:
        yield
    finally:
        for variable, value in zip(variables, kept, strict=bool(ema)):
            variable.assign(value)


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


def make_replica_step(
    network: keras.Model,
    state: TrainState,
    *,
    losses: list[tuple[float, losses.Numerator, losses.Denominator]],
    auxiliary: float,
    class_of_id: tf.Tensor,
    precision: str,
    num_steps: int,
    optimizer_name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    ema: float,
    microbatches: int,
    replicas: int,
    jit_compile: bool,
) -> Callable[[dict[str, tf.Tensor], tf.Tensor], tf.Tensor]:
    """The function that every replica runs on its share of the global batch.

    Args:
      network: from images in [-1, 1] to logits.
      state: updated in place, as the network is.
      losses: from `loss.make_losses`.
      auxiliary: weight of the same losses of the network's second output, if it has one.
      class_of_id: int32 [256], label id -> class, 255 for ids that do not count.
      precision: see `model.POLICIES`.
      num_steps, learning_rate, schedule, warmup_steps: see `optimizer.learning_rate`.
      optimizer_name, momentum, weight_decay: see `optimizer.update`.
      clip_norm: largest global norm of the gradient; 0: no limit.
      ema: decay of `state.ema`, reached from below: at most (1 + t) / (10 + t) after t updates.
      microbatches: parts that a replica's share is computed in; must divide it.
      replicas: how many run this together.
      jit_compile: compile it with XLA: all of it, or if there are microbatches each by itself. Within what XLA compiles
        they would be in memory at the same time, for it ignores control dependencies, or, in a loop, have no fast
        convolutions on a CPU.

    Returns:
      batch (as `input_pipeline.train_batches` yields it), stop (float32 scalar, above 0 where this process has been
      asked to stop) -> float32 [len(METRICS) - 1], the same on all replicas; its 'stop' is the sum over all of them.
    """
    variables = [variable.value for variable in network.trainable_variables]
    statistics = [variable.value for variable in network.non_trainable_variables]
    dtype = variables[0].dtype
    scaled = precision == 'float16'

    def all_reduce(tensors):
        if replicas == 1:
            return tensors
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    def replica_step(batch: dict[str, tf.Tensor], stop: tf.Tensor) -> tf.Tensor:
        image = preprocess.normalize(batch['image'], dtype)
        image = preprocess.color_jitter(image, tf.cast(batch['color'], dtype))
        target = tf.gather(class_of_id, tf.cast(batch['label'], tf.int32))
        inputs = [image, tf.cast(batch['dropout_mask'], dtype)] if 'dropout_mask' in batch else [image]
        targets = _targets(target, network.compute_output_shape([tensor.shape for tensor in inputs]))
        scale = tf.cast(state.scale, dtype) if scaled else tf.ones([], dtype)
        statistics_before = [tf.identity(variable) for variable in statistics]

        total = all_reduce(tf.stack([of_labels(t, dtype) for t in targets for _, _, of_labels in losses]))
        total = tf.where(total > 0, total, tf.ones_like(total))

        def of_part(*examples: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
            """Gradient of the scaled loss of some examples, and their loss."""
            part_inputs, part_targets = list(examples[: len(inputs)]), examples[len(inputs) :]
            with tf.GradientTape() as tape:
                heads = tf.nest.flatten(network(part_inputs, training=True))
                terms = [
                    head_weight * weight * numerator(logits, part_target)
                    for head_weight, logits, part_target in zip((1.0, auxiliary), heads, part_targets, strict=False)
                    for weight, numerator, _ in losses
                ]
                part_loss = tf.reduce_sum(tf.stack(terms) / total)
                scaled_loss = part_loss * scale
            return tape.gradient(scaled_loss, variables), part_loss

        compiled = tf.function(of_part, jit_compile=True) if jit_compile and microbatches > 1 else of_part
        gradients, local_loss = _sum_of_parts(compiled, [*inputs, *targets], microbatches)
        # In one pack: in packs of 1 and 8 MiB two workers of one core each took 1.02 and 1.00 times as long.
        *gradients, mean_loss, stop = all_reduce([*gradients, local_loss, tf.identity(tf.cast(stop, dtype))])

        gradients = [gradient / scale for gradient in gradients]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in [*gradients, mean_loss]])
        gradients, norm = optimizer.clip_by_global_norm(gradients, clip_norm)
        rate = optimizer.learning_rate(
            tf.cast(state.step, dtype),
            peak=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            num_steps=num_steps,
        )
        count = state.updates + 1
        new_values, new_slots = optimizer.update(
            optimizer_name,
            variables,
            gradients,
            state.slots,
            count=count,
            learning_rate=rate,
            weight_decay=weight_decay,
            momentum=momentum,
        )
        for variable, new in zip(variables, new_values, strict=True):
            variable.assign(tf.where(finite, new, variable))
        decay = tf.minimum(tf.cast(ema, dtype), count / (count + 9))
        for mean, new in zip(state.ema, new_values if state.ema else [], strict=True):
            mean.assign(tf.where(finite, decay * mean + (1 - decay) * new, mean))
        for slot, new_slot in zip(state.slots, new_slots, strict=True):
            for variable, new in zip(slot, new_slot, strict=True):
                variable.assign(tf.where(finite, new, variable))
        for variable, old in zip(statistics, statistics_before, strict=True):
            variable.assign(tf.where(finite, variable, old))
        if scaled:
            _adjust_scale(state, finite)
        state.updates.assign(tf.where(finite, count, state.updates))
        state.step.assign_add(1)
        return tf.stack([tf.cast(x, tf.float32) for x in (mean_loss, norm, rate, finite, scale, stop)])

    return tf.function(replica_step, jit_compile=True) if jit_compile and microbatches == 1 else replica_step


def _sum_of_parts(function: Callable[..., object], tensors: list[tf.Tensor], count: int) -> object:
    """The sum of `function` over the tensors cut into `count` parts, one after the other, so that a part's memory is
    free for the next."""
    parts = zip(*(tf.split(tensor, count) for tensor in tensors), strict=True)
    whole = function(*next(parts))
    for part in parts:
        with tf.control_dependencies(tf.nest.flatten(whole)):
            whole = tf.nest.map_structure(tf.add, whole, function(*map(tf.identity, part)))
    return whole


def _targets(target: tf.Tensor, outputs: tuple | list[tuple]) -> list[tf.Tensor]:
    """The labels [b, h, w] of each of the network's outputs: the auxiliary one has half the resolution."""
    shapes = outputs if isinstance(outputs, list) else [outputs]
    targets = [central_crop(target, *shapes[0][1:3])]
    for _, height, width, _ in shapes[1:]:
        targets.append(central_crop(target, 2 * height, 2 * width)[:, ::2, ::2])
    return targets


def central_crop(target: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Cuts [b, h, w] down to the size of the network's output, which an unpadded network makes smaller."""
    top, left = (target.shape[1] - height) // 2, (target.shape[2] - width) // 2
    return target[:, top : top + height, left : left + width]


def _adjust_scale(state: TrainState, finite: tf.Tensor) -> None:
    good_steps = tf.where(finite, state.good_steps + 1, 0)
    grow = good_steps >= _GROW_AFTER
    scale = tf.where(finite, tf.where(grow, state.scale * 2, state.scale), tf.maximum(state.scale / 2, 1.0))
    state.scale.assign(scale)
    state.good_steps.assign(tf.where(grow, tf.zeros_like(good_steps), good_steps))


def make_train_steps(strategy: tf.distribute.Strategy, replica_step: Callable, *, deterministic: bool) -> Callable:
    """Several steps in one call, with nothing on the host between them.

    Args:
      strategy: runs `replica_step` on its replicas.
      replica_step: from `make_replica_step`.
      deterministic: no clock is read, which TensorFlow refuses in this mode: the time without data is 0.

    Returns:
      (iterator over batches, number of steps, stop) -> float32 [steps, len(METRICS)].
    """
    now = functools.partial(tf.zeros, [], tf.float64) if deterministic else tf.timestamp

    @tf.function
    def train_steps(iterator, count, stop):
        rows = tf.TensorArray(tf.float32, size=count, element_shape=[len(METRICS)])
        for i in tf.range(count):
            with tf.control_dependencies([rows.flow]):  # the step before is done
                asked = now()
            with tf.control_dependencies([asked]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(strategy.experimental_local_results(batch))):
                waited = tf.cast(now() - asked, tf.float32)
            with tf.control_dependencies([waited]):  # one thread alone would else take the step first
                batch = tf.nest.map_structure(_where_it_is, batch, expand_composites=True)
            row = strategy.run(replica_step, args=(batch, stop))
            with tf.device('CPU'):  # where it arrives once a GPU is done with the step
                row = tf.concat([strategy.experimental_local_results(row)[0], waited[None]], 0)
            rows = rows.write(i, row)
        return rows.stack()

    return train_steps


def _where_it_is(tensor: tf.Tensor) -> tf.Tensor:
    with tf.device(tensor.device):
        return tf.identity(tensor)
