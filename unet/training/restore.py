"""A trained model from its workdir."""

import os

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels
from launch import entry
from unet.models import build as model_build
from unet.models import unet
from unet.training import checkpoint, workdir

_FOLDERS = {'best': workdir.BEST, 'latest': workdir.CHECKPOINTS}


def trained(run: str, which: str) -> tuple[ConfigDict, labels.Table, keras.Model, str]:
    """A run's config, label table and network with the weights of a checkpoint, and that checkpoint's path.

    Args:
      run: the workdir.
      which: 'best', 'latest' or the path of a checkpoint.

    Raises:
      UserError: MISSING_INPUT if there is no such run or checkpoint.
    """
    config = workdir.read_config(run)
    table = labels.read(os.path.join(run, labels.FILE))
    net = model_build.build_model(config, table, replicas=1)  # statistics are only synchronised in training
    weights = [variable.value for variable in net.trainable_variables]
    state = tf.Module()
    state.ema = [tf.Variable(weight) for weight in weights] if config.optimizer.ema else []
    contents = tf.train.Checkpoint(model=net, state=state)
    path = which
    if which in _FOLDERS:
        folder = os.path.join(run, _FOLDERS[which])
        path = checkpoint.restore(folder, contents)
        if path is None:
            raise entry.UserError(
                entry.MISSING_INPUT, f'{folder}: no checkpoint yet. Train further, or pass --checkpoint=latest.'
            )
    else:
        checkpoint.restore_path(which, contents)
    for weight, mean in zip(weights, state.ema, strict=bool(state.ema)):
        weight.assign(mean)
    return config, table, unet.for_inference(net), path


def step_of(path: str) -> int:
    """The steps that a checkpoint's model was trained for."""
    return int(tf.train.load_variable(path, 'state/step/.ATTRIBUTES/VARIABLE_VALUE'))


def init_from(source: str, net: keras.Model) -> str:
    """Takes over the weights and statistics of another run that fit, by name and shape.

    Args:
      source: its workdir; the best checkpoint is taken, or the latest if there is no best yet.
      net: the network to fill.

    Returns:
      What was taken and what was not, for people.

    Raises:
      UserError: MISSING_INPUT if there is no such checkpoint, BAD_CONFIG if nothing in it fits.
    """
    which = 'best' if checkpoint.list_newest_first(os.path.join(source, workdir.BEST)) else 'latest'
    _, _, other, path = trained(source, which)
    theirs = {variable.path: variable for variable in other.variables}
    left_out = []
    for variable in net.variables:
        found = theirs.get(variable.path)
        if found is not None and found.shape == variable.shape:
            variable.assign(found.value)
        else:
            left_out.append(f'{variable.path}: {found.shape if found is not None else "missing"} -> {variable.shape}')
    if len(left_out) == len(net.variables):
        raise entry.UserError(entry.BAD_CONFIG, f'config.init_from={path}: none of its weights fit this model')
    taken = f'Weights from {path}: {len(net.variables) - len(left_out)} of {len(net.variables)} fit'
    return taken + ''.join(f'\n  left out: {line}' for line in left_out)
