import numpy as np
import pytest
import tensorflow as tf

from unet.training import optimizer

RULES = {'momentum': 0.9, 'beta1': 0.9, 'beta2': 0.999, 'epsilon': 1e-7}


def formula(name, w, gradients, rate=0.01, decay=0.1, momentum=0.9, b1=0.9, b2=0.999, eps=1e-7):
    """The papers' update rules, written for one NumPy array."""
    m = v = velocity = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        if name == 'sgd':
            velocity = momentum * velocity + g + decay * w
            w = w - rate * velocity
            continue
        g = g + decay * w if name == 'adam' else g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        w = w - rate * (step + decay * w if name == 'adamw' else step)
    return w


@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
def test_five_updates_follow_the_formula(name):
    start = np.random.default_rng(0).normal(size=(3, 2))
    gradients = [np.random.default_rng(count).normal(size=(3, 2)) for count in range(1, 6)]
    weight = tf.Variable(start)
    slots = optimizer.make_slots(name, [weight])
    for count, gradient in enumerate(gradients, 1):
        (new,), new_slots = optimizer.update(
            [weight], [tf.constant(gradient)], slots, name=name, count=tf.constant(float(count), tf.float64),
            learning_rate=tf.constant(0.01, tf.float64), weight_decay=0.1, **RULES,
        )  # fmt: skip
        weight.assign(new)
        for slot, (value,) in zip(slots, new_slots, strict=True):
            slot[0].assign(value)
    np.testing.assert_allclose(weight.numpy(), formula(name, start, gradients), rtol=0, atol=1e-12)


def test_weight_decay_spares_biases_and_normalisation():
    for name in ('adam', 'adamw', 'sgd'):
        kernel, bias = tf.Variable(tf.ones([2, 2])), tf.Variable(tf.ones([2]))
        gradients = [tf.zeros([2, 2]), tf.zeros([2])]
        slots = optimizer.make_slots(name, [kernel, bias])
        (new_kernel, new_bias), _ = optimizer.update(
            [kernel, bias], gradients, slots, name=name, count=tf.constant(1.0), learning_rate=tf.constant(0.1),
            weight_decay=0.1, **RULES,
        )  # fmt: skip
        assert (new_kernel.numpy() < 1).all() and (new_bias.numpy() == 1).all()


def test_learning_rate_schedules():
    def rates(schedule, warmup):
        return [
            float(
                optimizer.learning_rate(
                    tf.constant(float(step), tf.float64),
                    peak=2.0,
                    schedule=schedule,
                    warmup_steps=warmup,
                    num_steps=100,
                )
            )
            for step in (0, 4, 9, 10, 55, 100)
        ]

    np.testing.assert_allclose(rates('constant', 0), [2.0] * 6)
    np.testing.assert_allclose(rates('constant', 10), [0.2, 1.0, 2.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(rates('cosine', 10), [0.2, 1.0, 2.0, 2.0, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rates('polynomial', 10), [0.2, 1.0, 2.0, 2.0, 2 * 0.5**0.9, 0.0], atol=1e-12)


def test_clipping_keeps_the_direction_and_bounds_the_norm():
    gradients = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    clipped, norm = optimizer.clip_by_global_norm(gradients, 1.0)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped[0], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[0.8]], rtol=1e-6)
    untouched, _ = optimizer.clip_by_global_norm(gradients, 10.0)
    np.testing.assert_array_equal(untouched[0], gradients[0])
