"""Config and model -> functions of images."""

from collections.abc import Callable

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from unet.inference import predictor as inference_predictor
from unet.models import build as model_build
from unet.models import unet


def predictor(
    config: ConfigDict, net: keras.Model, table: labels.Table, **looks: object
) -> Callable[[tf.Tensor], tf.Tensor]:
    """uint8 images [b, h, w, 3] of any size -> label ids, uint8 [b, h, w].

    Args:
      config, net, table: the run's.
      **looks: `window`, `overlap`, `jit_windows`, `scales` and `flip` of `inference.make_predictor`.
    """
    ids = tf.constant(model_build.id_of_class(config.labels, table))
    return inference_predictor.make_predictor(
        unet.for_inference(net), id_of_class=ids, **(_what_surrounds(config) | looks)
    )


def logits(config: ConfigDict, net: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """uint8 images [b, h, w, 3] of any size -> logits [b, h, w, classes], of which `predictor` takes the largest."""
    return inference_predictor.make_logits(unet.for_inference(net), **_what_surrounds(config))


def _what_surrounds(config: ConfigDict) -> dict[str, object]:
    return {
        'padding': config.model.padding,
        'depth': config.model.depth,
        'tile': tuple(config.data.crop),
        'resize': tuple(config.eval.resize),
        'resize_method': config.data.resize_method,
    }


def jit_predictions(config: ConfigDict, replicas: int) -> bool:
    """Whether XLA compiles predictions, which it does anew for each image size.

    'auto': as the step, but on a CPU only for bfloat16, which is slow there without XLA; else it brings nothing.
    """
    if config.runtime.jit_compile == 'auto' and not tf.config.list_physical_devices('GPU'):
        return replicas == 1 and config.precision == 'bfloat16'
    return model_build.jit_compile(config, replicas)
