"""Measures the memory of a process that takes a training step, its compilation included.

python -m benchmarks.memory --config=configs/cityscapes_256.py --config.runtime.microbatches=8
"""

import json
import pathlib
import sys

from absl import flags

from launch import entry, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')


def main() -> None:
    config = config_flag.checked()
    with host.quiet_import():
        import tensorflow as tf

    from benchmarks import bare
    from data_prep import labels
    from unet.diagnostics import throughput
    from unet.models import build as model_build
    from unet.models import step_cost
    from unet.training import build as training_build

    before = throughput.peak_memory()
    step, batch = bare.step_and_batch(config)
    step(batch, tf.constant(0.0)).numpy()
    cost = training_build.estimate_cost(config, len(model_build.id_of_class(config.labels, labels.CITYSCAPES)))
    figures = {
        'config': config_flag.arguments(sys.argv[1:]),
        'peak_bytes': throughput.peak_memory(),
        'before_bytes': before,
        'estimated_bytes': step_cost.step_bytes(cost, config.global_batch // config.runtime.microbatches),
    }
    print(
        f'{config.global_batch} images of {"x".join(map(str, config.data.crop))} at width {config.model.width} in '
        f'{config.runtime.microbatches} part(s): {figures["peak_bytes"] / 2**30:.2f} GiB, of which '
        f'{before / 2**30:.2f} before the model was made; estimated {figures["estimated_bytes"] / 2**30:.2f}'
    )
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    entry.run(main)
