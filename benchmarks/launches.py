"""Counts what a replica's training step launches on its device, and what its normalisation reads and writes there.

    python -m benchmarks.launches --config=configs/cityscapes_unet.py

Both bound a GPU and can be read off without one. Counted are the operations of TensorFlow's optimised graph on one of
two devices (here parts of the CPU) that compute: each is a launch at least, what XLA compiles one here and a few on a
GPU. Normalisation over the global batch runs in four compiled pieces: the bytes are those of their arguments and
results, by XLA's own account, in bfloat16.
"""

import contextlib
import json
import pathlib
import re
from collections import Counter
from unittest import mock

from absl import flags

from launch import entry, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

# Operations that compute nothing: values, variables, what passes between devices, the loop around the steps.
_FREE = re.compile(
    '_Arg|_Retval|_Send|_Recv|Const|NoOp|Identity|IdentityN|ReadVariableOp|AssignVariableOp|VarHandleOp|Reshape|Squeeze|'
    'Enter|Exit|LoopCond|Merge|NextIteration|Switch|_SwitchN'
)
_SHAPE = (2, 64, 64, 32)  # of the normalised tensor; the figures are per element
_BYTES = {'bf16': 2, 'f32': 4}


def main() -> None:
    config = config_flag.checked()
    with host.quiet_import():
        import tensorflow as tf  # noqa: F401

    config.runtime.virtual_devices, config.global_batch, config.data.crop = 2, 2, (64, 64)
    found = {}
    for over in ('global_batch', 'device'):
        for config.runtime.jit_compile in ('off', 'auto') if over == 'global_batch' else ('auto',):
            config.model.norm_over = over
            launched = launches(config)
            name = f'normalisation over {over}, XLA {config.runtime.jit_compile}'
            found[name] = {'launches': sum(launched.values()), 'most': launched.most_common(8)}
            print(f'{name:<50}{found[name]["launches"]:6} launches   {dict(found[name]["most"])}', flush=True)
    found['bytes_per_element'] = norm_bytes()
    total = sum(found['bytes_per_element'].values())
    print(f'normalisation, bytes per element: {total:.2f}, of which {found["bytes_per_element"]}')
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(found, indent=1) + '\n')


def launches(config) -> Counter[str]:
    """Counts the operations that the second replica of a step computes, by their names."""
    from tensorflow.python.eager import context  # optimised graphs have no public name in TensorFlow 2.21

    from benchmarks import bare
    from unet.distributed import cluster
    from unet.models import build as model_build

    strategy = cluster.make_strategy(config.runtime.virtual_devices)
    as_on_gpus = contextlib.nullcontext()
    if config.model.norm_over == 'device':  # on a CPU XLA would leave the convolutions out
        as_on_gpus = mock.patch.object(model_build, 'jit', return_value='whole')
    with as_on_gpus, context.collect_graphs(optimized=True) as graphs:
        bare.training_steps(config, strategy, 1)()
    nodes = [node for graph in graphs for node in graph.node if node.device.endswith('CPU:1')]
    return Counter(node.op for node in nodes if not _FREE.fullmatch(node.op))


def norm_bytes() -> dict[str, float]:
    """Returns, for each compiled piece of the normalisation, the bytes it reads and writes per element."""
    import tensorflow as tf

    from unet.models import batch_norm

    x, channel, pair = tf.zeros(_SHAPE, tf.bfloat16), tf.zeros(_SHAPE[-1:]), tf.zeros([2, _SHAPE[-1]])
    settings = {'replicas': 2}
    pieces = {
        'moments': (batch_norm.moments, {}, (x, channel)),
        'apply': (batch_norm.apply, settings | {'momentum': 0.9}, (x, channel, channel, pair, channel, channel)),
        'backward_sums': (batch_norm.backward_sums, settings, (x, x, pair)),
        'backward_apply': (batch_norm.backward_apply, settings, (x, x, channel, pair, pair, pair)),
    }
    return {name: _bytes(function, settings, arguments) for name, (function, settings, arguments) in pieces.items()}


def _bytes(function, settings: dict, arguments: tuple) -> float:
    from unet.models import batch_norm

    piece = batch_norm.make_piece(function, relu=True, jit_compile=True, **settings)
    layout = re.search(r'entry_computation_layout=\{(.*)\}', piece.experimental_get_compiler_ir(*arguments)('hlo'))[1]
    sizes = re.findall(r'(bf16|f32)\[([\d,]+)\]', layout)
    total = 0
    for kind, shape in sizes:
        elements = 1
        for side in shape.split(','):
            elements *= int(side)
        total += _BYTES[kind] * elements
    return total / (_SHAPE[0] * _SHAPE[1] * _SHAPE[2] * _SHAPE[3])


if __name__ == '__main__':
    entry.run(main)
