"""How fast a device computes what a U-Net is made of.

speed.matrix_flops('bfloat16')              # FLOP/s of a large matrix product
speed.step_seconds(config, 19, strategy)    # that a step is expected to take
"""

from collections.abc import Callable

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from unet.diagnostics import timing
from unet.distributed import cluster
from unet.models import batch_norm, step_cost, unet
from unet.models import build as model_build
from unet.training import device_memory

_MATRIX = {'GPU': 8192, 'CPU': 2048}  # rows and columns of the matrices
_PRODUCTS = {'GPU': 20, 'CPU': 1}  # per call: one takes a GPU about as long as calling it and waiting for the answer
_SECONDS = 0.5  # for which each thing is timed
_IMAGES = 4  # that a convolution is timed on at the most; one alone takes up to 4 times as long as one of these
_PIXELS = {'GPU': 2**23, 'CPU': 2**18}  # of all of them, at the most; above it the time is proportional to them


def matrix_flops(precision: str) -> float:
    """FLOP/s of a large matrix product on one device, which a step's convolutions could reach at the best.

    On a CPU in float32 (or float64): the 16-bit types have no fast product on most.
    """
    device = _device()
    size, count = _MATRIX[device], _PRODUCTS[device]
    products = chained_products(size, count, precision if device == 'GPU' or precision == 'float64' else 'float32')
    best = timing.measure(lambda: products().numpy() and None, images=1, seconds=_SECONDS).seconds.min()
    return count * 2 * size**3 / float(best)


def chained_products(size: int, count: int, dtype: str) -> Callable[[], tf.Tensor]:
    """The sum of a matrix [size, size] of noise after `count` products with another, which keep its values near 1."""
    first, factor = (tf.random.stateless_normal([size, size], [0, seed]) for seed in range(2))
    first, factor = tf.cast(first, dtype), tf.cast(factor / size**0.5, dtype)

    @tf.function
    def products(matrix: tf.Tensor) -> tf.Tensor:
        for _ in range(count):
            matrix = tf.linalg.matmul(matrix, factor)
        return tf.reduce_sum(matrix)

    return lambda: products(first)


def step_seconds(config: ConfigDict, num_classes: int, strategy: tf.distribute.Strategy) -> float:
    """How long a step is expected to take without what workers tell each other, from convolutions timed here."""
    replicas = strategy.num_replicas_in_sync
    images = max(1, config.global_batch // replicas // max(config.runtime.microbatches, 1))
    image_seconds = step_cost.step_seconds(
        config, num_classes, level_seconds(config, images, model_build.jit_compile(config, replicas))
    )
    # The parts that a CPU is split into share its cores; GPUs compute side by side.
    sharing = replicas if _device() == 'GPU' else cluster.place(strategy)[1]
    return config.global_batch / sharing * image_seconds


def level_seconds(config: ConfigDict, images: int, jit_compile: bool) -> list[float]:
    """Seconds that one of so many images takes on one device, for each level of the network: of a 3x3 convolution of
    that level's size from as many channels to as many, with ReLU and normalisation, forward and backward."""
    height, width = config.data.crop
    images = min(images, _IMAGES)
    shrunk = max(1.0, (images * height * width / _PIXELS[_device()]) ** 0.5)
    height, width = int(height / shrunk), int(width / shrunk)
    return [
        shrunk**2 * _convolution_seconds(config, level, [images, height >> level, width >> level], jit_compile)
        for level in range(config.model.depth)
    ]


def _convolution_seconds(config: ConfigDict, level: int, size: list[int], jit_compile: bool) -> float:
    channels = config.model.width * 2**level
    policy = unet.POLICIES[config.precision]
    layers = [keras.layers.Conv2D(channels, 3, padding='same', activation='relu', dtype=policy)]
    if config.model.norm == 'batch':
        layers.append(batch_norm.BatchNorm(config.model.norm_momentum, False, dtype=policy))
    block = keras.Sequential(layers)
    block.build((None, None, None, channels))
    weights = [variable.value for variable in block.trainable_variables]
    images = tf.random.stateless_normal([*size, channels], [0, 0], dtype=block.compute_dtype)

    @tf.function(jit_compile=jit_compile)
    def forward_and_backward(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            output = block(images, training=True)
        return [tf.reduce_sum(tf.cast(x, tf.float32)) for x in tape.gradient(output, [images, *weights])]

    def call() -> None:
        forward_and_backward(images)[0].numpy()

    return timing.measure(call, images=size[0], seconds=_SECONDS).milliseconds(50) / 1000 / size[0]


def _device() -> str:
    return 'GPU' if device_memory.local_gpus() else 'CPU'
