"""launch.kubernetes: its manifests against the API's schemas and rules, and what runs in a pod.

No API server is at hand: kubectl is a stand-in.
"""

import itertools
import json
import os
import pathlib
import re
import stat
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from launch import launch_record
from tests import kubernetes_rules, launching, tiny

VERSIONS = ['1.29', '1.33', kubernetes_validate.latest_version()]
BASE = ['--image=registry.example/unet:1', '--pvc=data:/data', '--data_dir=/data/c', '--workdir=/data/runs/x']
CONFIG = ['--config=configs/cityscapes.py', '--config.global_batch=48']
NASTY = [
    'it\'s "quoted"',
    '$(HOME) $$(X) $HOME `id` \\',
    'two\nlines\r\n---\nkind: Pod',
    '--flag=ü € 😀',
    '',
    'no',
    '1e3',
]
EXTRAS = [
    '--host_path=/mnt/nfs data:/more:ro',
    '--env=MESSAGE=$(HOME) is "it\'s", #1: yes\n',
    '--env_secret=TOKEN=credentials:token',
    '--env_from_secret=all-of-it',
    '--pull_secret=registry',
    '--pull_policy=Always',
    '--namespace=vision',
    '--context=big cluster',
    '--priority_class=high',
    '--node_selector=gpu.example/model=h200',
    '--resource=rdma/hca_shared_devices_a=1',
    '--resource=vpc.amazonaws.com/efa=4',
    '--ipc_lock',
    '--runtime_class=nvidia',
    '--toleration=nvidia.com/gpu:NoSchedule',
    '--toleration=dedicated=vision:NoExecute',
    '--service_account=trainer',
    '--queue=vision-queue',
    '--deadline=86400',
    '--ttl=3600',
    '--cpu=1500m',
    '--memory=1.5Ti',
    '--shm=64Gi',
    '--gpu_resource=amd.com/gpu',
    '--name=a-name',
    '--max_restarts=0',
]


def render(folder: pathlib.Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    return launching.dry_runs('kubernetes', folder, commands)


def launch(*flags, rest=(), **environ) -> subprocess.CompletedProcess:
    return tiny.run([sys.executable, '-m', 'launch.kubernetes', *flags, '--', *rest], **environ)


def test_every_combination_of_flags_gives_valid_manifests(tmp_path):
    axes = (
        [['--workers=1', '--gpus_per_worker=0'], ['--workers=1', '--gpus_per_worker=4'], ['--workers=3']],
        ['--kind=job', '--kind=jobset'],
        [[], ['--stage_dir=/nvme'], ['--stage_dir=/disk/stage', '--host_path=/mnt/nvme:/disk']],
        [[], ['--sweep=config.seed=1,2']],
        [[], EXTRAS, *([extra] for extra in EXTRAS if not extra.startswith('--shm'))],
    )
    commands = []
    for workers, kind, stage, sweep, extras in itertools.product(*axes):
        if len(extras) == 1 and (stage or sweep or len(workers) > 1):
            continue  # each extra alone with each kind and size; all of them with everything
        commands.append([*BASE, *workers, kind, *stage, *sweep, *extras, '--', *CONFIG])
    commands.append([*BASE, '--module=data_prep.build_tfrecords', '--', '--cityscapes_dir=/data/raw'])
    commands.append([*BASE, '--data_dir=gs://bucket/c', '--stage_dir=/nvme', '--', *CONFIG])
    commands.append([*BASE, '--sweep=config.seed=1', '--', *CONFIG])
    for number, (command, result) in enumerate(zip(commands, render(tmp_path, commands), strict=True)):
        status, text, complaint = result
        assert status == 0, (command, complaint)
        plain = len(command) < len(BASE) + 8 and '--sweep=config.seed=1,2' not in command
        for version in VERSIONS if plain else [VERSIONS[number % len(VERSIONS)]]:
            assert kubernetes_rules.problems(list(yaml.safe_load_all(text)), version) == [], command
    assert len(commands) > 100


def test_the_rules_notice_what_the_schemas_miss(tmp_path):
    """Each change breaks a manifest that is otherwise right."""
    ((_, text, _),) = render(tmp_path, [[*BASE, '--workers=3', '--', *CONFIG]])
    assert kubernetes_rules.problems(list(yaml.safe_load_all(text)), VERSIONS[-1]) == []
    for old, new in (
        ('clusterIP: None', 'clusterIP: ""'),
        ('batch.kubernetes.io/job-name: "x"', 'batch.kubernetes.io/job-name: "y"'),
        ('subdomain: "x"', 'subdomain: "y"'),
        ('restartPolicy: Never', 'restartPolicy: OnFailure'),
        ('values: [75, 76, 134, 135, 139]', 'values: [0, 75]'),
        ('"claimName": "data"}}', '"claimName": "data"}}\n      - {name: unused, emptyDir: {}}'),
        ('"nvidia.com/gpu": 1}, "limits"', '"nvidia.com/gpu": 2}, "limits"'),
        ('x-{index}.x', 'y-{index}.x'),
        ('parallelism: 3', 'parallelism: 2'),
        ('runAsUser: 10001', 'runAsUser: 0'),
        ('backoffLimit: 3', 'backofLimit: 3'),
        ('backoffLimit: 3', 'backoffLimit: three'),
        ('metadata: {"name": "x"', 'metadata: {"name": "' + 'x' * 62 + '"'),
    ):
        assert old in text, old
        broken = list(yaml.safe_load_all(text.replace(old, new)))
        assert kubernetes_rules.problems(broken, VERSIONS[-1]), old


def test_what_a_user_passes_arrives_as_it_was(tmp_path):
    env = 'X=' + NASTY[1]
    commands = [
        [*BASE, '--module=tests.payload', f'--workers={n}', f'--env={env}', *sweep, '--', 'folder', '0', *NASTY]
        for n, sweep in ((1, []), (2, []), (1, ['--sweep=a=1,2']))
    ]
    for (status, text, complaint), sweep in zip(render(tmp_path, commands), (False, False, True), strict=True):
        assert status == 0, complaint
        documents = list(yaml.safe_load_all(text))
        assert [document['kind'] for document in documents] in (['Job'], ['Service', 'Job'])
        container = documents[-1]['spec']['template']['spec']['containers'][0]
        environ = kubernetes_rules.dict_of(container['env'])
        assert kubernetes_rules.expand(environ['X'], environ) == NASTY[1]
        words = [kubernetes_rules.expand(word, environ) for word in container['command']]
        if sweep:
            runs = [json.loads(word.removeprefix('--run=')) for word in words if word.startswith('--run=')]
            assert [run['command'][3:] for run in runs] == [['folder', '0', *NASTY, f'--a={n}'] for n in (1, 2)]
        else:
            assert words[words.index('--') + 4 :] == ['folder', '0', *NASTY]


def test_the_program_and_the_staging_before_it_get_what_they_read(tmp_path):
    predict = [BASE[0], BASE[1], BASE[3], '--module=unet.predict', '--', '--images=/data/new', '--output_dir=/data/out']
    stage = [*BASE, '--data_dir=gs://bucket/c', '--stage_dir=/nvme', '--env_from_secret=credentials', '--', *CONFIG]
    (_, predicting, complaint), (_, staging, _) = render(tmp_path, [predict, stage])
    (job,) = yaml.safe_load_all(predicting)
    words = job['spec']['template']['spec']['containers'][0]['command']
    assert words[-3:] == ['--workdir=/data/runs/x', '--images=/data/new', '--output_dir=/data/out'], complaint
    (job,) = yaml.safe_load_all(staging)
    pod = job['spec']['template']['spec']
    assert (
        pod['initContainers'][0]['envFrom']
        == pod['containers'][0]['envFrom']
        == [{'secretRef': {'name': 'credentials'}}]
    )


def test_a_sweep_of_single_workers_is_one_indexed_job_of_limited_parallelism(tmp_path):
    commands = [
        [*BASE, *flags, '--sweep=config.seed=1,2,3', '--', *CONFIG]
        for flags in (['--parallelism=2'], ['--workers=2'], ['--workers=2', '--parallelism=2'])
    ]
    one, several, refused = render(tmp_path, commands)
    (job,) = yaml.safe_load_all(one[1])
    assert (job['spec']['completions'], job['spec']['parallelism']) == (3, 2)
    jobs = [document for document in yaml.safe_load_all(several[1]) if document['kind'] == 'Job']
    assert [job['metadata']['name'] for job in jobs] == ['x-0', 'x-1', 'x-2']
    commands = [' '.join(job['spec']['template']['spec']['containers'][0]['command']) for job in jobs]
    assert ['--workdir=/data/runs/x/seed=2' in command for command in commands] == [False, True, False]
    assert refused[0] == 64 and 'Kueue' in refused[2]


@pytest.mark.parametrize(
    ('status', 'said', 'flags', 'rest'),
    [
        (64, '--image', ['--pvc=d:/data', '--data_dir=/data/c', '--workdir=/data/x'], CONFIG),
        (64, 'lost with the pod', [*BASE, '--workdir=/elsewhere/x'], CONFIG),
        (64, 'read-only', [*BASE, '--pvc=more:/ro:ro', '--workdir=/ro/x'], CONFIG),
        (64, 'mounted already', [*BASE, '--pvc=more:/data'], CONFIG),
        (64, '--shm=20Gi is part of', [*BASE, '--shm=20Gi'], CONFIG),
        (64, 'write e.g. 64Gi', [*BASE, '--memory=64GB'], CONFIG),
        (64, 'small letters', [*BASE, '--name=My_Run'], CONFIG),
        (64, 'at most 61 characters for 3', [*BASE, '--workers=3', '--name=' + 'a' * 62], CONFIG),
        (64, 'write NAME=value', [*BASE, '--env=A B=c'], CONFIG),
        (64, 'write the full name', [*BASE, '--resource=rdma=1'], CONFIG),
        (64, 'a flag for it', [*BASE, '--resource=nvidia.com/gpu=2'], CONFIG),
        (64, 'HOME is set already', [*BASE, '--env=HOME=/x'], CONFIG),
        (64, 'uses no GPUs', [*BASE, '--module=data_prep.build_tfrecords', '--gpus_per_worker=1'], []),
        (64, 'one host', [*BASE, '--module=data_prep.build_tfrecords', '--workers=2'], []),
        (64, 'no such program', [*BASE, '--module=unet.mian'], CONFIG),
        (64, "'globl_batch'", BASE, [*CONFIG, '--config.globl_batch=3']),
        (64, 'needs a config', BASE, []),
        (64, 'before the --', BASE, [*CONFIG, '--workdir=/data/y']),
        (64, 'comes twice', [*BASE, '--sweep=config.seed=1,1'], CONFIG),
        (64, 'write field=value', [*BASE, '--sweep=config.seed'], CONFIG),
        (64, '--parallelism is for', [*BASE, '--parallelism=2'], CONFIG),
        (64, 'no image has such a name', [*BASE, '--image=a b'], CONFIG),
        (66, 'no such file', BASE, ['--config=configs/nope.py']),
        (66, '--template=nope.yaml', [*BASE, '--template=nope.yaml'], CONFIG),
        (78, 'does not divide over 5', [*BASE, '--workers=5'], CONFIG),
        (78, 'config.model.depth=9', BASE, [*CONFIG, '--config.model.depth=9']),
        (78, 'config.model.depth=9', [*BASE, '--sweep=config.model.depth=4,9'], CONFIG),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(status, said, flags, rest, tmp_path):
    ((found, _, complaint),) = render(tmp_path, [[*flags, '--', *rest]])
    assert found == status and said in complaint and len(complaint.splitlines()) == 1


def test_a_template_of_ones_own_is_used_and_a_wrong_one_named(tmp_path):
    mine, broken = tmp_path / 'mine.yaml', tmp_path / 'broken.yaml'
    mine.write_text((tiny.ROOT / 'launch/templates/job.yaml').read_text().replace('spec:', 'spec:  # mine'))
    broken.write_text('kind: {{ knid }}')
    ok, bad = render(tmp_path, [[*BASE, f'--template={path}', '--', *CONFIG] for path in (mine, broken)])
    assert ok[0] == 0 and '# mine' in ok[1]
    assert bad[0] == 64 and "'knid' is undefined" in bad[2]


def test_launchers_start_without_tensorflow(tmp_path):
    """Neither --help nor --dry_run imports it, and importing the modules does not import unet either."""
    for module, flags in (('kubernetes', BASE), ('slurm', ['--data_elsewhere', '--workdir=x']), ('pod_entrypoint', [])):
        code = f"""
import sys
from launch import {module}, entry
sys.argv = ['launch/{module}.py', *{flags!r}, '--dry_run', '--', *{CONFIG!r}] if {bool(flags)} else ['x', '--help']
try:
    entry.run({module}.main, forwards=True)
finally:
    loaded = [name for name in sys.modules if name.partition('.')[0] in ('tensorflow', 'keras', 'unet')]
    print('LOADED', loaded, file=sys.stderr)
"""
        done = tiny.run([sys.executable, '-c', code], PATH='/nonexistent')
        assert 'LOADED []' in done.stderr and done.returncode == 0, done.stderr
    for module in ('kubernetes', 'slurm'):
        done = tiny.run([sys.executable, '-X', 'importtime', '-m', f'launch.{module}', '--help'])
        assert done.returncode == 0 and '--workdir' in done.stdout and 'tensorflow' not in done.stderr


_KUBECTL = """#!{python}
# A stand-in for kubectl: keeps what was created in a file, and answers `get`, `logs` and `delete` from it.
import json, os, pathlib, sys, yaml
state = pathlib.Path(os.environ['CLUSTER'])
words = [word for word in sys.argv[1:]]
with (state / 'calls').open('a') as calls:
    calls.write(json.dumps(words) + '\\n')
words = [word for word in words if not word.startswith(('--context', '--namespace'))]
created = state / 'manifest.yaml'
if words[0] == 'create':
    if created.exists():
        print('service/x created')
        sys.exit('Error from server (AlreadyExists): jobs.batch "x" already exists')
    if os.environ.get('SERVICE') == 'there':
        created.write_text(pathlib.Path(words[2]).read_text())
        print('job.batch/x created')
        sys.exit('Error from server (AlreadyExists): error when creating "x.yaml": services "x" already exists')
    created.write_text(pathlib.Path(words[2]).read_text())
elif words[0] == 'get' and words[1].startswith('job'):
    rounds = state / 'rounds'
    count = int(rounds.read_text()) + 1 if rounds.exists() else 1
    rounds.write_text(str(count))
    jobs = [job for job in yaml.safe_load_all(created.read_text()) if job['kind'] == 'Job'] if created.exists() else []
    end = os.environ['END']
    for job in jobs:
        job['status'] = {{'conditions': [{{'type': end, 'status': 'True'}}] if count > 1 else []}}
    print(json.dumps(jobs[0] if len(jobs) == 1 else {{'items': jobs}}) if jobs else '')
elif words[0] == 'get':
    pods = []
    for name, code in (('x-1-b', 76), ('x-0-a', int(os.environ['CODE']))):
        ended = {{'terminated': {{'exitCode': code}}}}
        status = {{'phase': 'Failed', 'containerStatuses': [{{'state': ended}}]}}
        if os.environ.get('SERVICE') == 'there':
            waits = {{'reason': 'ImagePullBackOff', 'message': 'no such image'}}
            lacks = {{'type': 'PodScheduled', 'status': 'False', 'reason': 'Unschedulable', 'message': 'no GPU free'}}
            container = {{'state': {{'waiting': waits}}}}
            status = {{'phase': 'Pending', 'containerStatuses': [container], 'conditions': [lacks]}}
        pods.append({{'metadata': {{'name': name, 'creationTimestamp': name}}, 'status': status}})
    unanswered = state / 'unanswered'
    if unanswered.exists():
        unanswered.unlink()
        sys.exit('Unable to connect to the server: net/http: TLS handshake timeout')
    print(json.dumps({{'items': pods}}))
elif words[0] == 'logs':
    sys.stdout.write(f'log of {{words[-1]}}\\n')
elif words[0] == 'delete' and '-f' in words:
    created.unlink()
    print('job.batch "x" deleted')
"""


def test_kubectl_is_called_to_submit_follow_wait_and_cancel(tmp_path):
    """Against a stand-in, which shows that the calls are made, not that a server takes them."""
    (tmp_path / 'bin').mkdir()
    kubectl = tmp_path / 'bin/kubectl'
    kubectl.write_text(_KUBECTL.format(python=sys.executable))
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    shared = tmp_path / 'runs/x'
    shared.mkdir(parents=True)
    (tmp_path / 'unanswered').touch()
    environ = {
        'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
        'CLUSTER': str(tmp_path),
        'END': 'Failed',
        'CODE': '66',
    }
    base = ['--image=i', f'--host_path={tmp_path}:{tmp_path}', f'--data_dir={tmp_path}', f'--workdir={shared}']
    where = ['--context=big', '--namespace=vision', '--workers=2']
    assert 'nothing was launched' in launch(f'--workdir={shared}', '--status', **environ).stderr
    done = launch(*base, *where, '--wait', rest=CONFIG, **environ)
    assert done.returncode == 66, done.stdout + done.stderr
    (folder,) = (shared / 'launch').iterdir()
    recorded = json.loads((folder / 'launch.json').read_text())
    assert recorded['job'] == 'x' and (folder / 'manifest.yaml').read_text() == (tmp_path / 'manifest.yaml').read_text()
    again = launch(*base, *where, rest=CONFIG, **environ)
    assert again.returncode == 73 and '--cancel' in again.stderr
    followed = launch(f'--workdir={shared}', '--follow', **environ)
    assert followed.returncode == 66 and 'log of pod/x-0-a' in followed.stdout and 'log of pod/x-1-b' in followed.stdout
    shown = launch(f'--workdir={shared}', '--status', **environ)
    assert shown.returncode == 0 and 'pod x-0-a  Failed  exit status 66' in shown.stdout
    assert launch(f'--workdir={shared}', '--cancel', **environ).returncode == 0
    assert not (tmp_path / 'manifest.yaml').exists()
    calls = [json.loads(line) for line in (tmp_path / 'calls').read_text().splitlines()]
    assert all(call[:2] == ['--context=big', '--namespace=vision'] for call in calls)
    assert ['delete', '--ignore-not-found', 'service/x'] in [call[2:] for call in calls]  # of the refused launch
    assert launch(*base, *where, '--wait', rest=CONFIG, **environ | {'END': 'Complete'}).returncode == 0
    (tmp_path / 'manifest.yaml').unlink()
    assert launch(*base, *where, rest=CONFIG, **environ | {'SERVICE': 'there'}).returncode == 0
    waiting = launch(f'--workdir={shared}', '--status', **environ | {'SERVICE': 'there'})
    assert 'pod x-0-a  Pending  ImagePullBackOff: no such image; Unschedulable: no GPU free' in waiting.stdout
    none = launch(*base, rest=CONFIG, PATH='/nonexistent')
    assert none.returncode == 66 and 'kubectl: not on this host' in none.stderr


def test_a_launch_is_found_once_its_pods_have_made_the_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / 'data/runs/x'
    for number in range(2):
        folder = launch_record.begin('runs/x' if not number else str(workdir))
        launch_record.finish(folder, {'launcher': 'kubernetes', 'job': str(number), 'workdir': str(workdir)})
        found = launch_record.latest(str(workdir), 'kubernetes', also='runs/x', workdir=str(workdir))
        assert found['job'] == str(number)


def test_the_first_process_of_a_pod_counts_attempts_and_picks_the_run(tmp_path):
    def attempt(*rest, index='0', runs=()):
        command = [sys.executable, '-m', 'launch.pod_entrypoint', '--launch=now', '--max_restarts=1', *runs]
        return tiny.run([*command, *rest], JOB_COMPLETION_INDEX=index)

    run = tmp_path / 'a run'
    program = [f'--workdir={run}', '--', sys.executable, '-m', 'tests.payload', str(run)]
    assert [attempt(*program, 'progress:2').returncode for _ in range(3)] == [76, 76, 0]
    assert [attempt(*program, '75').returncode for _ in range(2)] == [75, 70]
    gave_up = attempt(*program, '75')
    assert gave_up.returncode == 70 and '2 attempts in a row brought no new checkpoint' in gave_up.stderr
    assert attempt(*program, '76', index='1').returncode == 76  # the first worker counts for all
    runs = [
        '--run=' + json.dumps({'workdir': str(tmp_path / name), 'command': [*program[2:5], str(tmp_path / name), '0']})
        for name in ('one', 'two')
    ]
    assert attempt(index='1', runs=runs).returncode == 0
    assert (tmp_path / 'two/1-0.json').exists() and not (tmp_path / 'one').exists()
    environ = os.environ | {'UNET_NUM_WORKERS': '2', 'UNET_WORKER_ADDRESS': 'pod-{index}.invalid:1'}
    command = [sys.executable, '-m', 'launch.pod_entrypoint', '--launch=later', *program, '0']
    waiting = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, env=environ)
    assert b'waiting for pod-0.invalid, pod-1.invalid to be given a node' in waiting.stdout.readline()
    waiting.terminate()
    assert waiting.wait() == 75 and not (run / 'launch/later').exists()
    command = [sys.executable, '-m', 'launch.pod_entrypoint', '--launch=x', *program, 'sleep']
    killed = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE)
    while b'payload' not in killed.stdout.readline():
        pass
    killed.terminate()
    assert killed.wait() == 75  # the signal reached the program


def test_the_dockerfile_says_what_the_manifests_rely_on():
    text = (tiny.ROOT / 'Dockerfile').read_text()
    assert re.search(r'^ARG BASE=', text, re.M) and re.search(r'^FROM \$\{?BASE', text, re.M)
    assert re.search(r'^USER 10001', text, re.M)
