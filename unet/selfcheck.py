"""Proves on the devices at hand, in minutes, what training relies on; nobody can try every cluster beforehand.

    for check in selfcheck.run(config, table, strategy):
        print(check)

A small network, otherwise as the config says, takes a few steps on random images under the strategy that training
would use. In float64 the weights must be those that one device computes; in float16 an overflow on any one replica must
be withheld on all of them.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from configs import default
from data_prep import labels
from unet import checkpoint, from_config, step

_STEPS = 3
_WIDTH = 8
_REDUCED_BYTES = 64 * 2**20  # of the all-reduce that is timed
_EQUAL = 1e-9  # largest difference of a weight in float64


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of a report; `remedy` says what to do if it failed."""

    name: str
    passed: bool
    found: str
    remedy: str = ''

    def __str__(self) -> str:
        line = f'{"pass" if self.passed else "FAIL"}  {self.name}: {self.found}'
        return line if self.passed or not self.remedy else f'{line}. {self.remedy}'


def run(config: ConfigDict, table: labels.Table, strategy: tf.distribute.Strategy) -> Iterator[Check]:
    """Yields one check after the other; all processes of a cluster must call it together."""
    config = _small(config, strategy.num_replicas_in_sync)
    yield _replicas_equal_one(config, table, strategy)
    yield from _overflows_are_withheld(config, table, strategy)
    yield _recomputation_changes_nothing(config, table, strategy)
    yield _compiled_equals_plain(config, table)
    yield _restored_equals_saved(config, table, strategy)
    yield _bandwidth(strategy)


def _small(config: ConfigDict, replicas: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.width = min(config.model.width, _WIDTH)
    config.global_batch = 2 * replicas
    config.runtime.microbatches = 1
    config.runtime.jit_compile = 'off'
    config.loss.balanced = False
    config.optimizer.schedule, config.optimizer.warmup_steps = 'constant', 0
    fits = (side for side in range(32, 1024) if default.output_size(side, config.model.depth, config.model.padding) > 8)
    config.data.crop = (next(fits),) * 2
    return config


def _batch(config: ConfigDict, number: int, replica: int, replicas: int, poisoned: bool) -> dict[str, tf.Tensor]:
    """A replica's share of the global batch `number`, of noise with a void part of another size in each image.

    A poisoned one has an infinite activation.
    """
    rng = np.random.default_rng(number)
    count, (height, width) = config.global_batch, config.data.crop
    label = rng.integers(0, 34, (count, height, width), dtype=np.uint8)
    for image, void in enumerate(label):
        void[: image * height // count] = 0
    kept = np.ones([count, 1, 1, config.model.width * 2 ** (config.model.depth - 1)], np.float32)
    batch = {
        'image': rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8),
        'label': label,
        'color': np.zeros([count, 3], np.float32),
        'kept': kept,
    }
    size = count // replicas
    batch = {name: values[replica * size : (replica + 1) * size] for name, values in batch.items()}
    if poisoned:
        batch['kept'][0, 0, 0, 0] = np.inf
    return {name: tf.constant(values) for name, values in batch.items()}


@dataclasses.dataclass
class _Run:
    """A network in training under a strategy."""

    contents: tf.train.Checkpoint
    rows: list[dict[str, float]]  # step.METRICS of each step

    def values(self) -> list[np.ndarray]:
        """Of this process's first replica: weights, statistics, slots and means."""
        return [_local(variable)[0] for variable in self._variables()]

    def spread(self) -> float:
        """Largest difference between this process's replicas."""
        return max(
            float(np.abs(value - values[0]).max()) for values in map(_local, self._variables()) for value in values
        )

    def _variables(self) -> list[tf.Variable]:
        state = self.contents.state
        weights = [variable.value for variable in self.contents.model.variables]
        return [*weights, *(variable for slot in state.slots for variable in slot), *state.ema]


def _local(variable: tf.Variable) -> list[np.ndarray]:
    return [copy.numpy() for copy in getattr(variable, 'values', [variable])]


def _train(
    config: ConfigDict,
    table: labels.Table,
    strategy: tf.distribute.Strategy,
    *,
    poisoned: int | None = None,
    jit_compile: bool = False,
    steps: int = _STEPS,
    first: int = 0,
    restored: str | None = None,
) -> _Run:
    """Trains for some steps; in the last one, replica `poisoned` overflows."""
    replicas = strategy.num_replicas_in_sync
    config = config.copy_and_resolve_references()
    config.model.dropout = 0.5  # for the second input, which lets infinity in
    with strategy.scope():
        network = from_config.network(config, table, replicas=replicas)
        weights = [variable.value for variable in network.trainable_variables]
        state = step.TrainState(config.optimizer.name, weights, ema=config.optimizer.ema > 0)
    made = _Run(tf.train.Checkpoint(model=network, state=state), [])
    if restored:
        checkpoint.restore_path(restored, made.contents)
    replica_step = from_config.replica_step(config, network, state, table, replicas, None)
    compiled = tf.function(replica_step, jit_compile=jit_compile)

    @tf.function
    def one_step(batch):
        return strategy.run(compiled, args=(batch, tf.constant(0.0)))

    for number in range(first, first + steps):

        def share(context, number=number):
            replica = context.replica_id_in_sync_group
            return _batch(config, number, replica, replicas, poisoned == replica and number == first + steps - 1)

        row = one_step(strategy.experimental_distribute_values_from_function(share))
        made.rows.append(dict(zip(step.METRICS, strategy.experimental_local_results(row)[0].numpy(), strict=False)))
    return made


def _difference(one: _Run, other: _Run) -> float:
    pairs = zip(one.values(), other.values(), strict=True)
    return max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs)


def _with(config: ConfigDict, **fields: object) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    return changed


def _replicas_equal_one(config, table, strategy) -> Check:
    config = _with(config, precision='float64')
    difference = _difference(_train(config, table, strategy), _train(config, table, tf.distribute.get_strategy()))
    return Check(
        f'{strategy.num_replicas_in_sync} devices train as one',
        difference < _EQUAL,
        f'largest difference {difference:.1e} after {_STEPS} steps in float64',
        'The devices do not sum alike: update the driver and NCCL, or try NCCL_P2P_DISABLE=1.',
    )


def _overflows_are_withheld(config, table, strategy) -> Iterator[Check]:
    config = _with(config, precision='float16')
    before = _train(config, table, strategy, steps=_STEPS - 1)
    for replica in range(strategy.num_replicas_in_sync):
        after = _train(config, table, strategy, poisoned=replica)
        last = after.rows[-1]
        withheld = not last['finite'] and _difference(before, after) == 0 and after.spread() == 0
        scale = float(_local(after.contents.state.scale)[0])
        yield Check(
            f'an overflow on device {replica} is withheld on all',
            withheld and scale == last['loss_scale'] / 2,
            f'loss scale {last["loss_scale"]:g} -> {scale:g}, weights {"kept" if withheld else "CHANGED"}',
            'Use config.precision=bfloat16 or float32.',
        )


def _recomputation_changes_nothing(config, table, strategy) -> Check:
    runs = [
        _train(_with(config, precision='float64', runtime__recompute=recompute), table, strategy)
        for recompute in (False, True)
    ]
    difference = _difference(*runs)
    return Check(
        'recomputed activations give the same',
        difference < _EQUAL,
        f'largest difference {difference:.1e} after {_STEPS} steps in float64',
        'Leave config.runtime.recompute=False.',
    )


def _compiled_equals_plain(config, table) -> Check:
    """On one device, whose step holds no collectives."""
    config = _with(config, precision='float64')
    alone = tf.distribute.get_strategy()
    difference = _difference(_train(config, table, alone), _train(config, table, alone, jit_compile=True))
    return Check(
        'the compiled step gives the same',
        difference < _EQUAL,
        f'largest difference {difference:.1e} after {_STEPS} steps in float64',
        'Set config.runtime.jit_compile=off.',
    )


def _restored_equals_saved(config, table, strategy) -> Check:
    config = _with(config, precision='float64')
    whole = _train(config, table, strategy)
    with tempfile.TemporaryDirectory() as folder:  # each process of its own
        part = _train(config, table, strategy, steps=_STEPS - 1)
        path = checkpoint.save(folder, part.contents, step=_STEPS - 1, keep=1)
        resumed = _train(config, table, strategy, steps=1, first=_STEPS - 1, restored=path)
    difference = _difference(whole, resumed)
    return Check(
        'a saved and restored run goes on the same',
        difference < _EQUAL,
        f'largest difference {difference:.1e} to the run that was not interrupted',
        'Set config.runtime.deterministic=True if it is to be exact.',
    )


def _bandwidth(strategy) -> Check:
    size = _REDUCED_BYTES // 4

    def reduce():
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([size]))[0]

    run = tf.function(lambda: strategy.run(reduce))
    sums = [float(strategy.experimental_local_results(run())[0].numpy()) for _ in range(2)]
    started = time.monotonic()
    for _ in range(5):
        sums.append(float(strategy.experimental_local_results(run())[0].numpy()))
    seconds = (time.monotonic() - started) / 5
    replicas = strategy.num_replicas_in_sync
    return Check(
        'all-reduce',
        set(sums) == {float(replicas)},
        f'{_REDUCED_BYTES / 2**20:.0f} MiB over {replicas} devices in {1000 * seconds:.0f} ms, '
        f'{_REDUCED_BYTES / seconds / 1e9:.2f} GB/s',
        'The sum is wrong: update the driver and NCCL.',
    )
