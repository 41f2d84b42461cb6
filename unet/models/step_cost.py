"""What a training step will cost, from the config alone: parameters, arithmetic, memory, traffic.

    cost = model_build.estimate_cost(config, num_classes=19)
    step_cost.step_bytes(cost, images=4)                # memory of a device that computes 4 images at a time
    step_cost.largest_microbatch(cost, memory=16 * 2**30)

The memory of a step is that of the state (weights, slots, means, gradients) and, per image, what the backward pass
needs of the forward pass: the output of every convolution, normalisation, pooling and joining. With recomputation that
is only the output of every level, what one level needs while it is computed again, and until then what is not computed
again: the last level's second half and the heads. On top comes what is in flight: the gradients of the largest level's
tensors, in at least float32, and the loss.
"""

import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from unet.models.unet import AUXILIARY_CHANNELS, LAST_LEVEL

_LAST_HALF = 'last'  # of the last level, which is not computed again
_BYTES = {'float32': 4, 'bfloat16': 2, 'float16': 2, 'float64': 8}


@dataclasses.dataclass(frozen=True)
class Op:
    """One layer.

    Attributes:
      part: the level it belongs to, what recomputation drops, or keeps, as a whole.
      parameters: trainable numbers.
      flops: floating-point operations per image forward; a multiply-add is two.
      elements: numbers per image of its output.
      sums: over devices, forward, and as many backward.
    """

    part: str
    parameters: int
    flops: int
    elements: int
    sums: int = 0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one training step; bytes are of one device.

    Attributes:
      parameters: trainable numbers.
      forward_flops, step_flops: floating-point operations per image, of a prediction and of a training step.
      state_bytes: weights, gradients, slots and means, whatever the number of images.
      activation_bytes: kept for the backward pass, per image.
      in_flight_bytes: at the peak on top of it, per image.
      all_reduce_bytes: summed over devices per step, whatever the number of images.
      norm_sums: small sums over devices per forward and backward pass, those of batch normalisation.
      checkpoint_bytes: of one checkpoint on disk.
    """

    parameters: int
    forward_flops: int
    step_flops: int
    state_bytes: int
    activation_bytes: int
    in_flight_bytes: int
    all_reduce_bytes: int
    norm_sums: int
    checkpoint_bytes: int


def cost(config: ConfigDict, num_classes: int) -> Cost:
    """The cost of a config's training step with the crop as input."""
    ops = list(_ops(config, num_classes))
    size, wide = _BYTES[config.precision], 8 if config.precision == 'float64' else 4
    parameters = sum(op.parameters for op in ops)
    forward = sum(op.flops for op in ops)
    parts = {}
    for op in ops:
        parts.setdefault(op.part, []).append(op.elements)
    largest = max(op.elements for op in ops)
    if config.runtime.recompute:
        kept = sum(part[-1] if _recomputed(name) else sum(part) for name, part in parts.items())
        gone = sum(parts[_LAST_HALF]) + parts[LAST_LEVEL][-1]  # before anything is computed again
        again = max(0, max(sum(part[:-1]) for name, part in parts.items() if _recomputed(name)) - gone)
        gradients = largest
    else:
        kept = sum(map(sum, parts.values()))
        again, gradients = 0, 2 * largest
    height, width = config.data.crop
    pixels = height * width
    slots = {'adam': 2, 'adamw': 2, 'sgd': 1}[config.optimizer.name] + (config.optimizer.ema > 0)
    image = pixels * (3 * wide + 3 + 1 + 4)  # normalised; as read; label; class
    logits = pixels * num_classes * wide
    return Cost(
        parameters=parameters,
        forward_flops=forward,
        step_flops=sum(_passes(config, op) * op.flops for op in ops),
        state_bytes=parameters * wide * (3 + slots),  # weights, their gradients, those of a part or packed to be summed
        activation_bytes=size * kept + image + logits,
        in_flight_bytes=size * again + wide * gradients + logits,
        all_reduce_bytes=parameters * wide,
        norm_sums=sum((_passes(config, op) - 1) * op.sums for op in ops),
        checkpoint_bytes=parameters * wide * (1 + slots),
    )


def step_bytes(cost: Cost, images: int) -> int:
    """Memory of a device that computes so many images at a time."""
    return cost.state_bytes + images * (cost.activation_bytes + cost.in_flight_bytes)


def largest_microbatch(cost: Cost, memory: int) -> int:
    """Images that a device of so many bytes can compute at a time; 0 if not even one."""
    return max(0, (memory - cost.state_bytes) // (cost.activation_bytes + cost.in_flight_bytes))


def microbatches(cost: Cost, images: int, memory: int) -> Iterator[int]:
    """Numbers of equal parts of so many images whose parts fit a device of so many bytes, from the smallest."""
    most = largest_microbatch(cost, memory)
    return (number for number in range(1, images + 1) if images % number == 0 and images // number <= most)


def step_seconds(config: ConfigDict, num_classes: int, level_seconds: list[float]) -> float:
    """Time to train on one image, from that of one convolution per level.

    Args:
      config: the config.
      num_classes: channels of the network's output.
      level_seconds: of a 3x3 convolution from level i's channels to as many at level i's resolution, with ReLU and
        normalisation, forward and backward, see `speed.level_seconds`. Every layer is taken to run at the rate of its
        level's.
    """
    height, width = config.data.crop
    seconds = 0.0
    for op in _ops(config, num_classes):
        level = {'head': 0, _LAST_HALF: 0, 'auxiliary': 1}.get(op.part)
        level = int(op.part.removeprefix('down').removeprefix('up')) if level is None else level
        channels, pixels = config.model.width * 2**level, height * width / 4**level
        seconds += _passes(config, op) / 3 * op.flops / (18 * channels**2 * pixels) * level_seconds[level]
    return seconds


def scaling_efficiency(
    cost: Cost, *, step_seconds: float, hosts: int, bytes_per_second: float, latency: float, microbatches: int
) -> float:
    """Throughput of several hosts over so many times that of one, each with the same share of a larger batch.

    A sum goes round a ring of n hosts in 2 (n - 1) messages, each a host's n-th part of it
    (https://doi.org/10.1016/j.jpdc.2008.09.002). The gradients are summed once all of them are there. What hosts wait
    for each other because one is slower is not counted.

    Args:
      cost: of the step.
      step_seconds: of one host by itself.
      hosts: n.
      bytes_per_second: that a host can send.
      latency: seconds that a message takes besides.
      microbatches: parts that a step is computed in, each with its sums of batch normalisation.
    """
    sums = microbatches * cost.norm_sums + 2  # of the labels that count, and of the gradients
    message_seconds = cost.all_reduce_bytes / hosts / bytes_per_second + sums * latency
    return step_seconds / (step_seconds + 2 * (hosts - 1) * message_seconds)


def _passes(config: ConfigDict, op: Op) -> int:
    """How many forward passes a step's work on a layer amounts to; the backward pass to two."""
    return 4 if config.runtime.recompute and _recomputed(op.part) else 3


def _recomputed(part: str) -> bool:
    return part.startswith(('down', 'up'))


def _ops(config: ConfigDict, num_classes: int) -> Iterator[Op]:
    """The layers of `model.unet`, in order."""
    model = config.model
    loss = 1 if model.padding == 'valid' else 0  # pixels that a 3x3 convolution loses on each side
    height, width = config.data.crop
    skips = []

    def normalisation(part, channels, pixels):
        if model.norm != 'none':
            sums = 1 if model.norm == 'batch' else 0
            yield Op(part, 2 * channels, 8 * channels * pixels, channels * pixels, sums)

    def convolution(part, inputs, outputs, size, height, width, norm=True):
        """A convolution with its ReLU, and the normalisation after it."""
        pixels = height * width
        parameters = inputs * outputs * size * size + outputs
        yield Op(part, parameters, 2 * inputs * outputs * size * size * pixels, outputs * pixels)
        if norm:
            yield from normalisation(part, outputs, pixels)

    def convolutions(part, inputs, outputs, height, width):
        yield from convolution(part, inputs, outputs, 3, height - 2 * loss, width - 2 * loss)
        height, width = height - 4 * loss, width - 4 * loss
        if model.residual and inputs != outputs:
            yield from convolution(part, inputs, outputs, 1, height, width, norm=False)
        if part == LAST_LEVEL:
            part = _LAST_HALF
        if model.residual:
            yield Op(part, 0, outputs * height * width, outputs * height * width)
        yield from convolution(part, outputs, outputs, 3, height, width)

    inputs = 3
    for level in range(model.depth):
        part, outputs = f'down{level}', model.width * 2**level
        if level:
            skips.append((height, width))
            height, width = height // 2, width // 2
            yield Op(part, 0, 3 * inputs * height * width, inputs * height * width)
        yield from convolutions(part, inputs, outputs, height, width)
        height, width, inputs = height - 4 * loss, width - 4 * loss, outputs
    for level in reversed(range(model.depth - 1)):
        part, outputs = f'up{level}', model.width * 2**level
        height, width = 2 * height, 2 * width
        pixels = height * width
        if model.up == 'resize':
            yield Op(part, 0, 8 * inputs * pixels, inputs * pixels)
            yield from convolution(part, inputs, outputs, 1, height, width)
        else:  # each output pixel of a 2x2 transposed convolution of stride 2 has one input pixel
            yield Op(part, 4 * inputs * outputs + outputs, 2 * inputs * outputs * pixels, outputs * pixels)
            yield from normalisation(part, outputs, pixels)
        inputs = 2 * outputs if model.skip == 'concat' else outputs
        yield Op(part, 0, 0, inputs * pixels)
        yield from convolutions(part, inputs, outputs, height, width)
        height, width, inputs = height - 4 * loss, width - 4 * loss, outputs
        if level == 1 and config.loss.auxiliary:
            channels = AUXILIARY_CHANNELS
            yield from convolution('auxiliary', inputs, channels, 3, height - 2 * loss, width - 2 * loss)
            yield from convolution(
                'auxiliary', channels, num_classes, 1, height - 2 * loss, width - 2 * loss, norm=False
            )
    yield from convolution('head', inputs, num_classes, 1, height, width, norm=False)
