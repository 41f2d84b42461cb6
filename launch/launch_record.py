"""The launches of a workdir: what was submitted, when, and under which job id.

    from launch import launch_record

    folder = launch_record.begin('runs/cityscapes')  # runs/cityscapes/launch/20261123-160501.000000
    launch_record.finish(folder, {'launcher': 'slurm', 'job': '4711'})
    launch_record.latest('runs/cityscapes', 'slurm')['job']  # 4711

One folder per launch below <workdir>/launch: the rendered files, `launch.json`, and what the job notes there itself.
"""

import contextlib
import datetime
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from launch import entry, files

Launch = dict[str, Any]  # what launch.json holds

FOLDER = 'launch'
_FILE = 'launch.json'


def begin(workdir: str) -> pathlib.Path:
    """Makes the folder of a new launch, named after the time in UTC; raises OSError if it cannot be made."""
    while True:
        now = datetime.datetime.now(datetime.UTC)
        folder = pathlib.Path(workdir).absolute() / FOLDER / now.strftime('%Y%m%d-%H%M%S.%f')
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise


def finish(folder: pathlib.Path, launch: Launch) -> None:
    """Writes launch.json; a launch without it was never submitted.

    Args:
      folder: the launch's, from `begin`.
      launch: what is to be found again: 'launcher', 'job' and what else the launcher needs.
    """
    submitted = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    content = json.dumps({'submitted': submitted, **launch}, indent=1) + '\n'
    files.write_atomically(folder / _FILE, content)


def latest(folder: str, launcher: str, *, also: str | None = None, workdir: str | None = None) -> Launch:
    """Returns the last launch that is recorded below a folder, with its own folder as 'folder'.

    Args:
      folder: the workdir, as a rule.
      launcher: 'local', 'slurm' or 'kubernetes'.
      also: another folder to look in.
      workdir: the workdir that its record must name, where launches of several share a folder; None for any.

    Raises:
      UserError: MISSING_INPUT if there is none.
    """
    launches = [*find(folder, launcher), *(find(also, launcher) if also else [])]
    launches = [launch for launch in launches if workdir in (None, launch.get('workdir'))]
    if not launches:
        raise entry.UserError(
            entry.MISSING_INPUT,
            f'{folder}: nothing was launched here with launch.{launcher} (there is no launch of it in '
            f'{pathlib.Path(folder) / FOLDER}). Pass the --workdir of the launch.',
        )
    return max(launches, key=lambda launch: os.path.basename(launch['folder']))  # which is the time


@contextlib.contextmanager
def watch(launch: Launch) -> Iterator[None]:
    """Surrounds the watching of a launch: Ctrl-C ends the watching and not the job, and a line says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise entry.UserError(
            entry.STOPPED, f'job {launch["job"]} goes on; --follow shows its log again, --cancel ends it'
        ) from None


def find(folder: str, launcher: str) -> list[Launch]:
    """Returns all launches by `launcher` that are recorded below a folder, the oldest first."""
    launches = []
    for file in sorted(pathlib.Path(folder).glob(f'{FOLDER}/*/{_FILE}')):
        launch = files.read_json(file) | {'folder': str(file.parent)}
        if launch.get('launcher') == launcher:
            launches.append(launch)
    return launches
