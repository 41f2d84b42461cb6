"""Measures the two ceilings of a device: the bandwidth of its memory, and a large matrix product in each precision.

python -m benchmarks.ceilings --output=ceilings.json
"""

import json
import pathlib

from absl import flags

from launch import entry, host

_SECONDS = flags.DEFINE_float('seconds', 1.0, 'For which copying is measured.', lower_bound=0.1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

_VALUES = {'GPU': 2**28, 'CPU': 2**23}  # float32 values that are copied, far more than caches hold
_COPIES = 10  # per call


def main() -> None:
    with host.quiet_import():
        import tensorflow as tf

        from unet.diagnostics import device_speed, timing

    gpus = tf.config.list_physical_devices('GPU')
    device = 'GPU' if gpus else 'CPU'

    @tf.function(autograph=False)
    def copies(x: tf.Tensor, one: tf.Tensor) -> tf.Tensor:
        for _ in range(_COPIES):
            x = x + one
        return x[0]

    x, one = tf.zeros([_VALUES[device]]), tf.constant(1.0)
    seconds = timing.measure(lambda: copies(x, one).numpy() and None, images=1, seconds=_SECONDS.value).seconds.min()
    name = tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU') if gpus else 'CPU'
    figures = {
        'device': name,
        'devices': len(gpus) or 1,
        'build': {key: value for key, value in tf.sysconfig.get_build_info().items() if key.endswith('version')},
        'bytes_per_second': _COPIES * 2 * 4 * _VALUES[device] / float(seconds),
        'matrix_flops_per_second': {},
    }
    print(f'{name}: copying moves {figures["bytes_per_second"] / 1e9:.1f} GB/s', flush=True)
    for precision, tf32 in (('float32', False), ('float32', True), ('bfloat16', True), ('float16', True)):
        if device == 'CPU' and (tf32 or precision != 'float32'):
            continue  # most have no faster product
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        key = 'tf32' if tf32 and precision == 'float32' else precision
        figures['matrix_flops_per_second'][key] = flops = device_speed.matrix_flops(precision)
        print(f'matrix product in {key}: {flops / 1e12:.3f} TFLOP/s', flush=True)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    entry.run(main)
