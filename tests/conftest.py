"""Quiet TensorFlow with four virtual CPU devices, for all tests that use it in this process."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import pytest


@pytest.fixture(scope='session', autouse=True)
def devices() -> list[str]:
    """Set up before any test of this process, since TensorFlow's devices are fixed by its first operation."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices('CPU')[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    return [f'/cpu:{number}' for number in range(4)]


@pytest.fixture(scope='session')
def mirrored(devices):
    """Number of replicas -> a MirroredStrategy over that many virtual devices."""
    import tensorflow as tf

    return lambda count: tf.distribute.MirroredStrategy(
        devices[:count], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
