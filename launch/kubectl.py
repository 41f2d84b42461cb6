"""What launch.kubernetes does with the user's own kubectl: it creates, watches and deletes the jobs of a launch.

There was no API server to test this with: the tests run a stand-in for kubectl that answers as its documentation says.
"""

import datetime
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time

from launch import command, entry, launch_record

_POLL = 3.0  # seconds
_RESOURCES = {'job': 'jobs.batch', 'jobset': 'jobsets.jobset.x-k8s.io'}


def _kubectl(launch: launch_record.Launch) -> list[str]:
    if not shutil.which('kubectl'):
        raise entry.UserError(
            entry.MISSING_INPUT,
            'kubectl: not on this host. Install it, or use --dry_run and submit the output yourself.',
        )
    where = [f'--{name}={launch[name]}' for name in ('context', 'namespace') if launch.get(name)]
    return ['kubectl', *where]


def _run(launch: launch_record.Launch, *words: str) -> str:
    done = subprocess.run([*_kubectl(launch), *words], capture_output=True, text=True)
    if done.returncode:
        raise entry.UserError(entry.PEER_LOST, f'kubectl {words[0]}: {" ".join(done.stderr.split()) or "failed"}')
    return done.stdout


def create(manifest: os.PathLike[str], launch: launch_record.Launch) -> None:
    """Creates what a manifest describes.

    Args:
      manifest: the file.
      launch: its 'context' and 'namespace' say where.

    Raises:
      UserError: IN_USE if a job of that name is there, BAD_CONFIG with kubectl's own words if it refuses. What it has
        created nevertheless, since it goes on after an error, is deleted again.
    """
    done = subprocess.run([*_kubectl(launch), 'create', '-f', str(manifest)], capture_output=True, text=True)
    if not done.returncode:
        return
    created = re.findall('^(.+) created$', done.stdout, re.MULTILINE)
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    # The Service of a job that --ttl has deleted serves the next one of its name.
    if created and errors and all('(AlreadyExists)' in line and 'services "' in line for line in errors):
        return
    if created:
        _run(launch, 'delete', '--ignore-not-found', *created)
    reason = ' '.join(' '.join(errors).split()) or 'no reason given'
    if 'AlreadyExists' in reason:
        raise entry.UserError(entry.IN_USE, f'{reason}. --cancel deletes it; or pass another --name.')
    raise entry.UserError(entry.BAD_CONFIG, f'kubectl refuses the job: {reason}')


def _jobs(launch: launch_record.Launch) -> list[dict | None]:
    """Returns the launch's jobs as the server has them; None for one that is gone."""
    names = launch['names']
    found = json.loads(_run(launch, 'get', _RESOURCES[launch['kind']], '--ignore-not-found', '-o=json', *names) or '{}')
    jobs = {job['metadata']['name']: job for job in found.get('items', [found] if found else [])}
    return [jobs.get(name) for name in names]


def _pods(launch: launch_record.Launch, name: str) -> list[dict]:
    found = json.loads(_run(launch, 'get', 'pods', f'--selector=app.kubernetes.io/instance={name}', '-o=json'))
    return sorted(found['items'], key=lambda pod: pod['metadata']['creationTimestamp'])


def _outcome(job: dict | None) -> str:
    """Returns 'complete', 'failed', 'gone', or '' for one that is not over."""
    if job is None:
        return 'gone'
    for condition in job.get('status', {}).get('conditions', []):
        if condition['status'] == 'True' and condition['type'] in ('Complete', 'Failed', 'Completed'):
            return 'failed' if condition['type'] == 'Failed' else 'complete'
    return ''


def _exit_statuses(pods: list[dict]) -> list[int]:
    """Of all containers that have ended."""
    ended = [state['terminated'] for pod in pods for state in _container_states(pod) if state.get('terminated')]
    return [container['exitCode'] for container in ended]


def _container_states(pod: dict) -> list[dict]:
    status = pod.get('status', {})
    containers = [*status.get('initContainerStatuses', []), *status.get('containerStatuses', [])]
    return [container.get('state', {}) for container in containers]


def _waits_for(pod: dict) -> str:
    """Why a pod or one of its containers does not start, in the cluster's words; '' if none waits."""
    conditions = pod.get('status', {}).get('conditions', [])
    waiting = [state.get('waiting', {}) for state in _container_states(pod)]
    waiting += [found for found in conditions if found['status'] == 'False' and found['type'] == 'PodScheduled']
    reasons = [': '.join(filter(None, (found.get('reason'), found.get('message')))) for found in waiting]
    return '; '.join(dict.fromkeys(reason for reason in reasons if reason and reason != 'PodInitializing'))


def _overall_status(launch: launch_record.Launch, outcomes: list[str]) -> int:
    """Exit status of jobs that are over."""
    named = zip(launch['names'], outcomes, strict=True)
    return command.overall_status([_status(launch, name, outcome) for name, outcome in named])


def _status(launch: launch_record.Launch, name: str, outcome: str) -> int:
    """Exit status of a job that is over."""
    if outcome == 'complete':
        return entry.OK
    if outcome == 'gone':
        return entry.PEER_LOST
    pods = command.patiently(lambda: _pods(launch, name))
    return command.overall_status([status for status in _exit_statuses(pods) if status] or [entry.BUG])


def print_status(launch: launch_record.Launch) -> int:
    """Prints the state of the jobs and their pods, and the exit statuses of containers that have ended."""
    for name, job in zip(launch['names'], _jobs(launch), strict=True):
        outcome = _outcome(job)
        print(f'{launch["kind"]} {name}  {outcome or "running or waiting"}')
        for pod in _pods(launch, name) if job else []:
            statuses = ', '.join(map(str, _exit_statuses([pod])))
            note = f'exit status {statuses}' if statuses else _waits_for(pod)
            print(f'  pod {pod["metadata"]["name"]}  {pod["status"].get("phase", "?")}  {note}'.rstrip())
    print(f'submitted {launch["submitted"]}  manifest {launch["folder"]}/manifest.yaml')
    return entry.OK


def cancel(launch: launch_record.Launch) -> int:
    """Deletes what was created; pods are asked to stop and save a checkpoint first."""
    print(_run(launch, 'delete', '--ignore-not-found', '-f', f'{launch["folder"]}/manifest.yaml').strip())
    return entry.OK


def wait(launch: launch_record.Launch) -> int:
    """Waits until all jobs of a launch are over, and returns their exit status."""
    while not all(outcomes := [_outcome(job) for job in command.patiently(lambda: _jobs(launch))]):
        time.sleep(_POLL)
    return _overall_status(launch, outcomes)


def follow(launch: launch_record.Launch) -> int:
    """Prints the logs of all pods, also of those that replace others, until the jobs are over.

    What pods wait for goes to stderr.

    Returns:
      Their exit status.
    """
    streams = _Streams(launch)
    reasons: dict[str, str] = {}
    try:
        while True:
            outcomes = [_outcome(job) for job in command.patiently(lambda: _jobs(launch))]
            for name in launch['names']:
                for pod in command.patiently(functools.partial(_pods, launch, name)):
                    streams.keep_open(pod)
                    pod_name, reason = pod['metadata']['name'], _waits_for(pod)
                    if reason and reasons.get(pod_name) != reason:
                        print(f'launch.kubernetes: pod {pod_name}: {reason}', file=sys.stderr, flush=True)
                    reasons[pod_name] = reason
            if all(outcomes):
                streams.wait()
                return _overall_status(launch, outcomes)
            time.sleep(_POLL)
    finally:
        streams.close()


class _Streams:
    """The logs of pods on their way to the screen, each by a `kubectl logs` of its own."""

    def __init__(self, launch: launch_record.Launch):
        self._launch = launch
        self._process: dict[str, subprocess.Popen] = {}
        self._ended: dict[str, str] = {}  # those whose log ended, and since when at most

    def keep_open(self, pod: dict) -> None:
        """Begins the log of a pod that has started, and goes on with one that broke off while its pod runs."""
        name, phase = pod['metadata']['name'], pod['status'].get('phase')
        if name not in self._process and phase != 'Pending':
            self._begin(name)
        elif name in self._process and phase == 'Running' and self._process[name].poll() is not None:
            earlier = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=2 * _POLL)
            since = self._ended.setdefault(name, earlier.isoformat(timespec='seconds'))
            if since < earlier.isoformat(timespec='seconds'):  # the pod did not just end
                self._begin(name, f'--since-time={since}')
                del self._ended[name]

    def _begin(self, name: str, *flags: str) -> None:
        words = ['logs', '--follow', '--prefix', '--all-containers', *flags, f'pod/{name}']
        self._process[name] = subprocess.Popen([*_kubectl(self._launch), *words])

    def wait(self) -> None:
        """Waits until all logs are printed."""
        for process in self._process.values():
            process.wait()

    def close(self) -> None:
        """Ends those that are not."""
        for process in self._process.values():
            if process.poll() is None:
                process.terminate()
