"""Many --dry_run of a launcher from one start of Python."""

import json
import os
import pathlib
import subprocess
import sys

from tests import tiny

_PROGRAM = """
import importlib, json, os, sys
from launch import entry
name, folder = sys.argv[1:]
launcher = importlib.import_module(f'launch.{name}')
for number, arguments in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        sys.argv = [f'launch/{name}.py', '--dry_run', *arguments]
        for descriptor, ending in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(f'{folder}/{number}.{ending}', os.O_CREAT | os.O_WRONLY), descriptor)
        entry.run(launcher.main, forwards=True)
    with open(f'{folder}/{number}.status', 'w') as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def dry_runs(launcher: str, folder: pathlib.Path, commands: list[list[str]], **environ) -> list[tuple[int, str, str]]:
    """Returns exit status, stdout and stderr of `python -m launch.<launcher> --dry_run ...` for each command line."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, '-c', _PROGRAM, launcher, str(folder)],
        cwd=tiny.ROOT,
        env=os.environ | environ,
        input=json.dumps(commands),
        text=True,
        check=True,
    )
    results = []
    for number in range(len(commands)):
        status, out, err = ((folder / f'{number}.{ending}').read_text() for ending in ('status', 'out', 'err'))
        results.append((int(status), out, err))
    return results
