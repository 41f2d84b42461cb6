"""A trained model from its workdir.

config, table, model, path = restore.trained('runs/cityscapes', 'best')
"""

import os

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from launch import entry, files
from unet.models import build as model_build
from unet.models import unet
from unet.training import checkpoint
from unet.training import workdir as workdir_files

_FOLDERS = {'best': workdir_files.BEST, 'latest': workdir_files.CHECKPOINTS}


def trained(workdir: str, which: str) -> tuple[ConfigDict, labels.Table, keras.Model, str]:
    """Loads a run's model with the weights of a checkpoint, or their running means if the run keeps them.

    Args:
      workdir: the run's folder.
      which: 'best', 'latest' or the path of a checkpoint.

    Returns:
      The run's config and label table, the model from images to logits, and the checkpoint's path.

    Raises:
      UserError: MISSING_INPUT if there is no such run or checkpoint, BAD_DATA if it cannot be restored.
    """
    config = workdir_files.read_config(workdir)
    table = labels.read(os.path.join(workdir, labels.FILE))
    model = model_build.build_model(config, table, replicas=1)  # statistics are only synchronised in training
    weights = [variable.value for variable in model.trainable_variables]
    state = tf.Module()
    state.ema = [tf.Variable(weight) for weight in weights] if config.optimizer.ema else []
    contents = tf.train.Checkpoint(model=model, state=state)
    path = which
    if which in _FOLDERS:
        folder = os.path.join(workdir, _FOLDERS[which])
        path = checkpoint.restore(folder, contents)
        if path is None:
            raise entry.UserError(
                entry.MISSING_INPUT, f'{folder}: no checkpoint yet. Train further, or pass --checkpoint=latest.'
            )
    else:
        checkpoint.restore_path(which, contents)
    for weight, mean in zip(weights, state.ema, strict=bool(state.ema)):
        weight.assign(mean)
    return config, table, unet.for_inference(model), path


def step_of(path: str) -> int:
    """Returns the steps that a checkpoint's model was trained for."""
    with files.without_patterns(path) as readable:
        return int(tf.train.load_variable(readable, 'state/step/.ATTRIBUTES/VARIABLE_VALUE'))


def init_from(source: str, model: keras.Model) -> str:
    """Takes over the weights and statistics of another run that fit, by name and shape.

    Args:
      source: its workdir; the best checkpoint is taken, or the latest if there is no best yet.
      model: what is filled.

    Returns:
      What was taken and what was not, for people.

    Raises:
      UserError: MISSING_INPUT if there is no such checkpoint, BAD_CONFIG if nothing in it fits.
    """
    which = 'best' if checkpoint.list_newest_first(os.path.join(source, workdir_files.BEST)) else 'latest'
    _, _, other, path = trained(source, which)
    theirs = {variable.path: variable for variable in other.variables}
    left_out = []
    for variable in model.variables:
        found = theirs.get(variable.path)
        if found is not None and found.shape == variable.shape:
            variable.assign(found.value)
        else:
            left_out.append(f'{variable.path}: {found.shape if found is not None else "missing"} -> {variable.shape}')
    if len(left_out) == len(model.variables):
        raise entry.UserError(entry.BAD_CONFIG, f'config.init_from={path}: none of its weights fit this model')
    taken = f'Weights from {path}: {len(model.variables) - len(left_out)} of {len(model.variables)} fit'
    return taken + ''.join(f'\n  left out: {line}' for line in left_out)
