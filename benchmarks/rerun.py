"""Trains twice, and once more with a stop in between, and compares the last checkpoints bit by bit.

    python -m benchmarks.rerun --config=configs/cityscapes.py --data_dir=data/cityscapes

All runs are deterministic. The one that is stopped gets SIGTERM after its second step, and goes on from its checkpoint.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from absl import flags

from launch import entry, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder.')
_STEPS = flags.DEFINE_integer('steps', 30, 'Steps of a run.', lower_bound=4)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')


def main() -> None:
    config_flag.checked()
    with tempfile.TemporaryDirectory() as folder:
        first, second, stopped = (pathlib.Path(folder, name) for name in ('first', 'second', 'stopped'))
        _train(first)
        _train(second)
        status = _train(stopped, stop=True)
        _train(stopped)
        with host.quiet_import():
            figures = {
                'stopped_with_status': status,
                'rerun_differs': _differing(first, second),
                'resumed_differs': _differing(first, stopped),
            }
    for name in ('rerun', 'resumed'):
        differing = figures[f'{name}_differs']
        print(
            f'{name}: {f"differs in {len(differing)} values, first {differing[0]}" if differing else "bit-identical"}'
        )
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def _train(workdir: pathlib.Path, stop: bool = False) -> int:
    """Trains to the end, or asks the run to stop once it has taken a few steps. Returns its status."""
    command = [
        *(sys.executable, '-u', '-m', 'unet.main', *config_flag.arguments(sys.argv[1:])),
        *(f'--data_dir={_DATA_DIR.value}', f'--workdir={workdir}', f'--config.num_steps={_STEPS.value}'),
        f'--config.eval.every_steps={_STEPS.value}',
        *('--config.runtime.deterministic=True', '--config.runtime.steps_per_call=1', '--config.log.every_steps=1'),
    ]
    environ = os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'}
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, stdout=pipe, stderr=both, text=True, env=environ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if stop and line.startswith('step 2/'):
                process.send_signal(signal.SIGTERM)
    if process.returncode not in (entry.OK, *([entry.STOPPED] if stop else [])):
        raise entry.UserError(max(process.returncode, entry.BUG), f'unet.main failed: {"".join(said)[-2000:]}')
    return process.returncode


def _differing(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """The names of what differs in the last checkpoints of two runs."""
    import tensorflow as tf

    readers = [tf.train.load_checkpoint(str(run / 'checkpoints' / f'ckpt-{_STEPS.value}')) for run in (one, other)]
    names = set().union(*(reader.get_variable_to_shape_map() for reader in readers))
    compared = sorted(name for name in names if name.startswith(('model/', 'state/')))

    def content(reader, name: str) -> bytes:
        value = reader.get_tensor(name)
        return value if isinstance(value, bytes) else value.tobytes()

    if not all(reader.has_tensor(name) for reader in readers for name in compared) or not compared:
        raise entry.UserError(entry.BUG, 'the checkpoints hold no weights, or not the same ones')
    return [name for name in compared if content(readers[0], name) != content(readers[1], name)]


if __name__ == '__main__':
    entry.run(main)
