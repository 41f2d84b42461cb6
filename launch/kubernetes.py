"""Trains on a Kubernetes cluster: it renders manifests, checks and submits them, and shows or ends the job.

    python -m launch.kubernetes --image=registry.example/unet:1 --workers=2 --gpus_per_worker=8 --pvc=data:/data \\
        --data_dir=/data/cityscapes --workdir=/data/runs/cityscapes -- --config=configs/cityscapes.py
    python -m launch.kubernetes --workdir=/data/runs/cityscapes --follow  # or --status, --cancel

Everything after `--` goes to unet.main unchanged; paths are those that the pods see. Several workers are an Indexed Job
with a headless Service, or a JobSet with --kind=jobset. A worker that is evicted or loses a peer starts again and goes
on from the last checkpoint; a failure that would only come again ends the job. --dry_run prints the manifests; your own
kubectl does the rest.
"""

import hashlib
import json
import os
import re
import shlex
import sys

from absl import flags

from launch import command, entry, job_spec, kubectl, launch_record, pod_spec, templates

flags.adopt_module_key_flags(job_spec)  # so that --help lists its flags too
_IMAGE = flags.DEFINE_string('image', None, 'Container image, e.g. built from the Dockerfile here; required.')
_WORKERS = flags.DEFINE_integer('workers', 1, 'Pods of each run.', lower_bound=1)
_KIND = flags.DEFINE_enum('kind', 'job', ['job', 'jobset'], 'jobset: all workers start again together; needs JobSet.')
_NAME = flags.DEFINE_string('name', None, "Name of the job; default the workdir's.")
_GPUS = flags.DEFINE_integer(
    'gpus_per_worker', None, 'GPUs of each pod; default 1, and 0 for --module=data_prep....', lower_bound=0
)
_GPU_RESOURCE = flags.DEFINE_string('gpu_resource', 'nvidia.com/gpu', 'What the cluster calls a GPU.')
_RESOURCE = flags.DEFINE_multi_string(
    'resource', [], 'NAME=N, something else each pod needs, e.g. rdma/hca_shared_devices_a=1 for InfiniBand.'
)
_IPC_LOCK = flags.DEFINE_bool('ipc_lock', False, 'Let the pods lock memory, as RDMA needs it.')
_RUNTIME_CLASS = flags.DEFINE_string('runtime_class', None, 'Runtime class of the pods, e.g. nvidia.')
_CPU = flags.DEFINE_string('cpu', '4', 'CPU cores of each pod, e.g. 8 or 500m.')
_MEMORY = flags.DEFINE_string('memory', '16Gi', 'Memory of each pod, with that of --shm.')
_SHM = flags.DEFINE_string('shm', '2Gi', 'Size of /dev/shm, which NCCL uses.')
_PVC = flags.DEFINE_multi_string('pvc', [], 'CLAIM:/path[:ro], a persistent volume claim to mount.')
_HOST_PATH = flags.DEFINE_multi_string('host_path', [], "/of/the/node:/path[:ro], a folder of the node's to mount.")
_ENV = flags.DEFINE_multi_string('env', [], 'NAME=value for the container.')
_ENV_SECRET = flags.DEFINE_multi_string('env_secret', [], 'NAME=SECRET:KEY, a variable from a secret.')
_ENV_FROM_SECRET = flags.DEFINE_multi_string('env_from_secret', [], 'Secret whose keys all become variables.')
_PULL_SECRET = flags.DEFINE_multi_string('pull_secret', [], 'Secret for the image registry.')
_PULL_POLICY = flags.DEFINE_enum(
    'pull_policy', 'IfNotPresent', ['IfNotPresent', 'Always', 'Never'], 'When to pull the image.'
)
_NAMESPACE = flags.DEFINE_string('namespace', None, "Namespace; default the context's.")
_CONTEXT = flags.DEFINE_string('context', None, 'Context of kubectl; default the current one.')
_PRIORITY_CLASS = flags.DEFINE_string('priority_class', None, 'Priority class of the pods.')
_NODE_SELECTOR = flags.DEFINE_multi_string('node_selector', [], 'label=value that nodes must have.')
_TOLERATION = flags.DEFINE_multi_string('toleration', [], 'key[=value]:Effect, a taint that is put up with.')
_SERVICE_ACCOUNT = flags.DEFINE_string('service_account', None, 'Service account; its token is not mounted.')
_QUEUE = flags.DEFINE_string('queue', None, 'Local queue of Kueue.')
_DEADLINE = flags.DEFINE_integer('deadline', None, 'Seconds after which the job is ended for good.', lower_bound=1)
_TTL = flags.DEFINE_integer('ttl', None, 'Seconds after its end at which the job is deleted.', lower_bound=0)
_GRACE = flags.DEFINE_integer('grace', 120, 'Seconds from the request to stop to the kill.', lower_bound=1)
_USER = flags.DEFINE_integer('user', 10001, 'User and group id of the process, not root.', lower_bound=1)
_PORT = flags.DEFINE_integer('port', 12321, 'Port on which workers listen.', lower_bound=1024, upper_bound=65535)

_PERMANENT = [entry.BAD_USAGE, entry.BAD_DATA, entry.MISSING_INPUT, entry.DIVERGED, entry.BAD_CONFIG]
_BACKOFF_LIMIT = 3  # other failures, a crash say, before the job is given up
_ROLE = 'worker'  # the replicated job of a JobSet


def main(arguments: list[str]) -> int:
    """Creates the jobs, or does what --status, --follow or --cancel ask for; `arguments` are the program's."""
    asked = job_spec.subcommand()
    if asked:
        action, workdir = asked
        launch = _latest(workdir)
        with launch_record.watch(launch):
            actions = {'status': kubectl.print_status, 'follow': kubectl.follow, 'cancel': kubectl.cancel}
            return actions[action](launch)
    gpus = job_spec.default_gpus() if _GPUS.value is None else _GPUS.value
    spec = job_spec.from_flags(
        arguments, python=job_spec.PYTHON.value or 'python', workers=_WORKERS.value, gpus=gpus, data_is_here=False
    )
    if job_spec.DRY_RUN.value:
        print(_render(spec, gpus, 'dry-run')[0], end='', flush=True)
        return entry.OK
    folder = launch_record.begin(_record_dir(spec.workdir))
    text, names = _render(spec, gpus, folder.name)
    manifest = folder / 'manifest.yaml'
    manifest.write_text(text, encoding='utf-8')
    launch = {
        'launcher': 'kubernetes',
        'job': ','.join(names),
        'kind': _KIND.value,
        'names': names,
        'namespace': _NAMESPACE.value,
        'context': _CONTEXT.value,
        'argv': sys.argv[1:],
        'workdir': spec.workdir,
        'runs': [run.workdir for run in spec.runs],
    }
    kubectl.create(manifest, launch)
    launch_record.finish(folder, launch)
    where = shlex.quote(f'--workdir={spec.workdir}')
    print(f'created {_KIND.value} {", ".join(names)}; {where} --follow shows its log', flush=True)
    launch = _latest(spec.workdir)
    with launch_record.watch(launch):
        return kubectl.wait(launch) if job_spec.WAIT.value else entry.OK


def _record_dir(workdir: str) -> str:
    """Returns where a launch is recorded: in the workdir if this host sees it, else in runs/<its name>."""
    return workdir if os.path.isdir(workdir) else _elsewhere(workdir)


def _elsewhere(workdir: str) -> str:
    return os.path.join('runs', os.path.basename(os.path.abspath(workdir)))


def _latest(workdir: str) -> launch_record.Launch:
    """Returns the last launch of a workdir. Its record may lie beside those of another workdir of the same name, also
    when the pods have made the workdir since."""
    workdir = os.path.abspath(workdir)
    return launch_record.latest(workdir, 'kubernetes', also=_elsewhere(workdir), workdir=workdir)


def _render(spec: job_spec.JobSpec, gpus: int, launch: str) -> tuple[str, list[str]]:
    """Returns the manifests and the names of their jobs."""
    if not _IMAGE.value:
        raise entry.UserError(entry.BAD_USAGE, 'pass --image, e.g. one that was built from the Dockerfile here')
    if re.search(r'\s', _IMAGE.value):
        raise entry.UserError(entry.BAD_USAGE, f'--image={_IMAGE.value!r}: no image has such a name')
    _check_resources(gpus)
    volumes, mounts = _volumes(spec)
    jobs = _jobs(spec, gpus, launch)
    requests = {'cpu': _CPU.value, 'memory': _MEMORY.value}
    devices = {_GPU_RESOURCE.value: gpus} if gpus else {}
    for name, count in map(pod_spec.resource, _RESOURCE.value):
        if name in {**requests, **devices}:
            raise entry.UserError(
                entry.BAD_USAGE, f'--resource={name}={count}: there is a flag for it, or it is given twice'
            )
        devices[name] = count
    variables = {
        'jobs': jobs,
        'image': _IMAGE.value,
        'pull_policy': _PULL_POLICY.value,
        'resources': {'requests': requests | devices, 'limits': {'memory': _MEMORY.value} | devices},
        'capabilities': {'drop': ['ALL']} | ({'add': ['IPC_LOCK']} if _IPC_LOCK.value else {}),
        'stage': [pod_spec.literal(word) for word in spec.stage],
        'stage_resources': {'requests': requests, 'limits': {'memory': _MEMORY.value}},
        'stage_environ': pod_spec.environ({}, _ENV.value, _ENV_SECRET.value, gpus=0),
        'volumes': volumes,
        'mounts': mounts,
        'env_from': [{'secretRef': {'name': name}} for name in _ENV_FROM_SECRET.value],
        'pod_fields': _pod_fields(),
        'spread': _WORKERS.value > 1,
        'run_again': list(command.RUN_AGAIN),
        'permanent': _PERMANENT,
        'backoff_limit': _BACKOFF_LIMIT,
        'max_restarts': job_spec.MAX_RESTARTS.value,
        'queue': _QUEUE.value,
        'deadline': _DEADLINE.value,
        'ttl': _TTL.value,
        'grace': _GRACE.value,
        'user': _USER.value,
        'shm': _SHM.value,
        'port': _PORT.value,
        'role': _ROLE,
    }
    template = job_spec.TEMPLATE.value or templates.TEMPLATES / (
        'jobset.yaml' if _KIND.value == 'jobset' else 'job.yaml'
    )
    text = templates.render(template, variables)
    return text, [job['name'] for job in jobs]


def _jobs(spec: job_spec.JobSpec, gpus: int, launch: str) -> list[dict]:
    """Returns what differs between the jobs: one for a run or for a sweep with one pod per run, else one per run."""
    is_array = spec.is_sweep and _WORKERS.value == 1 and _KIND.value == 'job'
    if job_spec.PARALLELISM.value and not is_array and not _QUEUE.value:
        raise entry.UserError(
            entry.BAD_USAGE,
            '--parallelism: Kubernetes itself limits a sweep only of runs with --workers=1 and --kind=job; give a '
            '--queue of Kueue to limit others by what it admits',
        )
    base = _name(spec.workdir)
    count = 1 if is_array else len(spec.runs)
    jobs = []
    for number, run in enumerate(spec.runs[:count]):
        name = base if count == 1 else f'{base}-{number}'
        _check_name(name)
        if is_array:
            runs = [f'--run={json.dumps({"workdir": r.workdir, "command": r.command})}' for r in spec.runs]
            words = [run.command[0], '-m', 'launch.pod_entrypoint', *_attempt_flags(launch), *runs]
        else:
            progress = [f'--progress={spec.data_dir}'] if spec.is_data_prep else []
            words = [run.command[0], '-m', 'launch.pod_entrypoint', *_attempt_flags(launch), f'--workdir={run.workdir}']
            words += [*progress, '--', *run.command]
        labels = {
            'app.kubernetes.io/name': 'unet',
            'app.kubernetes.io/instance': name,
            'app.kubernetes.io/managed-by': 'launch.kubernetes',
        }
        metadata = {
            'name': name,
            'labels': labels | ({'kueue.x-k8s.io/queue-name': _QUEUE.value} if _QUEUE.value else {}),
        }
        metadata['annotations'] = {'unet/launch': launch, 'unet/workdir': run.workdir}
        if _NAMESPACE.value:
            metadata['namespace'] = _NAMESPACE.value
        indices = len(spec.runs) if is_array else _WORKERS.value
        jobs.append(
            {
                'name': name,
                'metadata': metadata,
                'workers': _WORKERS.value,
                'is_array': is_array,
                'indices': indices,
                'parallelism': min(job_spec.PARALLELISM.value or indices, indices) if is_array else indices,
                'command': [pod_spec.literal(word) for word in words],
                'environ': pod_spec.environ(_cluster(name), _ENV.value, _ENV_SECRET.value, gpus=gpus),
            }
        )
    return jobs


def _attempt_flags(launch: str) -> list[str]:
    return [f'--launch={launch}', f'--max_restarts={job_spec.MAX_RESTARTS.value}']


def _cluster(name: str) -> dict[str, str]:
    """Returns the variables by which the workers find each other, see unet/distributed/cluster.py.

    The rank is the JOB_COMPLETION_INDEX that Kubernetes sets.
    """
    if _WORKERS.value == 1:
        return {'UNET_CLUSTER': 'off'}
    pod = f'{name}-{_ROLE}-0' if _KIND.value == 'jobset' else name
    return {
        'UNET_NUM_WORKERS': str(_WORKERS.value),
        'UNET_WORKER_ADDRESS': f'{pod}-{{index}}.{name}:{_PORT.value}',
    }


def _volumes(spec: job_spec.JobSpec) -> tuple[list[dict], list[dict]]:
    """Makes the volumes of a pod and its mounts, which must hold all that is to outlive the pod."""
    volumes, mounts = pod_spec.volumes(_PVC.value, _HOST_PATH.value)
    if spec.stage:
        stage_dir = os.path.dirname(spec.data_dir)
        if pod_spec.mount_of(stage_dir, mounts) is None:
            volumes.append({'name': 'stage', 'emptyDir': {}})
            mounts.append({'name': 'stage', 'mountPath': stage_dir})
    needed = {'workdir': (spec.workdir, True)}
    if (command.reads_records(spec.module) or spec.is_data_prep) and '://' not in job_spec.DATA_DIR.value:
        needed['data_dir'] = (job_spec.DATA_DIR.value, spec.is_data_prep)
    for name, (path, written) in needed.items():
        mount = pod_spec.mount_of(path, mounts)
        if not path.startswith('/') or mount is None:
            raise entry.UserError(
                entry.BAD_USAGE,
                f'--{name}={path}: not below any --pvc or --host_path, so it would be lost with the pod. Mount storage '
                'and give the path that the pods see, e.g. --pvc=data:/data.',
            )
        if written and mount.get('readOnly'):
            raise entry.UserError(entry.BAD_USAGE, f'--{name}={path}: {mount["mountPath"]} is mounted read-only')
    return volumes, mounts


def _pod_fields() -> dict[str, object]:
    fields = {
        'imagePullSecrets': [{'name': name} for name in _PULL_SECRET.value],
        'priorityClassName': _PRIORITY_CLASS.value,
        'serviceAccountName': _SERVICE_ACCOUNT.value,
        'runtimeClassName': _RUNTIME_CLASS.value,
        'nodeSelector': dict(pod_spec.node_label(text) for text in _NODE_SELECTOR.value),
        'tolerations': [pod_spec.toleration(text) for text in _TOLERATION.value],
    }
    return {name: value for name, value in fields.items() if value}


def _name(workdir: str) -> str:
    """Returns --name, or a name made of the workdir's last part."""
    if _NAME.value:
        return _NAME.value
    name = os.path.basename(workdir)
    clean = re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
    if clean != name or not clean[:1].isalpha() or len(clean) > 40:  # tell apart what has become alike
        clean = f'unet-{clean}'[:31].strip('-') + '-' + hashlib.sha256(os.fsencode(workdir)).hexdigest()[:8]
    return clean


def _check_name(name: str) -> None:
    """Raises UserError BAD_USAGE for a name that is none for the job, its Service, or the host names <job>-<index>."""
    last = f'{name}-{_ROLE}-0-{_WORKERS.value - 1}' if _KIND.value == 'jobset' else f'{name}-{_WORKERS.value - 1}'
    if not re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', name) or len(last) > 63:
        raise entry.UserError(
            entry.BAD_USAGE,
            f'--name={name}: small letters, digits and hyphens, beginning with a letter, at most '
            f'{63 - len(last) + len(name)} characters for {_WORKERS.value} workers',
        )


def _check_resources(gpus: int) -> None:
    """Raises UserError BAD_USAGE for quantities that are none and for flags that contradict each other."""
    quantities = {}
    for name, text in (('memory', _MEMORY.value), ('shm', _SHM.value), ('cpu', _CPU.value)):
        quantities[name] = pod_spec.quantity(text) or 0.0
        if not quantities[name]:
            raise entry.UserError(
                entry.BAD_USAGE, f'--{name}={text}: write e.g. {"500m or 8" if name == "cpu" else "64Gi"}'
            )
    if quantities['shm'] >= quantities['memory']:
        raise entry.UserError(
            entry.BAD_USAGE, f'--shm={_SHM.value} is part of --memory={_MEMORY.value} and must be less'
        )
    if gpus and job_spec.MODULE.value.startswith('data_prep.'):
        raise entry.UserError(entry.BAD_USAGE, f'--gpus_per_worker={gpus}: data_prep uses no GPUs; leave it out')


if __name__ == '__main__':
    entry.run(main, forwards=True)
