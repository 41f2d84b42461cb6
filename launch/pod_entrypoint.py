"""The first process in a pod: it finds its run, counts the attempts, and becomes the program.

    python -m launch.pod_entrypoint --launch=20261123-160501 --workdir=runs/x -- python -m unet.main --workdir=runs/x

launch.kubernetes writes this line. Kubernetes does not count the restarts that a Job ignores (preemption, exit statuses
75 and 76), so that a run that gets nowhere would start for ever. So this program counts the attempts in a row that
began with the same checkpoints. In a sweep of runs with one worker each, the pod's completion index picks the run.
"""

import json
import os
import pathlib
import sys

from absl import flags

from launch import entry

_LAUNCH = flags.DEFINE_string('launch', None, 'Name of the launch; its attempts are noted in <workdir>/launch/<name>.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Workdir of the run.')
_PROGRESS = flags.DEFINE_string(
    'progress', None, "Folder in which a new file counts as progress; default the run's checkpoints."
)
_MAX_RESTARTS = flags.DEFINE_integer('max_restarts', 3, 'Attempts in a row that may bring no new checkpoint.')
_RUN = flags.DEFINE_multi_string('run', [], 'One run of a sweep, as JSON with "workdir" and "command".')


def main(arguments: list[str]) -> None:
    """Becomes the program whose command line `arguments` is, or that of the pod's run."""
    index = int(os.environ.get('JOB_COMPLETION_INDEX', '0'))
    workdir, command = _WORKDIR.value, arguments
    if _RUN.value:
        run = json.loads(_RUN.value[index])
        workdir, command = run['workdir'], run['command']
    if not (workdir and command and _LAUNCH.value):
        raise entry.UserError(entry.BAD_USAGE, 'pass --launch, --workdir, and the command after --, or --run')
    if index == 0 or _RUN.value:
        count_attempt(workdir, _LAUNCH.value, _PROGRESS.value or os.path.join(workdir, 'checkpoints'))
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)  # signals reach the program itself
    except OSError as error:
        raise entry.UserError(entry.BAD_USAGE, f'{command[0]}: cannot be started ({error.strerror})') from error


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
