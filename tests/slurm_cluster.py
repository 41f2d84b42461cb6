"""A real Slurm cluster of two nodes on this one machine, without systemd, cgroups, or another user's rights.

    with slurm_cluster.raised() as environ:
        subprocess.run(['sinfo'], env=environ)

Daemons run in the foreground as children of this process, on ports of their own, with a munge key and socket of their
own, so that no other Slurm on the machine is touched. Partitions: `main` (default), `preemptible` and `urgent`, whose
jobs requeue those of `preemptible`. Every node has 4 CPUs, which need not be there, 16 GB and 2 GPUs, which are not.
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

NODES = ('node1', 'node2')
_PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol')

_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a requeued job may start once its credential has expired: 121 s by default, 5 s at the least
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,sched_interval=1,bf_interval=1,batch_sched_delay=0
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
EnforcePartLimits=ALL
MinJobAge=600
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=16000 Gres=gpu:2 Feature=old
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=16000 Gres=gpu:2 Feature=new
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=01:00:00 PriorityTier=10 PreemptMode=OFF
PartitionName=preemptible Nodes=node[1-2] MaxTime=01:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=node[1-2] MaxTime=01:00:00 PriorityTier=100 PreemptMode=OFF
"""
_GRES_CONF = 'AutoDetect=off\nNodeName=node[1-2] Name=gpu File={folder}/nvidia[0-1]\n'
_CGROUP_CONF = 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n'  # slurmd 22.05 loads a plugin even when none is used


def missing() -> str:
    """Returns why no cluster can be raised here; '' if one can."""
    lacking = [program for program in _PROGRAMS if not find(program)]
    return f'no {", ".join(lacking)}: apt-get install slurm-wlm munge' if lacking else ''


def find(program: str) -> str | None:
    return shutil.which(program, path=os.environ['PATH'] + ':/usr/sbin:/usr/local/sbin')


@contextlib.contextmanager
def raised() -> Iterator[dict[str, str]]:
    """Starts the cluster and yields the environment in which Slurm's commands speak to it.

    Raises:
      RuntimeError: with the daemons' last lines, if it does not come up.
    """
    # a short path, since it will hold sockets
    with tempfile.TemporaryDirectory(prefix='slurm-') as name, _raised_in(pathlib.Path(name)) as environ:
        yield environ


@contextlib.contextmanager
def _raised_in(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    for name in ('state', 'spool/node1', 'spool/node2'):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munged wants its socket to be within everyone's reach
    key = folder / 'munge.key'
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    for number in range(2):
        (folder / f'nvidia{number}').symlink_to('/dev/null')  # Slurm wants a device
    known = {'folder': folder, 'host': socket.gethostname().split('.')[0], 'user': getpass.getuser()}
    (folder / 'slurm.conf').write_text(_SLURM_CONF.format(**known, ports=_free_ports(3)))
    (folder / 'gres.conf').write_text(_GRES_CONF.format(**known))
    (folder / 'cgroup.conf').write_text(_CGROUP_CONF)
    # A cluster started from within a job of another one must not take itself for a part of it.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(('SLURM', 'SBATCH', 'SRUN'))}
    environ |= {'SLURM_CONF': str(folder / 'slurm.conf')}
    environ['PATH'] += ':/usr/sbin:/usr/local/sbin'

    with contextlib.ExitStack() as stack:

        def start(name: str, *command: str) -> None:
            log = stack.enter_context((folder / f'{name}.log').open('wb'))
            process = subprocess.Popen(
                [find(command[0]), *command[1:]],
                env=environ,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(_end, process)

        start(
            'munged',
            'munged',
            '--foreground',
            f'--key-file={key}',
            f'--socket={folder}/munge.socket',
            f'--pid-file={folder}/munged.pid',
            f'--seed-file={folder}/munge.seed',
        )
        _wait_until(lambda: (folder / 'munge.socket').exists(), folder)
        start('slurmctld', 'slurmctld', '-D', '-c')
        for node in NODES:
            start(node, 'slurmd', '-D', '-N', node)
        _wait_until(lambda: _idle_nodes(environ) == set(NODES), folder)
        stack.callback(_cancel_all, environ)
        yield environ


def _idle_nodes(environ: dict[str, str]) -> set[str]:
    listed = subprocess.run(
        ['sinfo', '--noheader', '--Node', '--partition=main', '--states=idle', '--format=%N'],
        env=environ,
        capture_output=True,
        text=True,
    )
    return set(listed.stdout.split())


def _cancel_all(environ: dict[str, str]) -> None:
    def queue() -> str:
        return subprocess.run(['squeue', '-h', '-o', '%A'], env=environ, capture_output=True, text=True).stdout

    for job in set(queue().split()):
        subprocess.run(['scancel', '--signal=KILL', '--full', job], env=environ, capture_output=True)
        subprocess.run(['scancel', job], env=environ, capture_output=True)
    deadline = time.monotonic() + 20
    while queue() and time.monotonic() < deadline:
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until(condition, folder: pathlib.Path) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            logs = '\n'.join(f'{log.name}:\n{log.read_text()[-800:]}' for log in sorted(folder.glob('*.log')))
            raise RuntimeError(f'the Slurm cluster did not come up\n{logs}')
        time.sleep(0.05)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
