"""Who computes: the workers of a cluster, and the devices of this one, as a tf.distribute strategy.

    with cluster.join(virtual_devices=0, peer_seconds=120, stall_seconds=1800) as joined:
        joined.strategy.run(...)

A cluster is described by environment variables, which launchers set:

    TF_CONFIG             TensorFlow's own JSON, with workers (and perhaps a chief), or else
    UNET_WORKERS          host:port of each worker, separated by commas, or else
    UNET_NUM_WORKERS      how many, at
    UNET_WORKER_ADDRESS   pattern of each worker's address, e.g. train-{index}.train:3333
    UNET_RANK             this worker's place from 0; else JOB_COMPLETION_INDEX (an Indexed Job of Kubernetes); else
                          SLURM_PROCID, in a step of Slurm
    UNET_CLUSTER=off      ignore all these

Without any of them, a bare `srun` shell included, the process is on its own.
"""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow.python.distribute import cross_device_utils  # its keys have no public name in TensorFlow 2.21

from launch import entry, host
from unet.distributed import process_group, shutdown, stragglers


@dataclasses.dataclass(frozen=True)
class Workers:
    """host:port of each worker process, and which of them this is."""

    addresses: list[str] = dataclasses.field(default_factory=lambda: ['localhost:0'])
    rank: int = 0

    @property
    def count(self) -> int:
        return len(self.addresses)


ALONE = Workers()


@dataclasses.dataclass(frozen=True)
class Joined:
    """A process's place in the cluster, once all processes are there.

    Attributes:
      workers: the processes.
      group: connects this process with the others.
      strategy: the devices of all processes.
      stall: ends the process unless its `progress` is called again and again.
    """

    workers: Workers
    group: process_group.ProcessGroup
    strategy: tf.distribute.Strategy
    stall: shutdown.Stall

    @property
    def is_chief(self) -> bool:
        return self.group.rank == 0

    @property
    def replicas(self) -> int:
        return self.strategy.num_replicas_in_sync

    def name_of_replica(self, replica: int) -> str:
        """Returns what a replica is called: its number, its worker if there are several, and its device there."""
        local = self.replicas // self.workers.count
        kind = 'GPU' if tf.config.list_logical_devices('GPU') else 'CPU'
        worker = f'{self.group.name(replica // local)}, ' if self.workers.count > 1 else ''
        return f'replica {replica} ({worker}{kind}:{replica % local})'


@contextlib.contextmanager
def join(
    *,
    virtual_devices: int,
    peer_seconds: float,
    stall_seconds: float,
    time_sums: bool = False,
    stop: shutdown.StopRequest | None = None,
    compare: Sequence[tuple[str, object, str]] = (),
) -> Iterator[Joined]:
    """Joins the cluster that the environment describes, or none, until the block ends.

    All processes meet, make sure that they agree, and only then build TensorFlow's cluster, which would wait without
    end for one that does not come. Within the block only rank 0 prints to stdout.

    Args:
      virtual_devices: see `make_strategy`.
      peer_seconds: how long the processes wait for each other, now and for each sign of life.
      stall_seconds: the process ends if `Joined.stall.progress` is not called for so long.
      time_sums: of several workers, count how long this one is in sums over replicas, see `stragglers.time_sums`; not
        where XLA compiles those, or no clock may be read.
      stop: a request to stop, heeded while waiting.
      compare: (name, value, remedy) of what must be the same on all ranks.

    Raises:
      UserError: PEER_LOST naming the ranks that did not come; STOPPED if `stop` was asked for; BAD_CONFIG if the
        environment contradicts itself, the ranks do not agree, or devices are not usable.
    """
    found = read_workers(dict(os.environ))
    with contextlib.ExitStack() as stack:
        stall = stack.enter_context(shutdown.Stall(stall_seconds))
        check = (lambda: None) if stop is None else stop.check
        group = stack.enter_context(
            process_group.rendezvous(found.addresses, found.rank, peer_seconds=peer_seconds, check=check)
        )
        stack.enter_context(process_group.silence_other_ranks(group))
        for what, value, remedy in compare:
            group.check_equal(what, value, remedy)
        strategy = make_strategy(virtual_devices, found, peer_seconds=peer_seconds)
        if time_sums and found.count > 1:
            stragglers.time_sums(strategy)
        if stop is not None:
            stop.listen()  # MultiWorkerMirroredStrategy has replaced the handlers
            stop.check()
        group.check_equal('the number of devices', strategy.num_replicas_in_sync, 'give all hosts equally many GPUs')
        yield Joined(found, group, strategy, stall)


def read_workers(environ: dict[str, str]) -> Workers:
    """Reads the cluster from the environment. Raises UserError BAD_CONFIG if it contradicts itself."""
    if environ.get('UNET_CLUSTER') == 'off':
        return ALONE
    if environ.get('TF_CONFIG'):
        source, (addresses, rank) = 'TF_CONFIG', _read_tf_config(environ['TF_CONFIG'])
    elif environ.get('UNET_WORKERS'):
        source, addresses = 'UNET_WORKERS', environ['UNET_WORKERS'].split(',')
        rank = _rank(environ, len(addresses))
    elif environ.get('UNET_NUM_WORKERS'):
        source, addresses = 'UNET_NUM_WORKERS and UNET_WORKER_ADDRESS', _addresses_of_pattern(environ)
        rank = _rank(environ, len(addresses))
    else:
        return ALONE
    if len(addresses) == 1:
        return ALONE
    for address in addresses:
        port = address.rpartition(':')[2]
        if not re.fullmatch(r'.+:\d+', address) or not 0 < int(port) < 1 << 16 or addresses.count(address) > 1:
            raise _bad_environment(f'{source}: {address!r} must be host:port and occur once')
    if not 0 <= rank < len(addresses):
        raise _bad_environment(f'rank {rank} of {len(addresses)} workers ({source})')
    return Workers(addresses, rank)


def _bad_environment(what: str) -> entry.UserError:
    return entry.UserError(
        entry.BAD_CONFIG, f'{what}. UNET_CLUSTER=off makes this process ignore the cluster around it.'
    )


def _read_tf_config(text: str) -> tuple[list[str], int]:
    try:
        config = json.loads(text)
        cluster, task = config.get('cluster', {}), config.get('task', {})
        # By what all processes are told, so that none is left waiting; an evaluator may stand in its own task alone.
        unknown = sorted({*cluster, *([task['type']] if cluster else [])} - {'chief', 'master', 'worker'})
        if unknown:
            raise _bad_environment(
                f'TF_CONFIG has a {unknown[0]}: every process trains here, and rank 0 evaluates and saves. Start '
                'workers (and perhaps a chief) only'
            )
        chiefs = [*cluster.get('chief', []), *cluster.get('master', [])]  # two names for one thing
        others = list(cluster.get('worker', []))
        if not chiefs + others:
            return ['localhost:0'], 0
        first = len(chiefs) if task['type'] == 'worker' else 0
        return chiefs + others, first + int(task['index'])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _bad_environment(
            f'TF_CONFIG={text!r}: must be JSON with cluster.worker (a list of host:port), task.type "worker" or '
            f'"chief" and task.index ({type(error).__name__}: {error})'
        ) from error


def _number(environ: dict[str, str], name: str) -> int:
    if not environ[name].isdigit():
        raise _bad_environment(f'{name}={environ[name]!r} is not a number')
    return int(environ[name])


def _addresses_of_pattern(environ: dict[str, str]) -> list[str]:
    count = _number(environ, 'UNET_NUM_WORKERS')
    pattern = environ.get('UNET_WORKER_ADDRESS', '')
    if count > 1 and '{index}' not in pattern:
        raise _bad_environment(f'UNET_WORKER_ADDRESS={pattern!r} must hold {{index}}, as in train-{{index}}.train:3333')
    return [pattern.replace('{index}', str(index)) for index in range(max(count, 1))]


def _rank(environ: dict[str, str], count: int) -> int:
    names = ['UNET_RANK', 'JOB_COMPLETION_INDEX']
    if 'SLURM_STEP_ID' in environ:  # a batch script has a SLURM_PROCID too
        names.append('SLURM_PROCID')
    given = [name for name in names if environ.get(name)]
    if not given and count > 1:
        raise _bad_environment(f'{count} workers, and none of {", ".join(names)} tells which one this is')
    return _number(environ, given[0]) if given else 0


def make_strategy(
    virtual_devices: int, workers: Workers = ALONE, *, peer_seconds: float = 120
) -> tf.distribute.Strategy:
    """Makes a strategy over all GPUs, over `virtual_devices` parts of the CPU, or over the one CPU, of all workers.

    Args:
      virtual_devices: parts of the CPU; 0: all GPUs, or the CPU where there is none.
      workers: the cluster; all of them must be up (`process_group.rendezvous`).
      peer_seconds: after which a worker that does not answer is given up.

    Raises:
      UserError: BAD_CONFIG if this host has GPUs that TensorFlow cannot use: it never falls back to the CPU unnoticed.
        PEER_LOST if a worker is gone.
    """
    # By default TensorFlow 2.21 makes a key per sum and call and keeps a kilobyte of each for ever. This makes one per
    # sum, when a function is traced: all ranks trace theirs in the same order.
    cross_device_utils.CollectiveReplicaLauncher._prefer_unique_instance_key = False
    gpus = [] if virtual_devices else tf.config.list_physical_devices('GPU')
    if not virtual_devices:
        check_gpus(promised=len(host.visible_gpus()), seen=len(gpus))
    if max(workers.count, virtual_devices, len(gpus)) > 1:
        # TensorFlow 2.21 rewrites the control dependencies of a float32 step on two devices: it then waits for itself.
        tf.config.optimizer.set_experimental_options({'dependency_optimization': False})
    if workers.count > 1:
        if virtual_devices > 1:
            raise entry.UserError(
                entry.BAD_CONFIG,
                f'config.runtime.virtual_devices={virtual_devices}: of several workers on CPUs each is one device. '
                'Start more workers instead.',
            )
        return _multi_worker_strategy(workers, peer_seconds)
    if virtual_devices:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * virtual_devices)
        devices = [f'/cpu:{i}' for i in range(virtual_devices)]
    else:
        devices = [f'/gpu:{i}' for i in range(len(gpus))] or ['/cpu:0']
    # NCCL knows no CPUs; and the default's collectives clash when a process makes a second strategy.
    reduction = None if devices[0].startswith('/gpu') else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def _multi_worker_strategy(workers: Workers, peer_seconds: float) -> tf.distribute.Strategy:
    """Makes a strategy over several processes: NCCL between GPUs, a ring between CPUs.

    It sets time limits for joining, signs of life and leaving, for which TensorFlow's defaults are hours or none.
    Collectives get none: TensorFlow 2.21 starts a thread for each limit that sleeps for as long, and a long limit runs
    out of threads. `process_group` and `shutdown.Stall` notice what hangs.
    """
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context  # the time limits have no public name in TensorFlow 2.21

    milliseconds = int(1000 * peer_seconds)
    context.context().configure_coordination_service(
        service_type='standalone',
        service_leader='/job:worker/replica:0/task:0',
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name='worker', num_tasks=workers.count)],
        cluster_register_timeout_in_ms=milliseconds,
        heartbeat_timeout_in_ms=2 * milliseconds,  # `process_group` is to notice first, since it names the worker
        shutdown_barrier_timeout_in_ms=milliseconds,
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({'worker': workers.addresses}), task_type='worker', task_id=workers.rank, rpc_layer='grpc'
    )
    # Left to itself TensorFlow takes the ring, through the hosts' memory, for GPUs too.
    kinds = tf.distribute.experimental.CommunicationImplementation
    kind = kinds.NCCL if tf.config.list_physical_devices('GPU') else kinds.RING
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=resolver,
            communication_options=tf.distribute.experimental.CommunicationOptions(implementation=kind),
        )
    except tf.errors.OpError as error:
        raise entry.UserError(
            entry.PEER_LOST, f'TensorFlow could not join the workers: {error.message.splitlines()[0]}. Run it again.'
        ) from error


def rank_and_count(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns which process of how many this is, under a strategy of `make_strategy`."""
    resolver = strategy.cluster_resolver
    return (resolver.task_id, len(resolver.cluster_spec().job_tasks('worker'))) if resolver else (0, 1)


def check_gpus(*, promised: int, seen: int) -> None:
    """Raises UserError BAD_CONFIG if TensorFlow sees fewer GPUs than promised, with what it says of them itself."""
    if seen >= promised:
        return
    listed = _output_of(['nvidia-smi', '-L'])
    if 'MIG' in listed:
        remedy = (
            'The GPU is divided (MIG), and a process sees one part at the most: set CUDA_VISIBLE_DEVICES to the UUID '
            'of one, as nvidia-smi -L lists them, or have MIG mode switched off.'
        )
    else:
        remedy = (
            "Install its GPU libraries (pip install 'unet-cityscapes[cuda]'), check nvidia-smi, or train on the CPU on "
            'purpose with CUDA_VISIBLE_DEVICES=-1.'
        )
    reasons = re.findall(
        r'\] (.*(?:[Cc]annot|[Cc]ould not|CUDA_ERROR|failed call).*)', _output_of(_LOOK, **_WITH_NOTES)
    )
    said = f' (it says: {reasons[-1].strip()[:300]})' if reasons else ''
    raise entry.UserError(
        entry.BAD_CONFIG,
        f'this host has {promised} NVIDIA GPU(s) for this process, TensorFlow sees {seen}{said}. {remedy}',
    )


# In a process of its own TensorFlow says why it sees none, which `entry.run` hides.
_LOOK = [sys.executable, '-c', 'import tensorflow; tensorflow.config.list_physical_devices("GPU")']
_WITH_NOTES = {'TF_CPP_MIN_LOG_LEVEL': '0', 'TF_CPP_MAX_VLOG_LEVEL': '0'}


def _output_of(command: list[str], **environ: str) -> str:
    """What a command prints; nothing if it is not there or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors='replace', timeout=60, env=os.environ | environ
        )
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout + done.stderr
