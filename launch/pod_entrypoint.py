"""The first process in a pod: it finds its run, counts the attempts, and becomes the program.

    python -m launch.pod_entrypoint --launch=20261123-160501 --workdir=runs/x -- python -m unet.main --workdir=runs/x

launch.kubernetes writes this line. Kubernetes does not count the restarts that a Job ignores (preemption, exit statuses
75 and 76, crashes), so that a run that gets nowhere would start for ever. So this program counts the attempts in a row
that began with the same checkpoints. One begins once all workers have a node, however long that takes. In a sweep of
runs with one worker each, the pod's completion index picks the run.
"""

import json
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Mapping

from absl import flags

from launch import entry

_LAUNCH = flags.DEFINE_string('launch', None, 'Name of the launch; its attempts are noted in <workdir>/launch/<name>.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Workdir of the run.')
_PROGRESS = flags.DEFINE_string(
    'progress', None, "Folder in which a new file counts as progress; default the run's checkpoints."
)
_MAX_RESTARTS = flags.DEFINE_integer('max_restarts', 3, 'Attempts in a row that may bring no new checkpoint.')
_RUN = flags.DEFINE_multi_string('run', [], 'One run of a sweep, as JSON with "workdir" and "command".')

_LOOK_AGAIN = 2.0  # seconds
_SAY_AGAIN = 60.0


def main(arguments: list[str]) -> None:
    """Becomes the program whose command line `arguments` is, or that of the pod's run."""
    index = int(os.environ.get('JOB_COMPLETION_INDEX', '0'))
    workdir, command = _WORKDIR.value, arguments
    if _RUN.value:
        run = json.loads(_RUN.value[index])
        workdir, command = run['workdir'], run['command']
    if not (workdir and command and _LAUNCH.value):
        raise entry.UserError(entry.BAD_USAGE, 'pass --launch, --workdir, and the command after --, or --run')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(entry.STOPPED))  # the first process of a pod would ignore it
    wait_for_names(worker_names(os.environ))
    if index == 0 or _RUN.value:
        count_attempt(workdir, _LAUNCH.value, _PROGRESS.value or os.path.join(workdir, 'checkpoints'))
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)  # signals reach the program itself
    except OSError as error:
        raise entry.UserError(entry.BAD_USAGE, f'{command[0]}: cannot be started ({error.strerror})') from error


def worker_names(environ: Mapping[str, str]) -> list[str]:
    """Returns the host names of all workers; none where there is one."""
    pattern = environ.get('UNET_WORKER_ADDRESS', '').rpartition(':')[0]
    return [pattern.replace('{index}', str(index)) for index in range(int(environ.get('UNET_NUM_WORKERS', '0')))]


def wait_for_names(names: list[str]) -> None:
    """Waits until all names are known: a pod's is once it runs on a node, which a full cluster may not give it soon."""
    said = -_SAY_AGAIN
    while unknown := [name for name in names if not _is_known(name)]:
        if time.monotonic() - said >= _SAY_AGAIN:
            said = time.monotonic()
            print(f'launch.pod_entrypoint: waiting for {", ".join(unknown[:8])} to be given a node', flush=True)
        time.sleep(_LOOK_AGAIN)


def _is_known(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def count_attempt(workdir: str, launch: str, progress: str) -> None:
    """Notes that an attempt begins.

    Args:
      workdir: the run's folder.
      launch: name of the launch.
      progress: folder in which a new file counts as progress.

    Raises:
      UserError: DIVERGED, which Kubernetes does not answer with another attempt, if there have been too many in a row
        without a new file in `progress`.
    """
    notes = pathlib.Path(workdir) / 'launch' / launch / 'attempts'
    notes.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in pathlib.Path(progress).glob('[!.]*'))
    now = json.dumps(names[-200:])
    before = notes.read_text().splitlines() if notes.exists() else []
    idle = 0
    while idle < len(before) and before[-1 - idle] == now:
        idle += 1
    attempt = f'attempt {len(before)} of {workdir}, {idle} in a row without a new checkpoint'
    print(f'launch.pod_entrypoint: {attempt}', flush=True)
    if idle > _MAX_RESTARTS.value:
        raise entry.UserError(
            entry.DIVERGED,
            f'{workdir}: {idle} attempts in a row brought no new checkpoint (--max_restarts={_MAX_RESTARTS.value}). '
            'The logs of the pods before this one tell why; mend the cause and submit again.',
        )
    with notes.open('a') as file:
        file.write(now + '\n')


if __name__ == '__main__':
    entry.run(main, forwards=True)
