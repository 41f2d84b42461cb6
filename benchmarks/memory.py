"""Measures the memory that one training step takes: whole, with recomputed activations, and in microbatches.

    python -m benchmarks.memory

Each case is a process of its own that takes one step on images of noise; what counts is the largest resident memory of
the process, and how far that lies above what the process held before it made the network.
"""

import json
import pathlib
import subprocess
import sys

from absl import flags

from configs import cityscapes_256
from launch import entry

_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')
_CASE = flags.DEFINE_string('case', None, 'The case to measure in this very process.')

# Case -> what is changed in configs/cityscapes_256.py.
_CASES = {
    'plain': {'model.width': 16, 'global_batch': 16},
    'recompute': {'model.width': 16, 'global_batch': 16, 'runtime.recompute': True},
    '4 microbatches': {'model.width': 16, 'global_batch': 16, 'runtime.microbatches': 4},
    'width 64, batch 32, 8 microbatches': {'runtime.microbatches': 8},
}


def main() -> None:
    if _CASE.value:
        print(json.dumps(_measure(_CASES[_CASE.value])))
        return
    figures = {}
    print(f'{"":<36}{"peak GiB":>10}{"of it the step":>16}', flush=True)
    for case in _CASES:
        command = [sys.executable, '-m', 'benchmarks.memory', f'--case={case}']
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise entry.Failure(entry.BUG, f'{case}: {done.stderr[-2000:]}')
        figures[case] = found = json.loads(done.stdout)
        own = found['peak_bytes'] - found['before_bytes']
        print(f'{case:<36}{found["peak_bytes"] / 2**30:10.2f}{own / 2**30:16.2f}', flush=True)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def _measure(changes: dict[str, object]) -> dict[str, float]:
    with entry.quiet_import():
        import tensorflow as tf

    from data_prep import labels
    from unet import from_config, throughput

    config = cityscapes_256.get_config()
    config.update_from_flattened_dict(changes)
    before = throughput.peak_memory()
    network = from_config.network(config, labels.CITYSCAPES, replicas=1)
    state = from_config.train_state(config, network)
    replica_step = from_config.replica_step(config, network, state, labels.CITYSCAPES, 1, None)
    step = tf.function(replica_step, jit_compile=from_config.jit_compile(config, 1))
    batch = {name: tf.constant(values) for name, values in from_config.noise_batch(config, config.global_batch).items()}
    step(batch, tf.constant(0.0)).numpy()
    return {'before_bytes': before, 'peak_bytes': throughput.peak_memory()}


if __name__ == '__main__':
    entry.run(main)
