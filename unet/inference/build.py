"""Config and model -> functions of images."""

from collections.abc import Callable

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from unet.inference import options
from unet.inference import predictor as inference_predictor
from unet.models import build as model_build
from unet.models import unet


def predictor(
    config: ConfigDict,
    model: keras.Model,
    table: labels.Table,
    inference: options.InferenceOptions = options.WHOLE_IMAGE,
    *,
    jit_windows: bool = False,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of uint8 images [b, h, w, 3] of any size that returns label ids, uint8 [b, h, w].

    Args:
      config, model, table: the run's.
      inference: the sliding window and test-time augmentation.
      jit_windows: compile the model for windows with XLA, see `predictor.make_logits`.
    """
    ids = tf.constant(model_build.id_of_class(config.labels, table))
    return inference_predictor.make_predictor(logits(config, model, inference, jit_windows=jit_windows), ids)


def logits(
    config: ConfigDict,
    model: keras.Model,
    inference: options.InferenceOptions = options.WHOLE_IMAGE,
    *,
    jit_windows: bool = False,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of uint8 images [b, h, w, 3] of any size that returns logits [b, h, w, classes], of which
    `predictor` takes the largest."""
    return inference_predictor.make_logits(
        unet.for_inference(model),
        inference,
        padding=config.model.padding,
        depth=config.model.depth,
        stem=config.model.stem,
        tile=tuple(config.data.crop),
        resize=tuple(config.eval.resize),
        resize_method=config.data.resize_method,
        jit_windows=jit_windows,
    )


def jit_predictions(config: ConfigDict) -> bool:
    """Returns whether XLA compiles predictions, which it does anew for each image size.

    'auto': on GPUs alone, see `model_build.jit`.
    """
    return model_build.jit(config, replicas=1) == 'whole'
