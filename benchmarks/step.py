"""Measures our training step beside Keras's `fit` on the same model, bare, and in other ways of computing it.

    python -m benchmarks.step --config=configs/cityscapes_256.py --config.model.width=16 --config.global_batch=8

All train on the same images from memory; those of `fit` are normalised beforehand. Ours do what training does: cast,
colour, count, update, under one device. What is compiled with XLA and what is not each gets its turn, and the better
one of each side counts.

    fit             keras.Model.fit with keras.optimizers.Adam and SparseCategoricalCrossentropy
    bare            our replica step in a tf.function, the batch as its argument
    ours            unet's compiled training steps as unet.main runs them on one device
    mirrored        the same under MirroredStrategy with one device
    microbatches    ours in two microbatches
    recompute       ours with config.runtime.recompute
"""

import json
import pathlib
import statistics
import sys

from absl import flags

from benchmarks import alternating
from launch import entry, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Times that each is measured.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 4, 'Steps per round.', lower_bound=1)
_SIDES = flags.DEFINE_list(
    'sides', ['fit', 'bare', 'ours', 'mirrored', 'microbatches', 'recompute'], 'Those to compare.'
)
_JIT = flags.DEFINE_list('jit_compile', ['off', 'auto'], "One or more of 'off', 'auto' and 'on'.")
_UNCOMPILED = flags.DEFINE_list('uncompiled', None, 'The sides that have a turn without XLA; default all.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

_COMPARED = (
    ('ours', 'fit'),
    ('ours', 'bare'),
    ('mirrored', 'bare'),
    ('microbatches', 'ours'),
    ('recompute', 'ours'),
)


def main() -> None:
    config = config_flag.checked()
    with host.quiet_import():
        import tensorflow as tf

    device = 'GPU:0' if tf.config.list_physical_devices('GPU') else 'CPU:0'
    calls = {}
    for jit in _JIT.value:
        for side in _SIDES.value if jit != 'off' or _UNCOMPILED.value is None else _UNCOMPILED.value:
            own = config.copy_and_resolve_references()
            own.runtime.jit_compile = jit
            own.runtime.recompute = side == 'recompute'
            if side == 'microbatches':
                own.runtime.microbatches = 2
            calls[f'{side}, XLA {jit}'] = _call_of(side, own, device)
    for name, call in calls.items():
        call()  # traces and compiles, once all are there: making a model empties TensorFlow's cache of kernels
        print(f'{name}: ready', flush=True)
    seconds = alternating.run(calls, _ROUNDS.value)
    images = config.global_batch * _STEPS.value
    print(
        f'\n{config.global_batch} images of {"x".join(map(str, config.data.crop))}, width {config.model.width}, ',
        end='',
    )
    print(f'{config.precision}, {device}, {host.cores()} cores, {_ROUNDS.value} rounds of {_STEPS.value} steps')
    for name, times in seconds.items():
        print(f'{name:<20}{images / statistics.median(times):10.2f} images/s')
    figures = {'config': config_flag.arguments(sys.argv[1:]), 'steps': _STEPS.value, 'seconds': seconds, 'ratios': {}}

    def compare(name: str, one: str, other: str) -> None:
        median, lowest, highest = figures['ratios'][name] = alternating.ratio(seconds, one, other)
        print(f'time of {one + " / " + other:<40}{median:8.3f}   ({lowest:.3f} to {highest:.3f})')

    fastest = {}
    for name in sorted(seconds, key=lambda name: statistics.median(seconds[name])):
        fastest.setdefault(name.partition(',')[0], name)
    for one, other in _COMPARED:
        if one in fastest and other in fastest:
            compare(f'{one} / {other}', fastest[one], fastest[other])
    for jit in ('auto', 'on'):
        if {'ours, XLA off', f'ours, XLA {jit}'} <= seconds.keys():
            compare(f'XLA off / {jit}', 'ours, XLA off', f'ours, XLA {jit}')
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def _call_of(side: str, config, device: str):
    """A function that takes --steps training steps and returns when they are done."""
    import keras
    import tensorflow as tf

    from benchmarks import bare
    from data_prep import labels
    from unet.data import build as data_build
    from unet.models import build as model_build
    from unet.models import preprocess

    steps, compiled = _STEPS.value, config.runtime.jit_compile != 'off'
    if side == 'fit':
        batch = data_build.noise_batch(config, config.global_batch)
        model = model_build.build_model(config, labels.CITYSCAPES, replicas=1)
        model.compile(
            keras.optimizers.Adam(config.optimizer.learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=labels.IGNORED),
            jit_compile=compiled,
        )
        classes = model_build.class_of_id(config.labels, labels.CITYSCAPES)[batch['label']]
        images = preprocess.normalize(batch['image'])
        data = tf.data.Dataset.from_tensors((images, classes)).repeat().prefetch(tf.data.AUTOTUNE)
        return lambda: model.fit(data, steps_per_epoch=steps, verbose=0)

    if side == 'bare':
        step, batch = bare.step_and_batch(config)

        def take_bare_steps():
            for _ in range(steps):
                row = step(batch, tf.constant(0.0))
            return row.numpy()

        return take_bare_steps

    strategy = tf.distribute.MirroredStrategy([device]) if side == 'mirrored' else tf.distribute.get_strategy()
    return bare.training_steps(config, strategy, steps)


if __name__ == '__main__':
    entry.run(main)
