"""Measures the memory of a process that takes a training step, its compilation included.

python -m benchmarks.memory --config=configs/cityscapes_256.py --config.runtime.microbatches=8
"""

import json
import pathlib

from absl import flags

from launch import entry
from unet import config_flag

_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')


def main() -> None:
    config = config_flag.checked()
    with entry.quiet_import():
        import tensorflow as tf

    from data_prep import labels
    from unet import from_config, throughput

    before = throughput.peak_memory()
    network = from_config.network(config, labels.CITYSCAPES, replicas=1)
    state = from_config.train_state(config, network)
    replica_step = from_config.replica_step(config, network, state, labels.CITYSCAPES, 1, None)
    step = tf.function(replica_step, jit_compile=from_config.jit_compile(config, 1))
    batch = {name: tf.constant(values) for name, values in from_config.noise_batch(config, config.global_batch).items()}
    step(batch, tf.constant(0.0)).numpy()
    figures = {'peak_bytes': throughput.peak_memory(), 'before_bytes': before}
    print(
        f'{config.global_batch} images of {"x".join(map(str, config.data.crop))} at width {config.model.width} in '
        f'{config.runtime.microbatches} part(s): {figures["peak_bytes"] / 2**30:.2f} GiB, of which '
        f'{before / 2**30:.2f} before the network was made'
    )
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    entry.run(main)
