"""A trained model as a SavedModel that needs none of this project's code, and back.

    import pathlib, tempfile
    import numpy as np
    import tensorflow as tf
    from data_prep import labels
    from unet.exporting import saved_model

    ids = np.array([7, 8, 11], np.uint8)
    outputs_of = saved_model.outputs_of_logits(lambda images: tf.cast(images, tf.float32), ids)
    export = pathlib.Path(tempfile.mkdtemp())
    saved_model.save(saved_model.servable(outputs_of), labels.CITYSCAPES, export / 'saved_model/2000')
    outputs_of, table, path = saved_model.load(export)
    outputs_of(tf.zeros([1, 32, 48, 3], tf.uint8))['label_ids'].shape  # (1, 32, 48)

Everything from the image to the answer is inside: normalisation, padding or tiles, resizing, the gather to label ids.
Signatures, in TensorFlow Serving's conventions (one numbered folder per version, the batch first, `_bytes` for what
travels in base64):

    serving_default  images uint8 [b, h, w, 3] -> label_ids uint8 [b, h, w], probabilities float32 [b, h, w, classes]
    label_ids        images uint8 [b, h, w, 3] -> label_ids uint8 [b, h, w]
    encoded          image_bytes string [b], PNG or JPEG files of any sizes -> label_ids_bytes string [b], PNG files

Files are decoded as unet.predict decodes them: turned upright, and from 16 bits per channel only if these are used.
"""

import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.util import get_grappler_config, run_graph_optimizations
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from data_prep import labels, orientation, png
from launch import entry, files
from unet.data import decoding

FOLDER = 'saved_model'
_EXTRA = 'assets.extra'  # where TensorFlow Serving leaves the user's own files alone
_LARGEST = 2**31 - 2**20  # bytes of a protobuf message, less a margin for all that is not weights

Outputs = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def outputs_of_logits(logits_of: Callable[[tf.Tensor], tf.Tensor], id_of_class: np.ndarray) -> Outputs:
    """Returns a function of uint8 images [b, h, w, 3] that returns `label_ids` and `probabilities`, see above.

    Args:
      logits_of: uint8 images [b, h, w, 3] -> logits [b, h, w, classes].
      id_of_class: uint8 [classes], the label id of each class.
    """
    ids = tf.constant(id_of_class)

    def outputs_of(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = logits_of(images)
        label_ids = tf.gather(ids, tf.argmax(logits, -1, tf.int32))
        return {'label_ids': label_ids, 'probabilities': tf.nn.softmax(tf.cast(logits, tf.float32))}

    return outputs_of


def frozen(outputs_of: Outputs, spec: tf.TensorSpec) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Freezes the graph of `outputs_of`: weights are constants, what depends on them alone is computed, no devices are
    named.

    Args:
      outputs_of: a function of images.
      spec: shape and dtype of the images.

    Returns:
      A function of such images that returns [label_ids, probabilities].

    Raises:
      UserError: BAD_CONFIG if the weights are too large for one graph.
    """
    traced = tf.function(lambda images: list(outputs_of(images).values())).get_concrete_function(spec)
    size = sum(variable.dtype.size * variable.shape.num_elements() for variable in traced.graph.variables)
    if size > _LARGEST:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'the weights take {size / 2**30:.1f} GiB; a graph with constants holds 2 GiB. Train a model of less width '
            'or depth to export it.',
        )
    constants = convert_variables_to_constants_v2(traced)
    inputs = [tensor for tensor in constants.inputs if tensor.dtype != tf.resource]
    graph_def = run_graph_optimizations(
        constants.graph.as_graph_def(),
        inputs,
        constants.outputs,
        config=get_grappler_config(['constfold', 'function']),
        graph=constants.graph,
    )
    for node in [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]:
        node.device = ''  # or a model exported on a GPU would ask for one

    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=''), [])
    graph = imported.graph.as_graph_element
    return imported.prune([graph(inputs[0].name)], [graph(tensor.name) for tensor in constants.outputs])


def servable(outputs_of: Outputs, shape: tuple[int | None, ...] = (None, None, None, 3), dtype=tf.uint8) -> tf.Module:
    """Returns a module whose `outputs` takes images and returns the dictionary of `outputs_of`, its graph frozen.

    Args:
      outputs_of: see `outputs_of_logits`.
      shape: of the images; None for any size.
      dtype: of the images.

    Raises:
      UserError: see `frozen`.
    """
    spec = tf.TensorSpec(shape, dtype, 'images')
    graph = frozen(outputs_of, spec)
    module = tf.Module()
    batch, height, width, _ = shape

    def outputs(images: tf.Tensor) -> dict[str, tf.Tensor]:
        label_ids, probabilities = graph(images)
        return {
            'label_ids': tf.ensure_shape(label_ids, [batch, height, width]),
            'probabilities': tf.ensure_shape(probabilities, [batch, height, width, probabilities.shape[-1]]),
        }

    module.outputs = tf.function(outputs, input_signature=[spec])
    return module


def save(module: tf.Module, table: labels.Table, folder: pathlib.Path) -> None:
    """Writes a SavedModel.

    Args:
      module: from `servable`, of images of any size.
      table: the label table, which goes with it.
      folder: where to write it; its name is the version, a number.
    """

    def encoded_label_ids(file: tf.Tensor) -> tf.Tensor:
        return tf.io.encode_png(module.outputs(_decode(file)[None])['label_ids'][0, ..., None])

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, 'images')])
    def label_ids(images):
        return {'label_ids': module.outputs(images)['label_ids']}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, 'image_bytes')])
    def encoded(image_bytes):
        files = tf.map_fn(encoded_label_ids, image_bytes, fn_output_signature=tf.string, parallel_iterations=1)
        return {'label_ids_bytes': files}

    signatures = {'serving_default': module.outputs, 'label_ids': label_ids, 'encoded': encoded}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    (folder / _EXTRA).mkdir()
    files.write_atomically(folder / _EXTRA / labels.FILE, labels.to_json(table))


def _decode(file: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3]: the image of an encoded file, in a graph, which fails at a file that unet.predict refuses."""
    content = tf.cast(tf.io.decode_raw(file, tf.uint8), tf.int32)
    if content[0] == 0xFF:
        image = tf.io.decode_jpeg(file, channels=3, dct_method=decoding.ACCURATE)
    else:
        image = tf.io.decode_image(file, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, 3])
    if content[0] == 0x89 and content[24] == 16:  # a PNG's bits per channel
        tf.debugging.assert_greater_equal(
            tf.reduce_max(image), tf.constant(png.LEAST_BRIGHTEST, tf.uint8), png.TOO_DARK
        )
    turned = orientation.read(content)
    if turned >= 5:
        image = tf.transpose(image, [1, 0, 2])
    if tf.reduce_any(turned == [2, 3, 6, 7]):
        image = tf.reverse(image, [1])
    if tf.reduce_any(turned == [3, 4, 7, 8]):
        image = tf.reverse(image, [0])
    return image


def load(path: str | pathlib.Path) -> tuple[Outputs, labels.Table, pathlib.Path]:
    """Loads a model: its function of images, its label table, and the folder of the version that it is.

    Args:
      path: what unet.export wrote, the folder of versions in it, or one version.

    Raises:
      UserError: MISSING_INPUT if there is no model, BAD_DATA if it is damaged or not one of unet.export's.
    """
    version = _newest_version(pathlib.Path(path))
    try:
        with files.without_patterns(version / 'saved_model.pb') as readable:
            loaded = tf.saved_model.load(os.path.dirname(readable))
        signature = loaded.signatures['serving_default']
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise entry.UserError(entry.BAD_DATA, f'{version}: cannot be loaded ({reason}). Export it again.') from error
    if not {'label_ids', 'probabilities'} <= set(signature.structured_outputs):
        raise entry.UserError(
            entry.BAD_DATA,
            f'{version}: its outputs are {", ".join(sorted(signature.structured_outputs))}, not label_ids and '
            'probabilities. Pass a model that unet.export wrote.',
        )

    def outputs_of(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return loaded.signatures['serving_default'](images=images)

    return outputs_of, labels.read(version / _EXTRA / labels.FILE), version


def _newest_version(path: pathlib.Path) -> pathlib.Path:
    for folder in (path, path / FOLDER):
        if (folder / 'saved_model.pb').exists():
            return folder
        versions = [below for below in folder.glob('*/saved_model.pb') if below.parent.name.isdigit()]
        if versions:
            return max(versions, key=lambda file: int(file.parent.name)).parent
    raise entry.UserError(
        entry.MISSING_INPUT, f'{path}: no SavedModel here. Make one with python -m unet.export --workdir=...'
    )


def put_in_place(unfinished: pathlib.Path, folder: pathlib.Path) -> None:
    """Gives a finished folder its name, in place of one that may be there; a server never sees half of it."""
    old = folder.with_name(f'.{folder.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
