"""A model's graph -> TensorFlow Lite and ONNX, and these back into functions to compare with.

    import numpy as np
    import tensorflow as tf
    from unet.exporting import converters, saved_model

    ids = np.array([7, 8, 11], np.uint8)
    outputs_of = saved_model.outputs_of_logits(lambda images: tf.cast(images, tf.float32), ids)
    run = converters.run_tflite(converters.float16(outputs_of, size=(32, 48)))
    run(np.zeros([1, 32, 48, 3], np.uint8))['label_ids'].shape  # (1, 32, 48)

TensorFlow Lite's kernels want a fixed size; the ONNX graph takes images of any size.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from launch import entry, host
from unet.exporting import saved_model

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def float16(outputs_of: saved_model.Outputs, size: tuple[int, int]) -> bytes:
    """Converts to TensorFlow Lite with weights in float16: half the size, computed in float32, or in float16 on a
    phone's GPU.

    Args:
      outputs_of: see `saved_model.outputs_of_logits`.
      size: height and width of the images.
    """
    converter = _converter(saved_model.servable(outputs_of, (1, *size, 3)))
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def int8(
    outputs_of: saved_model.Outputs, size: tuple[int, int], calibration: Callable[[], Iterator[np.ndarray]]
) -> bytes:
    """Converts to TensorFlow Lite with weights and activations in int8: a quarter of the size, for CPUs, DSPs and NPUs.

    Args:
      outputs_of: of float32 images too, in 0..255.
      size: height and width of its images.
      calibration: gives uint8 [*size, 3] images, from which the range of each activation is taken.
    """

    def with_full_range() -> Iterator[list[np.ndarray]]:
        for image in calibration():
            image = image[None].astype(np.float32)
            image[0, 0, 0], image[0, -1, -1] = 0, 255
            yield [image]

    # Calibrated from 0 to 255, the float input becomes the image's own bytes, which stand for themselves.
    converter = _converter(saved_model.servable(outputs_of, (1, *size, 3), tf.float32))
    converter.representative_dataset = with_full_range
    # The second set is for what has no int8 kernel, e.g. the rounding of a resized image.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.inference_input_type = tf.uint8
    return converter.convert()


def _converter(module: tf.Module) -> tf.lite.TFLiteConverter:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.outputs.get_concrete_function()], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter


def run_tflite(content: bytes) -> Run:
    """Returns TensorFlow Lite's function of uint8 images [1, h, w, 3]."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that it has a second home, in the package ai_edge_litert
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=host.cores())
    signature = interpreter.get_signature_runner()
    return lambda images: signature(images=images)


def onnx(outputs_of: saved_model.Outputs) -> bytes:
    """Converts to ONNX, for images of any size."""
    import tf2onnx

    outputs = saved_model.servable(outputs_of).outputs
    proto, _ = tf2onnx.convert.from_function(outputs, input_signature=outputs.input_signature, opset=18)
    return proto.SerializeToString()


def run_onnx(content: bytes) -> Run:
    """Returns ONNX Runtime's function of uint8 images [b, h, w, 3]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {'images': images}), strict=True))


def check_onnx() -> None:
    """Raises UserError BAD_USAGE unless converter and runtime are installed."""
    try:
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise entry.UserError(
            entry.BAD_USAGE, f"--formats=onnx needs tf2onnx ({error}): pip install 'unet-cityscapes[onnx]'"
        ) from error
