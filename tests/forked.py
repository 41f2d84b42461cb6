"""Commands in forks of a process that has imported TensorFlow and done nothing else: each starts seconds sooner.

    done = forked.run('unet.main', ['--workdir=...'], cwd=tiny.ROOT, timeout=600)

That process has set up no device, run no operation and imported no module of the project; the threads that it has are
the idle ones of OpenBLAS and Arrow, which both provide for forks. Tests of how a process starts, or of one that is
signalled from outside, start a process of their own instead.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pathlib
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from typing import NoReturn

_PRELOADED = ('tensorflow', 'keras', 'matplotlib.pyplot', 'PIL.Image', 'ml_collections', 'jinja2')
_one_at_a_time = threading.Lock()


def run(module: str, arguments: list[str], cwd: pathlib.Path, timeout: float) -> subprocess.CompletedProcess:
    """What `subprocess.run` returns for `python -m <module> <arguments>`, its output captured as text."""
    with tempfile.TemporaryDirectory() as folder, _one_at_a_time:
        order = {'module': module, 'arguments': arguments, 'cwd': str(cwd), 'environ': dict(os.environ)}
        server = _server()
        server.stdin.write(json.dumps(order | {'folder': folder}) + '\n')
        server.stdin.flush()
        process = int(_line(server, timeout=600))
        try:
            status = int(_line(server, timeout))
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            _line(server, timeout=600)
            raise
        out, error = (pathlib.Path(folder, name).read_text() for name in ('stdout', 'stderr'))
    return subprocess.CompletedProcess([sys.executable, '-m', module, *arguments], status, out, error)


@functools.cache
def _server() -> subprocess.Popen:
    """Started on first use; it ends when this process does, or closes the pipe that it reads."""
    server = subprocess.Popen(
        [sys.executable, '-m', 'tests.forked'],
        cwd=pathlib.Path(__file__).parent.parent,
        env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.__exit__, None, None, None)
    return server


def _line(server: subprocess.Popen, timeout: float) -> str:
    with selectors.DefaultSelector() as selector:
        selector.register(server.stdout, selectors.EVENT_READ)
        if not selector.select(timeout):
            raise TimeoutError(f'no answer within {timeout} s')
    return server.stdout.readline()


def _serve() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or every fork would copy the pages that a collection touches
    for line in sys.stdin:
        process = os.fork()
        if not process:
            _become(**json.loads(line))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _become(module: str, arguments: list[str], cwd: str, environ: dict[str, str], folder: str) -> NoReturn:
    """Runs the module as a program and ends this process as the interpreter would."""
    for number, path, mode in ((0, os.devnull, 'r'), (1, f'{folder}/stdout', 'w'), (2, f'{folder}/stderr', 'w')):
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = [module, *arguments]
    sys.path[0] = cwd
    status = 0
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == '__main__':
    _serve()
