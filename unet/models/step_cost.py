"""What a training step costs, by the layers of the model: parameters, arithmetic, memory, traffic.

    from unet.models import step_cost, unet

    model = unet.build_unet(unet.Architecture(19, width=8, depth=3), image_size=(64, 96))
    cost = step_cost.estimate(model, slots=2)
    step_cost.step_bytes(cost, images=4)  # memory of a device that computes 4 images at a time
    step_cost.largest_microbatch(cost, memory=16 * 2**30)

The memory of a step is that of the state (weights, slots, means, gradients) and, per image, what the backward pass
needs of the forward pass: the output of every convolution, normalisation, pooling and joining. With activation
recomputation that is only the outputs of every level, what one level needs while it is recomputed, and until then what
is not recomputed: the last level's second half and the heads. On top comes what is in flight: the gradients of the
largest level's tensors, in at least float32, and the loss.
"""

import dataclasses
import math
from collections.abc import Iterator

import keras
import tensorflow as tf

from unet.models import batch_norm, layers, unet


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one training step; bytes are of one device.

    Attributes:
      parameters: trainable numbers.
      forward_flops, step_flops: floating-point operations per image, of a prediction and of a training step; a
        multiply-add is two.
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


def estimate(model: keras.Model, *, slots: int) -> Cost:
    """Estimates the cost of a training step.

    Args:
      model: from `unet.build_unet`, for images of one size; its weights may be without values.
      slots: numbers that the optimizer and the running mean of the weights keep per weight.
    """
    height, width, _ = model.inputs[0].shape[1:]
    num_classes = model.outputs[0].shape[-1]
    wide = tf.as_dtype(model.inputs[0].dtype).size  # bytes of a weight, a gradient, a logit
    narrow = tf.as_dtype(model.layers[1].compute_dtype).size  # bytes of an activation
    work = list(_work(model))
    parameters = model.count_params() - sum(math.prod(variable.shape) for variable in model.non_trainable_variables)
    kept, recomputed = _activations(model)
    largest = max(_elements(layer) for layer, _, _ in work)
    image = height * width * (3 * wide + 3 + 1 + 4)  # normalised; as read; label; class
    logits = height * width * num_classes * wide
    return Cost(
        parameters=parameters,
        forward_flops=sum(_flops(layer) for layer, _, _ in work),
        step_flops=sum(passes * _flops(layer) for layer, _, passes in work),
        state_bytes=parameters * wide * (3 + slots),  # weights, their gradients, those of a part or packed to be summed
        activation_bytes=narrow * kept + image + logits,
        in_flight_bytes=narrow * recomputed + wide * largest * (1 if _recomputes(model) else 2) + logits,
        all_reduce_bytes=parameters * wide,
        norm_sums=sum(passes - 1 for layer, _, passes in work if isinstance(layer, batch_norm.BatchNorm)),
        checkpoint_bytes=parameters * wide * (1 + slots),
    )


def step_bytes(cost: Cost, images: int) -> int:
    """Returns the memory of a device that computes so many images at a time."""
    return cost.state_bytes + images * (cost.activation_bytes + cost.in_flight_bytes)


def largest_microbatch(cost: Cost, memory: int) -> int:
    """Returns the images that a device of so many bytes can compute at a time; 0 if not even one."""
    return max(0, (memory - cost.state_bytes) // (cost.activation_bytes + cost.in_flight_bytes))


def microbatches(cost: Cost, images: int, memory: int) -> Iterator[int]:
    """Returns the numbers of equal parts of so many images whose parts fit a device of so many bytes, from the
    smallest."""
    most = largest_microbatch(cost, memory)
    return (number for number in range(1, images + 1) if images % number == 0 and images // number <= most)


def step_seconds(model: keras.Model, level_seconds: list[float]) -> float:
    """Estimates the time to train on one image from that of one convolution per level.

    Args:
      model: see `estimate`.
      level_seconds: of a 3x3 convolution from level i's channels to as many at level i's resolution, with ReLU and
        normalisation, forward and backward, see `device_speed.level_seconds`. Every layer is taken to run at the rate
        of its level's.
    """
    height, width, _ = model.inputs[0].shape[1:]
    levels = unet.encoder_levels(model)
    seconds = 0.0
    for layer, level, passes in _work(model):
        channels, pixels = levels[level].part.output.shape[-1], height * width / levels[level].stride ** 2
        flops = 18 * channels**2 * pixels  # of the convolution, forward
        seconds += passes / 3 * _flops(layer) / flops * level_seconds[level]
    return seconds


def scaling_efficiency(
    cost: Cost, *, step_seconds: float, hosts: int, bytes_per_second: float, latency: float, microbatches: int
) -> float:
    """Returns the throughput of several hosts over so many times that of one, each with the same share of a larger
    batch.

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


def _work(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, int, int]]:
    """Yields the model's layers, each with its level and how many forward passes a step's work on it amounts to: the
    backward pass to two, and recomputation to one."""
    for layer in model.layers:
        if not isinstance(layer, layers.RecomputeBlock):
            yield layer, int(layer.name.startswith('auxiliary')), 3
            continue
        again = layer.recomputation.recomputed.layers if layer.recomputation else []
        for inner in layer.part.layers:
            yield inner, layer.level, 4 if inner in again else 3


def _recomputes(model: keras.Model) -> bool:
    return any(isinstance(layer, layers.RecomputeBlock) and layer.recomputation for layer in model.layers)


def _activations(model: keras.Model) -> tuple[int, int]:
    """Numbers per image that the backward pass finds kept, and those that recomputation adds to them at the most."""
    kept = recomputed = freed = 0
    for layer in model.layers:
        if not isinstance(layer, layers.RecomputeBlock):
            kept += _elements(layer)
        elif not layer.recomputation:
            kept += sum(map(_elements, layer.part.layers))
        else:
            stage, rest = layer.recomputation.recomputed, layer.recomputation.kept
            outputs = [math.prod(output.shape[1:]) for output in stage.outputs]
            kept += sum(outputs)
            recomputed = max(recomputed, sum(map(_elements, stage.layers)) - sum(outputs))
            if rest:  # of the last level: the backward pass is done with it before anything is recomputed
                second_half = sum(map(_elements, rest.layers))
                kept += second_half
                freed = second_half + outputs[0]  # a second output leaves its gradient behind
    return kept, max(0, recomputed - freed)


def _elements(layer: keras.layers.Layer) -> int:
    """Numbers per image that the backward pass needs of a layer's output."""
    match layer:
        case (
            keras.layers.Conv2D()
            | keras.layers.Conv2DTranspose()
            | batch_norm.BatchNorm()
            | keras.layers.GroupNormalization()
            | keras.layers.MaxPooling2D()
            | layers.MaxPoolByReshape()
            | layers.BilinearDouble()
            | keras.layers.Concatenate()
            | keras.layers.Add()
        ):
            return math.prod(layer.output.shape[1:])
    return 0  # an input, a crop, or the ReLU of a sum, which takes the place of the sum


def _flops(layer: keras.layers.Layer) -> int:
    """Floating-point operations per image forward."""
    outputs = math.prod(layer.output.shape[1:])
    match layer:
        case keras.layers.Conv2DTranspose():  # each output pixel of a 2x2 kernel of stride 2 has one input pixel
            return 2 * math.prod(layer.kernel.shape) * math.prod(layer.input.shape[1:3])
        case keras.layers.Conv2D():
            return 2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        case batch_norm.BatchNorm() | keras.layers.GroupNormalization() | layers.BilinearDouble():
            return 8 * outputs
        case keras.layers.MaxPooling2D() | layers.MaxPoolByReshape():
            return 3 * outputs
        case keras.layers.ReLU():  # and the sum before it; other ReLUs are part of a convolution
            return outputs
    return 0
