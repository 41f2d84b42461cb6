"""What launch.slurm does with Slurm's commands: it submits the job of a launch, watches it, waits for it, cancels it.

A launch, as launch_record holds it, is one job or a job array. squeue is asked for fields alone that hold nothing a
user wrote.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from launch import command, entry, launch_record

_FIELDS = ('JobArrayID', 'State', 'Reason', 'exit_code', 'RestartCnt', 'TimeUsed', 'NodeList')
_POLL = 1.0  # seconds between questions to the controller, doubled up to
_POLL_MOST = 15.0
_NOT_OVER = {'PENDING', 'RUNNING', 'CONFIGURING', 'COMPLETING', 'SUSPENDED', 'REQUEUED', 'REQUEUE_HOLD', 'STOPPED'}
_NOT_OVER |= {'REQUEUE_FED', 'RESIZING', 'SIGNALING', 'STAGE_OUT', 'SPECIAL_EXIT'}


def submit(script: os.PathLike[str]) -> str:
    """Submits a job script.

    Returns:
      The job's id.

    Raises:
      UserError: BAD_CONFIG with sbatch's own words if it refuses, MISSING_INPUT if there is no Slurm on this host.
    """
    _check_installed('sbatch')
    done = subprocess.run(['sbatch', '--parsable', os.fspath(script)], capture_output=True, text=True)
    if done.returncode:
        raise entry.UserError(entry.BAD_CONFIG, f'sbatch refuses the job: {_first_error(done.stderr)}')
    return done.stdout.strip().partition(';')[0]


# What sbatch says where it is installed and no cluster is to be reached.
_NO_CONTROLLER = (
    r'(?i)unable to contact slurm controller|socket timed out|connection refused|configuration (source|file)'
)


def test_only(script: str) -> None:
    """Asks Slurm, if there is one on this host, whether and when it would start a job; the answer goes to stderr.

    Raises:
      UserError: BAD_CONFIG if it would refuse.
    """
    if not shutil.which('sbatch'):
        print('launch.slurm: no sbatch on this host, so Slurm was not asked', file=sys.stderr)
        return
    done = subprocess.run(['sbatch', '--test-only'], input=os.fsencode(script), capture_output=True)
    said = done.stderr.decode(errors='replace')
    answer = _first_error(said)
    if done.returncode and re.search(_NO_CONTROLLER, said):
        print(f'launch.slurm: no Slurm answers on this host, so it was not asked ({answer})', file=sys.stderr)
        return
    if done.returncode:
        raise entry.UserError(entry.BAD_CONFIG, f'sbatch would refuse the job: {answer}')
    print(f'launch.slurm: {answer}', file=sys.stderr)


def logs(workdir: str, points: int) -> list[str]:
    """Returns the log files of a launch: one, or one for each of the `points` of a sweep."""
    if not points:
        return [os.path.join(workdir, 'slurm.log')]
    return [os.path.join(workdir, f'slurm-{number}.log') for number in range(points)]


def states(launch: launch_record.Launch) -> list[dict[str, str]]:
    """Asks Slurm for the state of a launch's jobs.

    Returns:
      One dict for each job, with the fields JobArrayID, State, Reason, exit_code, RestartCnt, TimeUsed and NodeList;
      none once Slurm has forgotten them.
    """
    _check_installed('squeue')
    fields = ','.join(f'{name}:|' for name in _FIELDS)
    words = ['squeue', '--noheader', '--array', '--states=all', f'--jobs={launch["job"]}', f'--Format={fields}']
    listed = subprocess.run(words, capture_output=True, text=True)
    if listed.returncode and 'Invalid job id' not in listed.stderr:
        raise entry.UserError(entry.PEER_LOST, f'squeue: {_first_error(listed.stderr)}. Try again.')
    rows = [line.split('|') for line in listed.stdout.splitlines()]
    found = [dict(zip(_FIELDS, row, strict=False)) for row in rows]
    return sorted(found, key=lambda row: _array_index(row['JobArrayID']))


def _array_index(identity: str) -> int:
    index = identity.partition('_')[2]
    return int(index) if index.isdigit() else -1


def active(launch: launch_record.Launch) -> bool:
    """Returns whether any job of the launch is yet to end."""
    return any(row['State'] in _NOT_OVER for row in states(launch))


def exit_statuses(launch: launch_record.Launch, rows: list[dict[str, str]]) -> list[int | None]:
    """Returns the exit status of each run; None for one that is not over.

    Slurm forgets a job some minutes after its end; then the file counts that the job itself has left in the workdir.

    Args:
      launch: the launch.
      rows: its jobs' states.
    """
    row_of = {_array_index(row['JobArrayID']): row for row in rows}
    statuses = []
    for number, workdir in enumerate(launch['runs']):
        row = row_of.get(number if launch['sweep'] else -1)
        noted = pathlib.Path(workdir) / 'launch' / pathlib.Path(launch['folder']).name / 'status'
        if row:
            statuses.append(None if row['State'] in _NOT_OVER else _exit_status(row))
        else:
            text = noted.read_text() if noted.exists() else str(entry.PEER_LOST)
            statuses.append(int(text or entry.NO_STORAGE))  # a full disk takes the file and not the number
    return statuses


def _exit_status(row: dict[str, str]) -> int:
    """As a shell would have it: 128 more than the signal that ended the job."""
    if row['State'] == 'COMPLETED':
        return entry.OK
    code = row['exit_code']
    if ':' in code:  # status:signal
        status, number = map(int, code.split(':'))
    else:  # as wait(2) has it
        status, number = int(code) >> 8, int(code) & 0x7F
    if status or number:
        return status or 128 + number
    return entry.STOPPED if row['State'] == 'CANCELLED' else entry.PEER_LOST


def print_status(launch: launch_record.Launch) -> int:
    """Prints one line per job, and where to read more."""
    rows = states(launch)
    for row in rows:
        over = row['State'] not in _NOT_OVER
        note = f'exit status {_exit_status(row)}' if over else row['Reason'].replace('None', '')
        print(
            f'job {row["JobArrayID"]}  {row["State"]:<10}  {row["TimeUsed"]:>10}  restarts {row["RestartCnt"]}  '
            f'{row["NodeList"]}  {note}'.rstrip()
        )
    if not rows:
        for workdir, status in zip(launch['runs'], exit_statuses(launch, rows), strict=True):
            print(f'job {launch["job"]}  no longer known to Slurm  exit status {status}  {workdir}')
    print(f'submitted {launch["submitted"]}  job script {launch["folder"]}/job.sbatch  log {launch["logs"][0]}')
    return entry.OK


def cancel(launch: launch_record.Launch) -> int:
    """Ends the launch's jobs. Slurm sends SIGTERM first: a run saves a checkpoint and is not requeued."""
    _check_installed('scancel')
    if not active(launch):
        print(f'job {launch["job"]} is over already')
        return entry.OK
    done = subprocess.run(['scancel', launch['job']], capture_output=True, text=True)
    if done.returncode:
        raise entry.UserError(entry.PEER_LOST, f'scancel: {_first_error(done.stderr)}. Try again.')
    print(f'job {launch["job"]} cancelled')
    return entry.OK


def wait(launch: launch_record.Launch) -> int:
    """Waits until all jobs of a launch are over, which requeued ones are not, and returns their exit status."""
    pause = _POLL
    while None in (statuses := exit_statuses(launch, command.patiently(lambda: states(launch)))):
        time.sleep(pause)
        pause = min(1.2 * pause, _POLL_MOST)
    return command.overall_status([status for status in statuses if status is not None])


def follow(launch: launch_record.Launch) -> int:
    """Prints the launch's logs as they grow until its jobs are over, and returns their exit status.

    Lines of a sweep begin with the point's number. What the jobs wait for goes to stderr.
    """
    places, rests = list(launch['log_starts']), [b''] * len(launch['logs'])
    waiting_before, statuses, asked, pause = None, [None], -_POLL_MOST, _POLL
    while True:
        if time.monotonic() - asked >= pause:
            rows = command.patiently(lambda: states(launch))
            asked, pause = time.monotonic(), min(1.2 * pause, _POLL_MOST)
            statuses = exit_statuses(launch, rows)
            waiting = [f'{row["JobArrayID"]} ({row["Reason"]})' for row in rows if row['State'] == 'PENDING']
            if waiting and waiting != waiting_before:
                print(f'launch.slurm: waiting to start: {", ".join(waiting)}', file=sys.stderr, flush=True)
            waiting_before = waiting
        over = None not in statuses
        for number, log in enumerate(launch['logs']):
            if not os.path.exists(log):
                continue
            with open(log, 'rb') as file:
                file.seek(places[number])
                text = rests[number] + file.read()
                places[number] = file.tell()
            lines, newline, rests[number] = text.rpartition(b'\n')
            if over:
                lines, newline, rests[number] = text, b'' if text.endswith(b'\n') or not text else b'\n', b''
            prefix = b'[%d] ' % number if len(launch['logs']) > 1 else b''
            if lines:
                sys.stdout.buffer.write(prefix + lines.replace(b'\n', b'\n' + prefix) + newline)
                sys.stdout.buffer.flush()
        if over:
            return command.overall_status([status for status in statuses if status is not None])
        time.sleep(_POLL)


def _check_installed(program: str) -> None:
    if not shutil.which(program):
        raise entry.UserError(
            entry.MISSING_INPUT, f'{program}: not on this host. Run this where Slurm is, e.g. on a login node.'
        )


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if 'error' in line.lower() or 'fail' in line.lower()]
    return '; '.join(errors or lines) or 'no reason given'
