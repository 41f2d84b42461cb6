"""How fast a device computes what a U-Net is made of.

import tensorflow as tf
from unet.diagnostics import device_speed
from unet.models import unet

device_speed.matrix_flops('float32')  # FLOP/s of a large matrix product
model = unet.build_unet(unet.Architecture(19, width=8, depth=3), image_size=(64, 96))
strategy = tf.distribute.get_strategy()
device_speed.step_seconds(model, strategy, global_batch=4, microbatches=1, jit='off', synchronized=False)
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from unet.diagnostics import timing
from unet.distributed import cluster
from unet.models import batch_norm, layers, step_cost, unet
from unet.training import device_memory

_MATRIX = {'GPU': 8192, 'CPU': 2048}  # rows and columns of the matrices
_PRODUCTS = {'GPU': 20, 'CPU': 1}  # per call: one takes a GPU about as long as calling it and waiting for the answer
_SECONDS = 0.5  # for which each thing is timed
_IMAGES = 4  # that a convolution is timed on at the most; one alone takes up to 4 times as long as one of these
_PIXELS = {'GPU': 2**23, 'CPU': 2**18}  # of all of them, at the most; above it the time is proportional to them


def matrix_flops(precision: str) -> float:
    """Measures the FLOP/s of a large matrix product on one device, which a step's convolutions could reach at the best.

    On a CPU it measures float32 (or float64): the 16-bit types have no fast product on most.
    """
    device = _device()
    size, count = _MATRIX[device], _PRODUCTS[device]
    products = chained_products(size, count, precision if device == 'GPU' or precision == 'float64' else 'float32')
    best = timing.measure(lambda: products().numpy() and None, images=1, seconds=_SECONDS).seconds.min()
    return count * 2 * size**3 / float(best)


def chained_products(size: int, count: int, dtype: str) -> Callable[[], tf.Tensor]:
    """Returns a function that multiplies a matrix of noise [size, size] `count` times by another, so that its values
    stay near 1, and returns their sum."""
    first, factor = (tf.random.stateless_normal([size, size], [0, seed]) for seed in range(2))
    first, factor = tf.cast(first, dtype), tf.cast(factor / size**0.5, dtype)

    @tf.function
    def products(matrix: tf.Tensor) -> tf.Tensor:
        for _ in range(count):
            matrix = tf.linalg.matmul(matrix, factor)
        return tf.reduce_sum(matrix)

    return lambda: products(first)


def step_seconds(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    *,
    global_batch: int,
    microbatches: int,
    jit: str,
    synchronized: bool,
) -> float:
    """Estimates how long a step takes, but for what workers exchange, from convolutions that are timed here.

    Args:
      model: for images of one size, see `step_cost.estimate`.
      strategy: what computes the step.
      global_batch: images of a step.
      microbatches: number of parts that a replica computes its share in; 0 (not known yet) counts as 1.
      jit: what XLA compiles of the step, 'whole', 'pieces' or 'off', see `unet/models/build.py`.
      synchronized: whether normalisation is over all replicas.
    """
    replicas = strategy.num_replicas_in_sync
    images = max(1, global_batch // replicas // max(microbatches, 1))
    image_seconds = step_cost.step_seconds(model, level_seconds(model, images, jit, synchronized))
    # The parts that a CPU is split into share its cores; GPUs compute side by side.
    sharing = replicas if _device() == 'GPU' else cluster.rank_and_count(strategy)[1]
    return global_batch / sharing * image_seconds


def level_seconds(model: keras.Model, images: int, jit: str, synchronized: bool) -> list[float]:
    """Times a convolution on one device for each level of the model: 3x3, from the level's channels to as many, with
    ReLU and batch normalisation if the model has it, forward and backward.

    Args:
      model: for images of one size, see `step_cost.estimate`.
      images: computed at a time.
      jit: what XLA compiles of it.
      synchronized: it is normalised as over several replicas, in pieces between which there would be sums.

    Returns:
      Seconds per image.
    """
    height, width, _ = model.inputs[0].shape[1:]
    images = min(images, _IMAGES)
    shrunk = max(1.0, (images * height * width / _PIXELS[_device()]) ** 0.5)
    height, width = int(height / shrunk), int(width / shrunk)
    return [
        shrunk**2
        * _convolution_seconds(block, [images, height // block.stride, width // block.stride], jit, synchronized)
        for block in unet.encoder_levels(model)
    ]


def _convolution_seconds(level: layers.RecomputeBlock, size: list[int], jit: str, synchronized: bool) -> float:
    channels, policy = level.part.output.shape[-1], level.dtype_policy
    normalized = any(isinstance(layer, batch_norm.BatchNorm) for layer in level.part.layers)
    activation = None if normalized else 'relu'
    timed = [keras.layers.Conv2D(channels, 3, padding='same', activation=activation, dtype=policy)]
    if normalized:
        settings = {'relu': True, 'synchronized': synchronized, 'jit_compile': jit == 'pieces'}
        timed.append(batch_norm.BatchNorm(momentum=0.99, dtype=policy, **settings))
    block = keras.Sequential(timed)
    block.build((None, None, None, channels))
    weights = [variable.value for variable in block.trainable_variables]
    images = tf.random.stateless_normal([*size, channels], [0, 0], dtype=block.compute_dtype)

    @tf.function(jit_compile=jit == 'whole')
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
