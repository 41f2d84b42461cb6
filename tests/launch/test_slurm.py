"""launch.slurm on a real Slurm cluster of two nodes."""

import json
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from data_prep import records
from launch import launch_record, slurm_jobs
from tests import launching, slurm_cluster, tiny, trees

NASTY = [
    'it\'s "quoted"',
    '$HOME `id` \\',
    'two\nlines\r\n#SBATCH --nodes=9',
    '--flag=ü € 😀',
    '',
    '*',
    '{{ x }}',
    '%j',
]


@pytest.fixture(scope='module')
def cluster():
    if why := slurm_cluster.missing():
        pytest.skip(why)
    with slurm_cluster.raised() as environ:
        yield environ


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp('da ta'), train=tiny.scenes(10), validation=tiny.scenes(3, seed=1))


def slurm(environ, *flags, rest=(), check=None) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'launch.slurm', *map(str, flags), *(['--', *rest] if rest else [])]
    done = subprocess.run(command, cwd=tiny.ROOT, env=environ, capture_output=True, text=True, timeout=900)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def job_id(done: subprocess.CompletedProcess) -> str:
    return re.search(r'submitted job (\d+)', done.stdout).group(1)


def wait_for(condition, seconds: float = 400):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.2)
    return found


def notes(folder: pathlib.Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob('*-*.json'))}


def test_whatever_a_user_names_arrives_as_it_was_on_both_nodes(cluster, tmp_path):
    workdir = tmp_path / 'it\'s a "run" with $HOME & %j; `id` #'
    flags = ['--module=tests.payload', '--nodes=2', f'--workdir={workdir}', '--job_name=a "b" \'c\' $d', '--mem=1G']
    flags += ['--setup=export GREETING="hello  world"', '--sbatch_arg=--comment=it\'s "fine" $x']
    rest = [str(tmp_path / 'notes'), '0', *NASTY]
    done = slurm(cluster, *flags, '--wait', rest=rest, check=0)
    found = notes(tmp_path / 'notes')
    assert list(found) == ['0-0', '1-0']
    for note in found.values():
        assert note['argv'] == rest
        assert note['cwd'] == str(tiny.ROOT)
        assert note['environ']['GREETING'] == 'hello  world'
        assert note['environ']['CUDA_VISIBLE_DEVICES'] == '-1'  # none were asked for
    workers = found['0-0']['environ']['UNET_WORKERS'].split(',')
    assert found['1-0']['environ']['UNET_WORKERS'].split(',') == workers
    assert len(set(workers)) == 2 and all(re.fullmatch(r'127\.0\.0\.1:\d+', worker) for worker in workers)
    assert [note['environ']['SLURMD_NODENAME'] for note in found.values()] == ['node1', 'node2']

    shown = subprocess.run(
        ['scontrol', 'show', 'job', job_id(done)], env=cluster, capture_output=True, text=True
    ).stdout
    assert 'JobName=a "b" \'c\' $d\n' in shown.replace(' \n', '\n')
    assert 'Comment=it\'s "fine" $x' in shown
    assert 'payload: rank 1' in (workdir / 'slurm.log').read_text()
    (launch,) = (workdir / 'launch').iterdir()
    recorded = json.loads((launch / 'launch.json').read_text())
    assert recorded['job'] == job_id(done) and recorded['submitted'] and (launch / 'job.sbatch').exists()
    status = slurm(cluster, f'--workdir={workdir}', '--status', check=0).stdout
    assert 'COMPLETED' in status and 'exit status 0' in status
    assert 'payload: rank 0' in slurm(cluster, f'--workdir={workdir}', '--follow', check=0).stdout


def test_a_real_failure_is_not_requeued_and_keeps_its_status(cluster, data_dir, tmp_path):
    """The config is good when the job is submitted, and bad by the time it starts."""
    config = tmp_path / 'mine.py'
    config.write_text('from configs.default import get_config as defaults\ndef get_config(): return defaults()\n')
    flags = [f'--workdir={tmp_path / "run"}', f'--data_dir={data_dir}', '--gpus_per_node=0', '--sbatch_arg=--hold']
    job = job_id(slurm(cluster, *flags, rest=[f'--config={config}'], check=0))
    again = slurm(cluster, *flags, rest=[f'--config={config}'], check=73)
    assert f'job {job}' in again.stderr
    config.write_text(config.read_text().replace('return', 'x = ').replace('()\n', '(); x.model.depth = 9; return x\n'))
    subprocess.run(['scontrol', 'release', job], env=cluster, check=True)
    done = slurm(cluster, f'--workdir={tmp_path / "run"}', '--follow', check=78)
    assert 'config.model.depth=9' in done.stdout
    status = slurm(cluster, f'--workdir={tmp_path / "run"}', '--status', check=0).stdout
    assert 'FAILED' in status and 'restarts 0' in status and 'exit status 78' in status


def test_restarts_are_counted_only_when_they_bring_no_new_checkpoint(cluster, tmp_path):
    flags = ['--module=tests.payload', '--max_restarts=1', '--wait']
    runs = {'busy': ['progress:3', 0, 4], 'idle': ['75', 75, 2]}
    for name, (told, status, attempts) in runs.items():
        workdir = tmp_path / name
        slurm(cluster, *flags, f'--workdir={workdir}', rest=[str(workdir), told], check=status)
        assert len(notes(workdir)) == attempts
        (recorded,) = workdir.glob('launch/*/status')
        assert recorded.read_text() == f'{status}\n'
        log = (workdir / 'slurm.log').read_text()
        assert [f'attempt {n}, on' in log for n in range(attempts + 1)] == [True] * attempts + [False]
    assert '2 attempts in a row brought no new checkpoint; giving up with status 75' in log


def write_apptainer(folder: pathlib.Path) -> None:
    """A stand-in that notes how it is called and, as the real one, mounts nothing that is not there."""
    apptainer = folder / 'apptainer'
    apptainer.write_text(
        f'#!/bin/sh\necho "$@" >"{folder}/called"\nwhile [ "$1" != image.sif ]; do\n'
        '  [ "$1" != --bind ] || [ -e "${2%%:*}" ] || { echo "mount source $2 does not exist" >&2; exit 255; }\n'
        '  shift\ndone\nshift\n"$@"\n'
    )
    apptainer.chmod(0o755)


def test_resources_are_asked_for_and_reach_the_program(cluster, tmp_path):
    """pyxis is only looked at, in the job script."""
    write_apptainer(tmp_path)
    flags = ['--module=tests.payload', '--gpus_per_node=2', '--cpus_per_task=3', '--mem=3G', '--exclusive', '--time=5']
    flags += ['--constraint=new', '--partition=urgent', '--sbatch_arg=--nice=7', '--sbatch_arg=--no-kill']
    flags += [
        '--container=image.sif',
        '--container_runtime=apptainer',
        '--mount=/usr/share',
        f'--python={sys.executable}',
    ]
    flags += [f'--setup=PATH="{tmp_path}:$PATH"', f'--workdir={tmp_path / "run"}', '--wait']
    slurm(cluster, *flags, rest=[str(tmp_path / 'notes'), '0'], check=0)
    environ = notes(tmp_path / 'notes')['0-0']['environ']
    assert (environ['SLURMD_NODENAME'], environ['CUDA_VISIBLE_DEVICES']) == ('node2', '0,1')
    assert (environ['SLURM_CPUS_PER_TASK'], environ['SLURM_MEM_PER_NODE']) == ('3', '3072')
    called = (tmp_path / 'called').read_text()
    assert called.startswith('exec --nv --bind /usr/share:/usr/share --bind ')
    assert f'--bind {tmp_path}/run:{tmp_path}/run ' in called and f'--pwd {tiny.ROOT} image.sif' in called

    pyxis = ['--module=tests.payload', f'--workdir={tmp_path}/x', '--container=docker://image', '--dry_run']
    script = slurm(cluster, *pyxis, check=0).stdout
    assert re.search(
        r'srun .* --container-image=docker://image --container-mounts=\S+ --container-workdir=\S+ ', script
    )
    assert 'command=(python3 -m tests.payload)' in script
    assert not (tmp_path / 'x').exists()
    refused = slurm(cluster, *pyxis, '--nodes=3', check=78)
    assert 'sbatch would refuse' in refused.stderr
    assert 'sbatch refuses' in slurm(cluster, *pyxis[:2], '--partition=none', check=78).stderr


def test_records_are_built_on_the_cluster(cluster, tmp_path):
    dataset = trees.write_tree(tmp_path / 'data set', {'train': ['x_1', 'x_2'], 'val': ['y_1']})
    flags = [
        '--module=data_prep.build_tfrecords',
        f'--data_dir={tmp_path / "rec ords"}',
        f'--workdir={tmp_path / "run"}',
    ]
    write_apptainer(tmp_path)
    flags += ['--container=image.sif', '--container_runtime=apptainer', f'--setup=PATH="{tmp_path}:$PATH"']
    flags += [f'--mount={dataset}', f'--python={sys.executable}']
    slurm(cluster, *flags, '--cpus_per_task=2', '--wait', rest=[f'--cityscapes_dir={dataset}'], check=0)
    assert records.split_sizes(tmp_path / 'rec ords')['train'] == 2


def test_every_option_is_in_the_job(data_dir, tmp_path):
    options = ['account=vision', 'qos=long', 'reservation=maint_1', 'dependency=afterok:4711', 'exclude=n[1-3],n7']
    options += ['partition=gpu', 'constraint=a100|h100', 'mem=64G', 'time=1-12', 'cpus-per-task=8', 'nodes=2']
    options += ['mail-user=me@example.org', 'gpus-per-node=8']
    flags = ['--' + option.replace('-', '_', option.partition('=')[0].count('-')) for option in options]
    flags += ['--exclusive', '--sbatch_arg=--licenses=a:1', '--sbatch_arg=--comment=a "b" c', '--parallelism=3']
    flags += ['--data_elsewhere', f'--workdir={tmp_path}/100%', '--sweep=config.seed=1,2', '--']
    config = ['--config=configs/default.py', '--config.global_batch=32']
    ((status, script, complaint),) = launching.dry_runs('slurm', tmp_path / 'out', [[*flags, *config]], PATH='/none')
    assert status == 0 and 'no sbatch on this host' in complaint, complaint
    lines = [line.removeprefix('#SBATCH --') for line in script.splitlines() if line.startswith('#SBATCH')]
    written = {line.partition('=')[0]: line.partition('=')[2].strip('"') for line in lines}
    for option in options:
        assert written[option.partition('=')[0]] == option.partition('=')[2]
    assert written['licenses'] == 'a:1' and written['comment'] == 'a \\"b\\" c' and written['exclusive'] == ''
    assert written['array'] == '0-1%3' and written['mail-type'] == 'END,FAIL' and written['signal'] == 'TERM@180'
    assert written['output'] == f'{tmp_path}/100%%/slurm-%a.log' and written['requeue'] == ''
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0


def test_mistakes_are_found_before_anything_is_submitted(data_dir, tmp_path):
    config = ['--config=configs/default.py', '--config.global_batch=4']
    base = [f'--data_dir={data_dir}', f'--workdir={tmp_path}/run']
    cpu = ['--gpus_per_node=0', *base]
    cases = [
        (64, 'could do nothing', ['--time=3', *base], config),
        (64, 'write minutes', ['--time=1h', *base], config),
        (64, 'write a number', ['--mem=lots', *base], config),
        (64, 'no line breaks', ['--job_name=a\n#SBATCH --nodes=9', *base], config),
        (64, 'backslash', [*base, '--workdir=a\\b'], config),
        (64, 'there is a flag --nodes', ['--sbatch_arg=--nodes=3', *base], config),
        (64, 'sets this option itself', ['--sbatch_arg=--signal=USR1', *base], config),
        (64, '--mount is for', ['--mount=/x', *base], config),
        (64, 'one at a time', ['--status', '--cancel', *base], []),
        (64, 'pass the --workdir', ['--status'], []),
        (66, 'nothing was launched here', ['--status', *base], []),
        (66, 'no dataset here', ['--data_dir=/nowhere', '--workdir=x'], config),
        (66, "no split 'test'", base, [*config, '--config.data.eval_split=test']),
        (66, 'no such folder', ['--module=data_prep.build_tfrecords', *base], ['--cityscapes_dir=/nowhere']),
        (78, '11 workers, and only 10 images', ['--nodes=11', *cpu], [*config, '--config.global_batch=11']),
        (0, '5 workers share 2 shards', ['--nodes=5', *cpu], [*config, '--config.global_batch=5']),
        (78, 'does not divide over 16', ['--nodes=2', '--gpus_per_node=8', *base], config),
        (78, 'splits the CPU', ['--gpus_per_node=2', *base], [*config, '--config.runtime.virtual_devices=2']),
    ]
    commands = [[*flags, '--', *rest] for _, _, flags, rest in cases]
    results = launching.dry_runs('slurm', tmp_path / 'out', commands, PATH='/none')
    for (status, said, flags, _), result in zip(cases, results, strict=True):
        assert result[0] == status and said in result[2], (flags, result)
        assert len(result[2].splitlines()) == (1 if status else 2), result  # the other says that Slurm was not asked
    assert not (tmp_path / 'run').exists()


def test_of_several_ranks_the_lowest_permanent_status_counts(cluster, tmp_path):
    """Of a job that is submitted without the environment of whoever submits it, too."""
    script = 'test "$UNET_WORKERS" || exit 64; case $SLURM_PROCID in 0) exit 76;; 1) exit 70;; esac'
    template = (tiny.ROOT / 'launch/templates/job.sbatch').read_text()
    mine = tmp_path / 'my.sbatch'
    mine.write_text(template.replace('on_every_node rank "${command[@]}"', f"on_every_node rank sh -c '{script}'"))
    flags = ['--module=tests.payload', '--nodes=2', f'--workdir={tmp_path / "run"}', f'--template={mine}', '--wait']
    slurm(cluster, *flags, '--sbatch_arg=--export=NONE', rest=['x', '0'], check=70)


def test_a_full_disk_is_no_reason_to_come_back(cluster, tmp_path):
    """It takes the name of a file and not what is written into it."""
    template = (tiny.ROOT / 'launch/templates/job.sbatch').read_text()
    mine = tmp_path / 'my.sbatch'
    mine.write_text(template.replace('echo $status >"$0', ': >"$0').replace('echo "$1" >"$record', ': >"$record'))
    flags = ['--module=tests.payload', f'--workdir={tmp_path / "run"}', f'--template={mine}', '--wait']
    slurm(cluster, *flags, rest=[str(tmp_path / 'notes'), '0'], check=69)
    assert (next((tmp_path / 'run').glob('launch/*/status'))).read_text() == ''
    launch = launch_record.latest(str(tmp_path / 'run'), 'slurm')
    assert slurm_jobs.exit_statuses(launch, []) == [69]  # once Slurm has forgotten the job


def test_a_cancelled_job_ends_and_does_not_come_back(cluster, tmp_path):
    workdir = tmp_path / 'run'
    slurm(cluster, '--module=tests.payload', f'--workdir={workdir}', rest=[str(workdir), 'sleep'], check=0)
    wait_for(lambda: notes(workdir))
    slurm(cluster, f'--workdir={workdir}', '--cancel', check=0)
    log = workdir / 'slurm.log'
    wait_for(lambda: 'submit again to go on' in log.read_text())
    status = slurm(cluster, f'--workdir={workdir}', '--status', check=0).stdout
    assert 'CANCELLED' in status or 'COMPLETING' in status
    assert len(notes(workdir)) == 1
    assert (next(workdir.glob('launch/*/attempt-0/rank-0'))).read_text() == '75\n'


def test_a_sweep_is_an_array_with_a_workdir_for_each_point(cluster, tmp_path):
    workdir = tmp_path / 'the sweep'
    flags = ['--module=tests.payload', f'--workdir={workdir}', '--parallelism=2', '--sweep=config.rate=1e-3,3e-4']
    rest = [str(tmp_path / 'notes-$SLURM_ARRAY_TASK_ID'), '0', '--config.rate=7']
    slurm(cluster, *flags, '--sweep=config.data.crop=(32,32),(16,32)', '--wait', rest=rest, check=0)
    points = [(rate, crop) for rate in ('1e-3', '3e-4') for crop in ('32,32', '16,32')]
    for rate, crop in points:
        (status,) = (workdir / f'rate={rate},data.crop=_{crop}_').glob('launch/*/status')
        assert status.read_text() == '0\n'
    lines = slurm(cluster, f'--workdir={workdir}', '--follow', check=0).stdout.splitlines()
    for number, (rate, crop) in enumerate(points):
        assert f'[{number}] payload: {rest[:2] + [f"--config.rate={rate}", f"--config.data.crop=({crop})"]}' in lines
    status = slurm(cluster, f'--workdir={workdir}', '--status', check=0).stdout
    assert [re.search(f'_{number} +COMPLETED', status) is not None for number in range(5)] == [True] * 4 + [False]


def test_a_run_on_two_nodes_survives_signal_preemption_and_time_limit_bit_by_bit(cluster, data_dir, tmp_path):
    """Each stops the run at some step, and it ends with the weights of a run that nothing happened to."""
    # Slurm looks at time limits twice a minute: the run's length is settled once all has happened to it.
    length, config = tmp_path / 'length', tmp_path / 'config.py'
    length.write_text('1000000')
    config.write_text(
        'from configs import default\n\n\ndef get_config():\n    config = default.get_config()\n'
        f'    config.num_steps = int(open({str(length)!r}).read())\n    return config\n'
    )
    settings = tiny.SMALL_RUN | {'eval.every_steps': 10**6, 'checkpoint.every_steps': 10**6, 'log.every_steps': 5}
    rest = [f'--config={config}', *(f'--config.{k}={v}' for k, v in settings.items() if k != 'num_steps')]
    flags = ['--nodes=2', '--gpus_per_node=0', f'--data_dir={data_dir}', '--time=30', '--stop_before=170']
    staged = f'--stage_dir={tmp_path / "nvme"}'  # of the undisturbed run alone: it makes no difference
    undisturbed, workdir = tmp_path / 'undisturbed', tmp_path / 'run'
    log = workdir / 'slurm.log'

    job = job_id(slurm(cluster, *flags, f'--workdir={workdir}', '--partition=preemptible', rest=rest, check=0))

    def command(*words: str) -> str:
        return subprocess.run(words, env=cluster, check=True, capture_output=True, text=True).stdout

    def training(attempt: int) -> bool:
        """Whether that attempt has done some steps."""
        parts = log.read_text().split(', attempt ') if log.exists() else []
        return len(parts) > attempt + 1 and 'loss' in parts[attempt + 1]

    def state() -> str:
        return command('squeue', '--noheader', f'--jobs={job}', '--states=all', '--format=%T').strip()

    wait_for(lambda: training(0))
    command('scancel', '--signal=TERM', job)
    wait_for(lambda: training(1))
    urgent = command(
        'sbatch', '--parsable', '--partition=urgent', '--nodes=2', '--exclusive', '--output=/dev/null', '--wrap=true'
    ).strip()
    wait_for(lambda: training(2))
    assert command('squeue', '--noheader', f'--jobs={urgent}', '--states=all', '--format=%T').strip() == 'COMPLETED'
    # It has used up some minutes; of one or two more --stop_before leaves nothing.
    used = re.search(r'RunTime=(\d+):(\d+):', command('scontrol', 'show', 'job', job)).groups()
    command('scontrol', 'update', f'JobId={job}', f'TimeLimit={60 * int(used[0]) + int(used[1]) + 2}')
    wait_for(lambda: state() == 'PENDING')
    command('scontrol', 'update', f'JobId={job}', 'TimeLimit=30')
    restarts = [int(step) for step in re.findall(r'0: .*stopped on request after step (\d+)', log.read_text())]
    assert len(restarts) == 3 and restarts == sorted(set(restarts))
    last = restarts[-1] + 10
    length.write_text(str(last))
    assert slurm(cluster, f'--workdir={workdir}', '--follow', check=0).stdout.count('requeued to go on') == 3
    assert re.search('restarts 3 .*exit status 0', slurm(cluster, f'--workdir={workdir}', '--status', check=0).stdout)

    slurm(cluster, *flags, staged, f'--workdir={undisturbed}', '--wait', rest=rest, check=0)
    assert 'shards copied from' in (undisturbed / 'slurm.log').read_text()
    left, right = (tiny.checkpoint_values(run / 'checkpoints' / f'ckpt-{last}') for run in (undisturbed, workdir))
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    metrics = [(run / 'metrics.jsonl').read_text().splitlines() for run in (undisturbed, workdir)]
    steps = [[json.loads(line)['step'] for line in lines if 'train/loss' in line] for lines in metrics]
    assert steps[0] == sorted(set(steps[0])) and set(steps[0]) <= set(steps[1])


def test_a_dry_run_where_no_controller_answers(tmp_path):
    """As on a laptop with Slurm's packages: what would be submitted is checked and printed all the same."""
    conf = tmp_path / 'slurm.conf'
    conf.write_text(
        'ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=6999\nAuthType=auth/munge\n'
        'NodeName=n1\nPartitionName=p Nodes=n1\nMessageTimeout=2\nSlurmctldTimeout=2\n'
    )
    command = ['--workdir=' + str(tmp_path / 'run'), '--module=tests.payload', '--', str(tmp_path), '0']
    ((status, script, said),) = launching.dry_runs('slurm', tmp_path / 'out', [command], SLURM_CONF=str(conf))
    assert status == 0 and '#SBATCH' in script and 'was not asked' in said, said
