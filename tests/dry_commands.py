"""Parses commands as their programs do and checks their configs, without doing what they ask for.

    echo '{"unet.main": [["--config=configs/cityscapes.py"]]}' | python -m tests.dry_commands

Reads program -> argument lists from stdin and writes program -> its `flags` and the `outcomes`: the exit status and the
end of the output of each. Programs define flags of one name, so each is imported in a child of this process, and each
command has a child of that one; none of them imports TensorFlow.
"""

import functools
import importlib
import json
import os
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable
from typing import NoReturn

import ml_collections  # noqa: F401  once for all children
from absl import flags

from configs import default
from launch import entry

LAUNCHERS = ('launch.local', 'launch.slurm', 'launch.kubernetes')
ROOT = pathlib.Path(__file__).parent.parent


def run(program: types.ModuleType, arguments: list[str]) -> NoReturn:
    """Parses a command as its program does, checks its config, and exits; a launcher runs with --dry_run."""

    def check() -> int:
        config = flags.FLAGS['config'].value if 'config' in flags.FLAGS else None
        problems = default.validate(config) if config else []
        print(*problems, sep='\n')
        return entry.BAD_CONFIG if problems else entry.OK

    launches = program.__name__ in LAUNCHERS and '--' in arguments
    sys.argv = [program.__name__, *(['--dry_run'] if launches else []), *arguments]
    entry.run(program.main if launches else check, forwards=launches)


def in_child(work: Callable[[], int]) -> dict:
    """What becomes of work in a forked process: its exit status and the end of its output."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            status = 1
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            try:
                status = work()
            except SystemExit as error:
                status = error.code or 0
            except BaseException as error:
                print(f'{type(error).__name__}: {error}')
            finally:
                sys.stdout.flush()
                os._exit(status if isinstance(status, int) else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return {'status': status, 'output': output.read().decode(errors='replace')[-600:]}


def all_of(module: str, lines: list[list[str]]) -> dict:
    """A program's flags, and the outcomes of its commands."""
    with tempfile.NamedTemporaryFile() as file:

        def work() -> int:
            program = importlib.import_module(module)
            outcomes = [in_child(functools.partial(run, program, arguments)) for arguments in lines]
            pathlib.Path(file.name).write_text(json.dumps({'flags': list(flags.FLAGS), 'outcomes': outcomes}))
            return 0

        done = in_child(work)
        return done if done['status'] else json.loads(pathlib.Path(file.name).read_text())


def main() -> None:
    wanted = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ['PATH'] = ''  # no sbatch is asked
        os.symlink(ROOT / 'configs', 'configs')
        os.mkdir('dataset')
        for records in ('data/cityscapes', 'data/camvid', 'data/synthetic'):
            os.makedirs(records)
            splits = [{'name': name, 'shardLengths': ['99'] * 8} for name in ('train', 'validation', 'test')]
            pathlib.Path(records, 'dataset_info.json').write_text(json.dumps({'splits': splits}))
        pathlib.Path('my.sbatch').write_text((ROOT / 'launch/templates/job.sbatch').read_text())
        found = {module: all_of(module, lines) for module, lines in wanted.items()}
        os.chdir(ROOT)
    json.dump(found, sys.stdout)


if __name__ == '__main__':
    main()
