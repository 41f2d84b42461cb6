"""Compares the estimated memory of a training step with what XLA's compiler sets aside for it.

    python -m benchmarks.estimates

Each step is compiled for one CPU at its real size and not run; the compiler's buffer assignment says how much memory it
takes with everything in it: weights, slots, gradients, activations and the batch.
"""

import json
import os
import pathlib
import re
import tempfile

from absl import flags
from ml_collections import ConfigDict

from configs import camvid, cityscapes_256, cityscapes_unet, synthetic
from launch import entry, host

_ONLY = flags.DEFINE_list('only', [], 'Cases to look at; default all.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

# Case -> config and what is changed in it.
_CASES = {
    'synthetic': (synthetic, {}),
    'camvid': (camvid, {}),
    'cityscapes_256': (cityscapes_256, {}),
    'cityscapes_256, recompute': (cityscapes_256, {'runtime.recompute': True}),
    'cityscapes': (cityscapes_unet, {'global_batch': 2}),
    'cityscapes, recompute': (cityscapes_unet, {'global_batch': 2, 'runtime.recompute': True}),
    'unpadded': (cityscapes_256, {'global_batch': 2, 'model.padding': 'valid', 'data.crop': (572, 572)}),
    'residual, resize, group': (
        cityscapes_256,
        {'global_batch': 8, 'model.residual': True, 'model.up': 'resize', 'model.norm': 'group', 'model.skip': 'add'},
    ),
}


def main() -> None:
    unknown = set(_ONLY.value) - set(_CASES)
    if unknown:
        raise entry.UserError(entry.BAD_USAGE, f'--only={",".join(unknown)}: choose of {"; ".join(_CASES)}')
    figures = {}
    print(f'{"":<32}{"estimate":>12}{"XLA":>12}{"ratio":>8}   in GiB')
    with tempfile.TemporaryDirectory() as dumps:
        # Machine code of the fastest compilation will do: it is not run.
        own = f'--xla_dump_to={dumps} --xla_backend_optimization_level=0'
        os.environ['XLA_FLAGS'] = f'{own} {os.environ.get("XLA_FLAGS", "")}'
        for name in _ONLY.value or _CASES:
            module, changes = _CASES[name]
            config = module.get_config()
            config.update_from_flattened_dict(changes)
            estimated, compiled = bytes_of_step(config, pathlib.Path(dumps))
            figures[name] = {
                'config': {'file': module.__name__, 'images': config.global_batch} | changes,
                'estimated': estimated,
                'compiled': compiled,
                'ratio': estimated / compiled,
            }
            print(f'{name:<32}{estimated / 2**30:12.3f}{compiled / 2**30:12.3f}{estimated / compiled:8.2f}', flush=True)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def bytes_of_step(config: ConfigDict, dumps: pathlib.Path) -> tuple[int, int]:
    """Memory of a step by our estimate and by the compiler, which writes its buffer assignment into the folder `dumps`
    (XLA_FLAGS=--xla_dump_to=..., set before TensorFlow is imported)."""
    with host.quiet_import():
        import tensorflow as tf

    from benchmarks import bare
    from data_prep import labels
    from unet.models import build as model_build
    from unet.models import step_cost
    from unet.training import build as training_build

    config.runtime.jit_compile = 'on'
    step, batch = bare.step_and_batch(config)
    step = tf.function(step, jit_compile=True)
    step.experimental_get_compiler_ir(batch, tf.constant(0.0))(stage='optimized_hlo_serialized')
    found = {path: _total(path) for path in dumps.glob('*buffer-assignment.txt')}
    for path in dumps.iterdir():
        path.unlink()
    classes = len(model_build.id_of_class(config.labels, labels.CITYSCAPES))
    return step_cost.step_bytes(training_build.estimate_cost(config, classes), config.global_batch), max(found.values())


def _total(path: pathlib.Path) -> int:
    return int(re.search(r'Total bytes used: (\d+)', path.read_text())[1])


if __name__ == '__main__':
    entry.run(main)
