"""Measures how soon a command answers, and how soon the first training step is done.

    python -m benchmarks.startup --config=configs/synthetic.py --data_dir=demo/data

--help of every command, and whether it imports TensorFlow; then the time from `python -m unet.main` to the end of its
first step beside that of a bare program that imports TensorFlow, makes the model, traces and compiles the same step
and takes it once. Both say so in a line, at which the clock stops. Both read the processor's caches and the disk's as
the other left them: they take turns.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks import alternating
from launch import entry
from unet import config_flag

_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder.')
flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Times that each is measured.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

_COMMANDS = (
    *(f'data_prep.{name}' for name in ('build_tfrecords', 'verify_tfrecords', 'stage_tfrecords', 'synthesize')),
    *(f'unet.{name}' for name in ('main', 'evaluate', 'predict', 'export', 'report', 'benchmark', 'preflight')),
    *(f'launch.{name}' for name in ('local', 'slurm', 'kubernetes')),
)
_BARE = """
import json, sys
import tensorflow as tf
from ml_collections import ConfigDict
from benchmarks import bare
step, batch = bare.step_and_batch(ConfigDict(json.loads(sys.argv[1])))
step(batch, tf.constant(0.0)).numpy()
print('step 1/1', flush=True)
"""


def main() -> None:
    config = config_flag.checked()
    arguments = config_flag.arguments(sys.argv[1:])
    figures = {'config': arguments, 'help': {}}
    for command in _COMMANDS:
        seconds = alternating.run({'help': lambda command=command: _help(command)}, _ROUNDS.value)['help']
        figures['help'][command] = min(seconds)
    slowest = max(figures['help'], key=figures['help'].get)
    print(
        f'--help: {len(_COMMANDS)} commands, none imports TensorFlow; the slowest, {slowest}, takes '
        f'{figures["help"][slowest]:.2f} s',
        flush=True,
    )
    sides = {
        'bare': lambda: _first_step(['-c', _BARE, config.to_json()]),
        'unet.main': lambda: _first_step_of_run(arguments),
    }
    figures['seconds'] = seconds = alternating.run(sides, _ROUNDS.value)
    median, lowest, highest = figures['ratio'] = alternating.ratio(seconds, 'unet.main', 'bare')
    for name, times in seconds.items():
        print(f'{name:<12}{min(times):8.2f} to {max(times):.2f} s to the end of the first step')
    print(f'unet.main / bare{median:8.2f}   ({lowest:.2f} to {highest:.2f})')
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def _help(command: str) -> None:
    """Raises AssertionError if it imports TensorFlow."""
    imported = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', command, '--help'], capture_output=True, text=True, check=True
    ).stderr
    if any(line.split('|')[-1].strip() == 'tensorflow' for line in imported.splitlines()):
        raise AssertionError(f'{command} --help imports TensorFlow')


def _first_step_of_run(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        flags = [f'--data_dir={_DATA_DIR.value}', f'--workdir={folder}/run', *arguments, '--config.log.every_steps=1']
        _first_step(['-m', 'unet.main', *flags])


def _first_step(arguments: list[str]) -> None:
    """Starts a Python program and returns when it says that step 1 is done."""
    environ = os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'}
    command = [sys.executable, '-u', *arguments]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, stdout=pipe, stderr=both, text=True, env=environ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith('step 1/'):
                process.kill()
                return
    raise entry.UserError(entry.BUG, f'{" ".join(arguments[:2])} took no step: {"".join(said)[-2000:]}')


if __name__ == '__main__':
    entry.run(main)
