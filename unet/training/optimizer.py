"""Learning rate and update rules, on gradients that are already summed over all replicas.

    slots = optimizer.make_slots('adam', variables)
    rate = optimizer.learning_rate(step, peak=1e-3, schedule='cosine', warmup_steps=100, num_steps=1000)
    new_values, new_slots = optimizer.update(variables, gradients, slots, name='adam', learning_rate=rate, ...)

The rules are pure functions: the training step decides whether the new values are taken, so that all replicas skip an
overflowed step alike, without control flow. Sources: Adam, https://arxiv.org/abs/1412.6980; AdamW,
https://arxiv.org/abs/1711.05101; polynomial decay with power 0.9, https://arxiv.org/abs/1606.00915.
"""

import math

import tensorflow as tf

SLOTS = {'adam': 2, 'adamw': 2, 'sgd': 1}  # numbers per weight: first and second moment; velocity
_POWER = 0.9


def make_slots(name: str, variables: list[tf.Variable]) -> list[list[tf.Variable]]:
    """Makes the optimizer's memory: for each slot one zero variable per weight, updated alike on all replicas."""
    return [
        [
            tf.Variable(tf.zeros_like(variable), trainable=False, aggregation=tf.VariableAggregation.NONE)
            for variable in variables
        ]
        for _ in range(SLOTS[name])
    ]


def learning_rate(step: tf.Tensor, *, peak: float, schedule: str, warmup_steps: int, num_steps: int) -> tf.Tensor:
    """Returns the rate of the update that follows `step` completed ones, in the dtype of `step` (a float)."""
    one = tf.ones([], step.dtype)
    warmup = tf.minimum(one, (step + 1) / max(warmup_steps, 1))
    done = tf.clip_by_value((step - warmup_steps) / max(num_steps - warmup_steps, 1), 0 * one, one)
    decay = {
        'constant': lambda: one,
        'polynomial': lambda: (1 - done) ** _POWER,
        'cosine': lambda: (1 + tf.cos(math.pi * done)) / 2,
    }[schedule]()
    return peak * warmup * decay


def clip_by_global_norm(gradients: list[tf.Tensor], limit: float) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Scales all gradients down together so that their global norm is at most `limit` (0: not at all).

    Returns:
      The gradients, and their global norm before clipping.
    """
    norm = tf.linalg.global_norm(gradients)
    if not limit:
        return gradients, norm
    scale = limit / tf.maximum(norm, limit)
    return [gradient * scale for gradient in gradients], norm


def update(
    variables: list[tf.Variable],
    gradients: list[tf.Tensor],
    slots: list[list[tf.Variable]],
    *,
    name: str,
    count: tf.Tensor,
    learning_rate: tf.Tensor,
    weight_decay: float,
    momentum: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> tuple[list[tf.Tensor], list[list[tf.Tensor]]]:
    """Computes one update of the weights.

    Args:
      variables: the weights.
      gradients: one per weight.
      slots: as `make_slots` made them.
      name: 'adam' or 'sgd' (weight decay joins the gradient), or 'adamw' (weight decay is decoupled).
      count: scalar float, the number of this update, from 1.
      learning_rate: scalar.
      weight_decay: of kernels (variables of two or more dimensions); biases and normalisation are spared.
      momentum: of 'sgd'.
      beta1, beta2: decay of Adam's running means of the gradient and of its square.
      epsilon: added to Adam's root of the latter.

    Returns:
      New values of the weights, and of the slots.
    """
    decays = [weight_decay if variable.shape.rank > 1 else 0.0 for variable in variables]
    if name != 'adamw':
        gradients = [g + decay * v if decay else g for g, v, decay in zip(gradients, variables, decays, strict=True)]
    if name == 'sgd':
        velocity = [momentum * m + g for m, g in zip(slots[0], gradients, strict=True)]
        return [v - learning_rate * m for v, m in zip(variables, velocity, strict=True)], [velocity]
    first = [beta1 * m + (1 - beta1) * g for m, g in zip(slots[0], gradients, strict=True)]
    second = [beta2 * s + (1 - beta2) * g * g for s, g in zip(slots[1], gradients, strict=True)]
    correction = tf.sqrt(1 - beta2**count) / (1 - beta1**count)
    steps = [correction * m / (tf.sqrt(s) + epsilon) for m, s in zip(first, second, strict=True)]
    if name == 'adamw':
        steps = [step + decay * v if decay else step for step, v, decay in zip(steps, variables, decays, strict=True)]
    return [v - learning_rate * step for v, step in zip(variables, steps, strict=True)], [first, second]
