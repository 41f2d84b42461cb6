"""The processes that launch.kubernetes starts, as the pods of an Indexed Job would: each in a network of its own.

There is no Kubernetes here. What a pod gives to its process is set up as the manifest says it: command, environment,
completion index, host name, the names of the other pods, a network with an address of its own, a read-only root.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from tests import kubernetes_rules, tiny


def _missing() -> str:
    lacking = [program for program in ('unshare', 'ip', 'hostname') if not shutil.which(program)]
    if lacking:
        return f'no {", ".join(lacking)}: apt-get install iproute2 util-linux hostname'
    probe = subprocess.run(['unshare', '--net', '--mount', '--uts', 'ip', 'link'], capture_output=True, text=True)
    return f'no network namespaces here: {probe.stderr.strip()}' if probe.returncode else ''


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing() or 'there are network namespaces')

_POD = """
set -e
hostname "$1"
mount --make-rprivate /
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2" "$2"
mount --options remount,bind,ro /
ip link set lo up
echo ready
read -r _  # until its network card is there
ip address add "$3/24" dev card
ip link set card up
shift 3
exec "$@"
"""


def start(name: str, folder: pathlib.Path, address: str, command: list[str], environ: dict[str, str]):
    words = ['unshare', '--net', '--mount', '--uts', 'bash', '-c', _POD, 'bash', name, str(folder), address]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    pod = subprocess.Popen([*words, *command], cwd=tiny.ROOT, env=environ, text=True, **pipes)
    assert pod.stdout.readline() == 'ready\n'
    return pod


def test_two_pods_of_an_indexed_job_train_together(tmp_path):
    data_dir = tiny.write_folder(tmp_path / 'data', train=tiny.scenes(10), validation=tiny.scenes(3, seed=1))
    config = [flag for flag in tiny.train_command('', '') if flag.startswith('--config')]
    flags = ['--image=i', f'--host_path={tmp_path}:{tmp_path}', '--workers=2', '--gpus_per_worker=0', '--name=train']
    flags += [f'--data_dir={data_dir}', f'--workdir={tmp_path / "run"}', f'--stage_dir={tmp_path / "nvme"}']
    flags += [f'--python={sys.executable}', '--dry_run']
    done = tiny.run([sys.executable, '-m', 'launch.kubernetes', *flags, '--', *config])
    assert done.returncode == 0, done.stderr
    job = next(document for document in yaml.safe_load_all(done.stdout) if document['kind'] == 'Job')
    pod = job['spec']['template']['spec']
    container, stage = pod['containers'][0], pod['initContainers'][0]
    environ = kubernetes_rules.dict_of(container['env'])
    assert tiny.run(stage['command']).returncode == 0
    subdomain, count = pod['subdomain'], job['spec']['completions']
    names = [f'{job["metadata"]["name"]}-{index}' for index in range(count)]
    addresses = [f'10.231.7.{10 + index}' for index in range(count)]
    # What the cluster's DNS answers: the names below the headless Service, and nothing else.
    lines = [f'{address} {name}.{subdomain}' for address, name in zip(addresses, names, strict=True)]
    (tmp_path / 'hosts').write_text('\n'.join(['127.0.0.1 localhost', *lines]) + '\n')
    (tmp_path / 'scratch').mkdir()
    environ = {name: kubernetes_rules.expand(value, environ) for name, value in environ.items()}
    environ |= {'PATH': os.environ['PATH'], 'HOME': str(tmp_path / 'scratch'), 'TMPDIR': str(tmp_path / 'scratch')}
    command = [kubernetes_rules.expand(word, environ) for word in container['command']]
    pods = []
    try:
        for index in range(count):
            index_of_job = {'JOB_COMPLETION_INDEX': str(index)}  # as Kubernetes sets it in an Indexed Job
            pods.append(start(names[index], tmp_path, addresses[index], command, environ | index_of_job))
        join = ['ip', 'link', 'add', 'card', 'netns', str(pods[0].pid), 'type', 'veth']
        subprocess.run([*join, 'peer', 'name', 'card', 'netns', str(pods[1].pid)], check=True)
        for one in pods:
            one.stdin.write('\n')
            one.stdin.flush()
        said = [one.communicate(timeout=300)[0] for one in pods]
    finally:
        for one in pods:
            one.kill()
    assert [one.returncode for one in pods] == [0, 0], '\n'.join(said)
    assert 'on 2 CPU device(s)' in said[0] and 'mIoU' in said[0]
    assert (tmp_path / 'run/checkpoints/ckpt-12.index').exists()
    steps = [json.loads(line)['step'] for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    assert steps[-1] == 12
