"""One training step: forward, backward, one all-reduce of the gradients, one update, alike on every replica.

    replica_step = step.make_replica_step(model, state, losses=..., learning_rate=..., update=..., ...)
    train_steps = step.make_train_steps(strategy, replica_step, device='CPU:0', deterministic=False)
    taken = train_steps(batches, tf.constant(10), tf.constant(0.0))
    metrics = step.read_metrics(taken)  # [10, len(METRICS)]

The order of things makes N replicas equal one: the loss is the sum over a replica's valid pixels divided by the valid
pixels of the *global* batch, gradients are summed over replicas, and only then tested, unscaled, clipped and applied
(`gradient_update`).
"""

import functools
from collections.abc import Callable, Collection, Sequence

import keras
import numpy as np
import tensorflow as tf

from unet.distributed import stragglers, sums
from unet.models import preprocess
from unet.training import gradient_update
from unet.training.losses import Denominator, Numerator
from unet.training.train_state import TrainState

# Of each step; all but the seconds, which are of this process, are the same on all replicas.
SHARED_METRICS = ('loss', 'gradient_norm', 'learning_rate', 'finite', 'loss_scale', 'stop')
METRICS = (*SHARED_METRICS, 'seconds_without_data', 'seconds_in_sums')

# What XLA may compile of a replica's step: all of it as one, or parts between which there are sums over replicas. Of
# several microbatches the 'gradients' of each are compiled by themselves: in what XLA compiles they would all be in
# memory at the same time, for it ignores control dependencies, or, in a loop, have no fast convolutions on a CPU.
COMPILED = ('step', 'inputs', 'gradients', 'loss', 'update')

# What a call of several steps returns: SHARED_METRICS of each, on the device that computed them, and on the host the
# seconds without data of each and those in sums of all together.
Taken = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
Loss = tuple[float, Numerator, Denominator]  # weight, numerator, denominator
Gradients = list[tf.Tensor]


def column(rows: np.ndarray, name: str) -> np.ndarray:
    """Returns one of METRICS of each step, of rows [steps, len(METRICS)]."""
    return rows[:, METRICS.index(name)]


def make_replica_step(
    model: keras.Model,
    state: TrainState,
    *,
    losses: Sequence[Loss],
    heads: Sequence[tuple[float, int]],
    class_of_id: tf.Tensor,
    learning_rate: Callable[[tf.Tensor], tf.Tensor],
    update: gradient_update.Rule,
    clip_norm: float,
    ema: float,
    loss_scaling: bool,
    average_statistics: bool,
    microbatches: int,
    replicas: int,
    compiled: Collection[str],
) -> Callable[[dict[str, tf.Tensor], tf.Tensor], tf.Tensor]:
    """Makes the function that every replica runs on its share of the global batch.

    Args:
      model: from images in [-1, 1] to logits, of one head or two.
      state: updated in place, as the model is.
      losses: from `losses.make_losses`.
      heads: of each of the model's outputs the weight of its losses, and that its logits are for one of so many pixels
        in each direction.
      class_of_id: int32 [256], label id -> class, 255 for ids that do not count.
      learning_rate: of the update that follows so many completed steps (a float scalar).
      update: `optimizer.update` of one optimizer.
      clip_norm: largest global norm of the gradient; 0: no limit.
      ema: decay of `state.ema`, reached from below: at most (1 + t) / (10 + t) after t updates.
      loss_scaling: multiply the loss by `state.scale`, as float16 needs it.
      average_statistics: the running statistics of normalisation differ between replicas, which go on with their mean.
      microbatches: how many a replica's share of the batch is divided into; must divide it.
      replicas: how many run this together.
      compiled: of COMPILED.

    Returns:
      A function of a batch (as `input_pipeline.train_batches` yields it) and stop (float32, above 0 where this process
      has been asked to stop) that returns SHARED_METRICS as float32, the same on all replicas; 'stop' is their sum.
    """
    variables = [variable.value for variable in model.trainable_variables]
    statistics = [variable.value for variable in model.non_trainable_variables]
    dtype = variables[0].dtype

    def jit(part: str, function: Callable) -> Callable:
        return tf.function(function, jit_compile=True, autograph=False) if part in compiled else function

    def microbatch_gradients(inputs, targets, totals, scale) -> tuple[Gradients, tf.Tensor]:
        """Returns the gradients of the scaled loss of some images, and their loss."""
        with tf.GradientTape() as tape:
            logits = tf.nest.flatten(model(inputs, training=True))
            loss = weighted_loss(logits, targets, totals=totals)
            scaled_loss = loss * scale
        return tape.gradient(scaled_loss, variables), loss

    weights = [weight for weight, _ in heads]
    weighted_loss = jit('loss', functools.partial(_weighted_loss, losses=losses, head_weights=weights))
    prepare = jit(
        'inputs',
        functools.partial(
            _prepare, model=model, losses=losses, heads=heads, class_of_id=class_of_id, microbatches=microbatches
        ),
    )
    microbatch_gradients = jit('gradients', microbatch_gradients)
    apply_gradients = jit(
        'update',
        gradient_update.make_update(
            variables,
            statistics,
            state,
            learning_rate=learning_rate,
            update=update,
            clip_norm=clip_norm,
            ema=ema,
            loss_scaling=loss_scaling,
            statistics_summed_over=replicas if average_statistics else 1,
        ),
    )

    @tf.autograph.experimental.do_not_convert
    def replica_step(batch: dict[str, tf.Tensor], stop: tf.Tensor) -> tf.Tensor:
        inputs, targets, totals = prepare(batch)
        scale = tf.cast(state.scale, dtype) if loss_scaling else tf.ones([], dtype)
        statistics_before = [tf.identity(variable) for variable in statistics]
        totals = sums.over_replicas(totals, replicas)
        totals = tf.where(totals > 0, totals, tf.ones_like(totals))
        gradients, loss = accumulate_gradients(
            lambda inputs, targets: microbatch_gradients(inputs, targets, totals, scale), inputs, targets
        )
        new_statistics = [tf.identity(variable) for variable in statistics]
        # In one pack: in packs of 1 and 8 MiB two workers of one core each took 1.02 and 1.00 times as long.
        packed = [*gradients, loss, tf.identity(tf.cast(stop, dtype)), *(new_statistics if average_statistics else [])]
        packed = sums.over_replicas(packed, replicas)
        gradients, (loss, stop) = packed[: len(variables)], packed[len(variables) : len(variables) + 2]
        if average_statistics:
            new_statistics = packed[len(variables) + 2 :]
        row = apply_gradients(gradients, loss, new_statistics, statistics_before)
        return tf.concat([row, tf.cast(stop, tf.float32)[None]], 0)

    return jit('step', replica_step)


def _prepare(
    batch: dict[str, tf.Tensor],
    *,
    model: keras.Model,
    losses: Sequence[Loss],
    heads: Sequence[tuple[float, int]],
    class_of_id: tf.Tensor,
    microbatches: int,
) -> tuple[list[list[tf.Tensor]], list[list[tf.Tensor]], tf.Tensor]:
    """The inputs and the targets of each microbatch, and the losses' denominators on this replica."""
    dtype = model.inputs[0].dtype
    inputs = [preprocess.color_jitter(preprocess.normalize(batch['image'], dtype), tf.cast(batch['color'], dtype))]
    if 'dropout_mask' in batch:
        inputs.append(tf.cast(batch['dropout_mask'], dtype))
    # GPUs have kernels that cut, compare and copy uint8, and TensorFlow's for int32 run on the host.
    classes = tf.cast(tf.gather(class_of_id, tf.cast(batch['label'], tf.int32)), tf.uint8)
    targets = _targets(classes, model.compute_output_shape([tensor.shape for tensor in inputs]), heads)
    totals = tf.stack([total(target, dtype) for target in targets for _, _, total in losses])
    return split(inputs, microbatches), split(targets, microbatches), totals


def accumulate_gradients(
    microbatch_gradients: Callable[[list[tf.Tensor], list[tf.Tensor]], tuple[Gradients, tf.Tensor]],
    inputs: list[list[tf.Tensor]],
    targets: list[list[tf.Tensor]],
) -> tuple[Gradients, tf.Tensor]:
    """Sums gradients and losses over the microbatches of a batch, computed one after the other.

    A microbatch's activations are free before the next one's are computed.

    Args:
      microbatch_gradients: gradients and loss of some images and their targets.
      inputs, targets: of each microbatch, images first.
    """
    total = microbatch_gradients(inputs[0], targets[0])
    for tensors in zip(inputs[1:], targets[1:], strict=True):
        with tf.control_dependencies(tf.nest.flatten(total)):
            total = tf.nest.map_structure(
                tf.add, total, microbatch_gradients(*tf.nest.map_structure(tf.identity, tensors))
            )
    return total


def split(tensors: list[tf.Tensor], parts: int) -> list[list[tf.Tensor]]:
    """Divides tensors along their first axis into so many equal parts, and returns the tensors of each part."""
    if parts == 1:
        return [tensors]
    return [list(part) for part in zip(*(tf.split(tensor, parts) for tensor in tensors), strict=True)]


def _weighted_loss(
    outputs: list[tf.Tensor],
    targets: list[tf.Tensor],
    losses: Sequence[Loss],
    head_weights: Sequence[float],
    totals: tf.Tensor,
) -> tf.Tensor:
    """The sum over heads and losses of weight x numerator / denominator of the global batch."""
    terms = [  # in the order of `totals`: by head, then by loss
        head_weight * weight * numerator(logits, target)
        for head_weight, logits, target in zip(head_weights, outputs, targets, strict=True)
        for weight, numerator, _ in losses
    ]
    return tf.reduce_sum(tf.stack(terms) / totals)


def _targets(classes: tf.Tensor, outputs: tuple | list[tuple], heads: Sequence[tuple[float, int]]) -> list[tf.Tensor]:
    """The classes [b, h, w] for each of the model's heads."""
    shapes = outputs if isinstance(outputs, list) else [outputs]
    return [
        central_crop(classes, stride * height, stride * width)[:, ::stride, ::stride]
        for (_, height, width, _), (_, stride) in zip(shapes, heads, strict=True)
    ]


def central_crop(target: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Cuts [b, h, w] down to the size of the model's output, which an unpadded model makes smaller."""
    top, left = (target.shape[1] - height) // 2, (target.shape[2] - width) // 2
    return target[:, top : top + height, left : left + width]


def make_train_steps(
    strategy: tf.distribute.Strategy, replica_step: Callable, *, device: str, deterministic: bool
) -> tf.types.experimental.PolymorphicFunction:
    """Makes a function that takes several steps in one call, with nothing on the host between them.

    Args:
      strategy: runs `replica_step` on its replicas.
      replica_step: from `make_replica_step`.
      device: of the first replica of this process, e.g. 'GPU:0'.
      deterministic: no clock is read, which TensorFlow refuses in this mode: the times are 0.

    Returns:
      A function of an iterator over batches, a number of steps, and stop (see `make_replica_step`) that returns what
      `read_metrics` reads. On a GPU it returns before the steps are done.
    """
    now = functools.partial(tf.zeros, [], tf.float64) if deterministic else tf.timestamp

    @tf.function
    def train_steps(iterator, count, stop):
        in_sums_before = stragglers.seconds_in_sums()
        with tf.device(device):  # a GPU's rows stay there: to bring them to the host is to wait for the step
            rows = tf.TensorArray(tf.float32, size=count, element_shape=[len(SHARED_METRICS)])
        with tf.device('CPU'):
            waits = tf.TensorArray(tf.float32, size=count, element_shape=[])
        for i in tf.range(count):
            with tf.control_dependencies([rows.flow]):  # the step before has been taken, or a GPU has been given it
                asked = now()
            with tf.control_dependencies([asked]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(strategy.experimental_local_results(batch))):
                waited = tf.cast(now() - asked, tf.float32)
            with tf.control_dependencies([waited]):  # one thread alone would else take the step first
                batch = tf.nest.map_structure(_copy_on_its_device, batch, expand_composites=True)
            row = strategy.run(replica_step, args=(batch, stop))
            with tf.device(device):
                rows = rows.write(i, strategy.experimental_local_results(row)[0])
            with tf.device('CPU'):
                waits = waits.write(i, waited)
        return rows.stack(), waits.stack(), stragglers.seconds_in_sums() - in_sums_before

    return train_steps


def read_metrics(taken: Taken) -> np.ndarray:
    """Waits for steps and returns their metrics.

    Args:
      taken: what a function of `make_train_steps` returned.

    Returns:
      float32 [steps, len(METRICS)].
    """
    rows, waits, in_sums = (part.numpy() for part in taken)
    seconds = np.stack([waits, np.full_like(waits, in_sums / len(waits))], 1)  # in sums: the mean over the steps
    return np.concatenate([rows, seconds], 1)


def _copy_on_its_device(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor from where it is, so that waiting for it does not move it."""
    with tf.device(tensor.device):
        return tf.identity(tensor)
