"""Proves on the devices at hand, in minutes, what training relies on; nobody can try every cluster beforehand.

    for check in selfcheck.run(config, table, strategy):
        print(check)

A small model, otherwise as the config says, takes a few steps on random images under the strategy that training would
use. In float64 the weights must be those that one device computes; in float16 an overflow on any one replica must be
withheld on all of them. What is trained are variants of the config, which are made here and go to the builders.
"""

import json
import os
import pathlib
import shlex
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from configs import validation
from data_prep import labels
from launch import entry, files
from unet.data import build as data_build
from unet.diagnostics.checks import Check
from unet.distributed import sums
from unet.models import build as model_build
from unet.training import build as training_build
from unet.training import checkpoint, gradient_update, step

FILE = 'selfcheck.json'  # in a workdir: what the self-check has passed on
_STEPS = 3
_WIDTH = 8
_REDUCED_BYTES = 64 * 2**20  # of the all-reduce that is timed
_EQUAL = 1e-9  # largest difference of a weight in float64


def run(config: ConfigDict, table: labels.Table, strategy: tf.distribute.Strategy) -> Iterator[Check]:
    """Trains small models on the devices of a strategy; all processes of a cluster must call it together.

    Args:
      config: a valid one.
      table: the label table.
      strategy: the devices.

    Yields:
      Each check as it is made.
    """
    config = small(config, strategy.num_replicas_in_sync)
    exact, alone = _with(config, {'precision': 'float64'}), tf.distribute.get_strategy()
    many, one = Training(exact, table, strategy), Training(_with(exact, {'runtime.jit_compile': 'off'}), table, alone)
    recomputed = Training(_with(exact, {'runtime.recompute': True}), table, strategy)
    # On one device, whose step holds no collectives.
    compiled = Training(_with(exact, {'runtime.jit_compile': 'auto'}), table, alone)
    if many.replicas > 1:
        yield _equal(
            f'{many.replicas} devices train as one',
            [many, one],
            'The devices do not sum alike: update the driver and NCCL, or try NCCL_P2P_DISABLE=1.',
        )
    else:
        yield Check('devices train as one', True, 'there is one: nothing to compare, nothing to sum')
    yield _equal('recomputed activations give the same', [recomputed, many], 'Leave config.runtime.recompute=False.')
    yield _equal('the compiled step gives the same', [compiled, one], 'Set config.runtime.jit_compile=off.')
    yield _restored_goes_on_the_same(many)
    yield from _overflows_are_withheld(Training(_with(config, {'precision': 'float16'}), table, strategy))
    if many.replicas > 1:
        yield _bandwidth(strategy)


def machine(strategy: tf.distribute.Strategy) -> dict[str, object]:
    """Returns what a self-check holds for: devices of this kind, as many, under this TensorFlow."""
    gpus = tf.config.list_physical_devices('GPU')
    names = sorted(str(tf.config.experimental.get_device_details(gpu).get('device_name')) for gpu in gpus)
    return {'tensorflow': tf.__version__, 'devices': names, 'replicas': strategy.num_replicas_in_sync}


def remember(workdir: str, strategy: tf.distribute.Strategy) -> None:
    """Notes in the workdir that the self-check has passed with sums that XLA compiles."""
    os.makedirs(workdir, exist_ok=True)
    files.write_atomically(os.path.join(workdir, FILE), json.dumps(machine(strategy)) + '\n')


def require(config: ConfigDict, workdir: str, strategy: tf.distribute.Strategy) -> None:
    """Raises UserError BAD_CONFIG where XLA would compile sums over devices and no self-check has tried it here."""
    if not model_build.jit_collectives(config, strategy.num_replicas_in_sync):
        return
    path = pathlib.Path(workdir, FILE)
    if not path.exists() or json.loads(path.read_text()) != machine(strategy):
        raise entry.UserError(
            entry.BAD_CONFIG,
            'config.runtime.jit_compile=on: training is reported to hang where XLA compiles the sums over several '
            "GPUs. Leave it at 'auto', which compiles what lies between them, or let python -m unet.preflight "
            f'--selfcheck {shlex.quote(f"--workdir={workdir}")} try it on these devices first, with the same --config.',
        )


def small(config: ConfigDict, replicas: int) -> ConfigDict:
    """The config with a small model and small images, two per replica, and without what would hide a difference."""
    config = config.copy_and_resolve_references()
    config.model.width = min(config.model.width, _WIDTH)
    config.global_batch = 2 * replicas
    config.runtime.microbatches = 1
    config.loss.balanced = False
    config.model.norm_over = 'global_batch'  # else what is learnt depends on the number of devices
    config.model.dropout = 0.5  # for the second input, which lets infinity in
    config.optimizer.schedule, config.optimizer.warmup_steps = 'constant', 0
    depth, padding, stem = config.model.depth, config.model.padding, config.model.stem
    config.data.crop = (next(s for s in range(32, 1024) if validation.output_size(s, depth, padding, stem) > 8),) * 2
    return config


def _share(config: ConfigDict, number: int, replica: int, replicas: int, poisoned: bool) -> dict[str, tf.Tensor]:
    """A replica's share of the global batch `number`; a poisoned one has an infinite activation."""
    size = config.global_batch // replicas
    batch = data_build.noise_batch(config, config.global_batch, seed=number)
    batch = {name: values[replica * size : (replica + 1) * size] for name, values in batch.items()}
    if poisoned:
        batch['dropout_mask'][0, 0, 0, 0] = np.inf
    return {name: tf.constant(values) for name, values in batch.items()}


class Training:
    """A model in training under a strategy, one step at a time."""

    def __init__(self, config: ConfigDict, table: labels.Table, strategy: tf.distribute.Strategy):
        self._config, self._strategy = config, strategy
        self.replicas = strategy.num_replicas_in_sync
        with strategy.scope():
            model = model_build.build_model(config, table, replicas=self.replicas)
            self.state = training_build.make_train_state(config, model)
        self.contents = tf.train.Checkpoint(model=model, state=self.state)
        replica_step = training_build.make_replica_step(config, model, self.state, table, self.replicas, None)
        self._step = tf.function(lambda batch: strategy.run(replica_step, args=(batch, tf.constant(0.0))))

    def take_step(self, number: int, poisoned: int | None = None) -> dict[str, float]:
        """Trains on batch `number`, in which replica `poisoned` overflows, and returns step.METRICS by name."""

        def share(context):
            replica = context.replica_id_in_sync_group
            return _share(self._config, number, replica, self.replicas, poisoned == replica)

        row = self._step(self._strategy.experimental_distribute_values_from_function(share))
        return dict(zip(step.METRICS, self._strategy.experimental_local_results(row)[0].numpy(), strict=False))

    def values(self) -> list[np.ndarray]:
        """Returns the weights, statistics, slots and running means of this process's first replica."""
        return [_local(variable)[0] for variable in self._variables()]

    def spread(self) -> float:
        """Returns the largest difference of a value between this process's replicas."""
        copies = map(_local, self._variables())
        return max(float(np.abs(value - values[0]).max()) for values in copies for value in values)

    def _variables(self) -> list[tf.Variable]:
        weights = [variable.value for variable in self.contents.model.variables]
        return [*weights, *(variable for slot in self.state.slots for variable in slot), *self.state.ema]


def _local(variable: tf.Variable) -> list[np.ndarray]:
    return [copy.numpy() for copy in getattr(variable, 'values', [variable])]


def _difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(one, other, strict=True))


def _with(config: ConfigDict, fields: dict[str, object]) -> ConfigDict:
    """A copy of the config with other values of some fields, which are named with dots."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(fields)
    return changed


def _equal(name: str, trainings: list[Training], remedy: str) -> Check:
    for training in trainings:
        while training.state.step.numpy() < _STEPS:
            training.take_step(int(training.state.step.numpy()))
    difference = _difference(*(training.values() for training in trainings))
    found = f'largest difference {difference:.1e} after {_STEPS} steps in float64'
    return Check(name, difference < _EQUAL, found, remedy)


def _restored_goes_on_the_same(training: Training) -> Check:
    with tempfile.TemporaryDirectory() as folder:  # each process of its own
        path = checkpoint.save(folder, training.contents, step=_STEPS, keep=1)
        ends = []
        for _ in range(2):
            training.take_step(_STEPS)
            ends.append(training.values())
            checkpoint.restore_path(path, training.contents)
    difference = _difference(*ends)
    return Check(
        'a step taken again after restoring gives the same',
        difference < _EQUAL,
        f'largest difference {difference:.1e}',
        'Set config.runtime.deterministic=True.',
    )


def _overflows_are_withheld(training: Training) -> Iterator[Check]:
    for replica in range(training.replicas):
        training.take_step(2 * replica)
        before = training.values()
        metrics = training.take_step(2 * replica + 1, poisoned=replica)
        withheld = not metrics['finite'] and _difference(before, training.values()) == 0 and training.spread() == 0
        scale = float(_local(training.state.scale)[0])
        yield Check(
            f'an overflow on device {replica} is withheld on all',
            bool(withheld and scale == max(metrics['loss_scale'] / 2, gradient_update.LEAST_SCALE)),
            f'loss scale {metrics["loss_scale"]:g} -> {scale:g}, weights {"kept" if withheld else "CHANGED"}',
            'Use config.precision=bfloat16 or float32.',
        )


def _bandwidth(strategy) -> Check:
    size, replicas = _REDUCED_BYTES // 4, strategy.num_replicas_in_sync
    run = tf.function(lambda: strategy.run(lambda: sums.over_replicas(tf.ones([size]), replicas)[0]))
    totals = [float(strategy.experimental_local_results(run())[0].numpy()) for _ in range(2)]
    started = time.monotonic()
    for _ in range(5):
        totals.append(float(strategy.experimental_local_results(run())[0].numpy()))
    seconds = (time.monotonic() - started) / 5
    return Check(
        'all-reduce',
        set(totals) == {float(replicas)},
        f'{_REDUCED_BYTES / 2**20:.0f} MiB over {replicas} devices in {1000 * seconds:.0f} ms, '
        f'{_REDUCED_BYTES / seconds / 1e9:.2f} GB/s',
        'The sum is wrong: update the driver and NCCL.',
    )
