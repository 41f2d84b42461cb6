"""Measures the training step of several configs: what XLA brings each, and how near the expected time comes.

    python -m benchmarks.survey --cores=1

With fewer images, and channels, than the configs have, so that a step takes seconds; precision, depth and crop are
theirs. Without XLA, with XLA's pieces between the convolutions ('auto') and with the step compiled as a whole ('on')
take turns. The time that unet.preflight would expect is that of the config as it stands; it is computed just before,
from convolutions that it times.
"""

import json
import os
import pathlib
import statistics

from absl import flags

from benchmarks import alternating
from configs import camvid, cityscapes_256, cityscapes_unet, synthetic
from launch import entry, host

_CORES = flags.DEFINE_integer('cores', 0, 'Cores to measure on; 0: all that this process may use.', lower_bound=0)
_EXPECT = flags.DEFINE_bool('expect', True, 'Compare with the expected time, too.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Times that each is measured.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

# Configs and what is changed in them.
_CASES = (
    (synthetic, {}),
    (camvid, {'global_batch': 2}),
    (cityscapes_256, {'global_batch': 2, 'model.width': 32}),
    (cityscapes_unet, {'global_batch': 1, 'model.width': 8}),
)


def main() -> None:
    there = sorted(os.sched_getaffinity(0))
    if _CORES.value > len(there):
        raise entry.UserError(entry.BAD_USAGE, f'--cores={_CORES.value}: this process may use {len(there)}')
    os.sched_setaffinity(0, there[: _CORES.value or None])  # before TensorFlow counts them
    with host.quiet_import():
        import tensorflow as tf

    from benchmarks import bare
    from data_prep import labels
    from unet.diagnostics import checks
    from unet.models import build as model_build

    tf.get_logger().setLevel('ERROR')  # it would wonder at so many steps of the same code
    strategy, cases = tf.distribute.get_strategy(), []
    print(f'{host.cores()} core(s), milliseconds per step, medians of {_ROUNDS.value} rounds')
    titles = ('XLA off', 'auto', 'on', 'off / auto', 'on / auto', 'expected', '/ auto')
    print(f'{"":<58}' + ''.join(f'{title:>11}' for title in titles))
    for module, changes in _CASES:
        config = module.get_config()
        config.update_from_flattened_dict(changes)
        expected = None
        if _EXPECT.value:
            classes = len(model_build.id_of_class(config.labels, labels.CITYSCAPES))
            expected = checks.expected_step_seconds(config, classes, strategy)
        calls = {}
        for jit in ('off', 'auto', 'on'):
            own = config.copy_and_resolve_references()
            own.runtime.jit_compile = jit
            calls[jit] = bare.training_steps(own, strategy, 1)
        alternating.run(calls, 1)  # traces and compiles, once both are there: making a model empties kernel caches
        seconds = alternating.run(calls, _ROUNDS.value)
        medians = {jit: statistics.median(times) for jit, times in seconds.items()}
        height, width = config.data.crop
        name = (
            f'{module.__name__}: {config.global_batch} of {height}x{width}, width {config.model.width}, '
            f'depth {config.model.depth}, {config.precision}'
        )
        case = {
            'config': {'file': module.__name__} | changes,
            'seconds': seconds,
            'off / auto': alternating.ratio(seconds, 'off', 'auto'),
            'on / auto': alternating.ratio(seconds, 'on', 'auto'),
        }
        line = f'{name:<58}' + ''.join(f'{1000 * median:11.0f}' for median in medians.values())
        line += f'{case["off / auto"][0]:11.2f}{case["on / auto"][0]:11.2f}'
        if expected:
            case |= {'expected_seconds': expected, 'expected / measured': expected / medians['auto']}
            line += f'{1000 * expected:11.0f}{case["expected / measured"]:11.2f}'
        cases.append(case)
        print(line, flush=True)
    if _OUTPUT.value:
        figures = {'cores': host.cores(), 'cases': cases}
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    entry.run(main)
