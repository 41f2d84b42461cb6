"""Trains on a Slurm cluster: it renders a job, checks and submits it, and shows or ends it.

    python -m launch.slurm --nodes=2 --gpus_per_node=8 --time=24:00:00 --data_dir=data/cityscapes \\
        --workdir=runs/cityscapes -- --config=configs/cityscapes.py
    python -m launch.slurm --workdir=runs/cityscapes --follow  # or --status, --cancel

Everything after `--` goes to unet.main unchanged. The job stops ahead of its time limit and when it is preempted, saves
a checkpoint, requeues itself and goes on, until training is done. --dry_run prints the job; the log is
<workdir>/slurm.log. --sweep=config.optimizer.learning_rate=1e-3,3e-4 --parallelism=2 starts several runs, two at a
time.
"""

import os
import re
import shlex
import sys

from absl import flags

from launch import command, entry, job_spec, launch_record, slurm_jobs, templates

flags.adopt_module_key_flags(job_spec)  # so that --help lists its flags too
_NODES = flags.DEFINE_integer('nodes', 1, 'Nodes of the job; one process on each, with all its GPUs.', lower_bound=1)
_GPUS = flags.DEFINE_integer(
    'gpus_per_node', None, 'GPUs of each node; default 1, and 0 for --module=data_prep....', lower_bound=0
)
_CPUS = flags.DEFINE_integer('cpus_per_task', None, "CPU cores per node; default the site's.", lower_bound=1)
_TIME = flags.DEFINE_string('time', None, 'Time limit, e.g. 24:00:00 or 7-00:00; the job goes on in a new one.')
_EXCLUSIVE = flags.DEFINE_bool('exclusive', False, 'Share the nodes with no other job.')
_PASSED_ON = {
    name: flags.DEFINE_string(name, None, f'{text} (as in sbatch).')
    for name, text in {
        'mem': 'Memory per node, e.g. 64G',
        'partition': 'Partition',
        'account': 'Account to charge',
        'qos': 'Quality of service',
        'constraint': 'Features the nodes must have',
        'exclude': 'Nodes to leave out',
        'reservation': 'Reservation',
        'dependency': 'Jobs to wait for, e.g. afterok:4711',
        'mail_user': 'Who is told when the job ends or fails',
    }.items()
}
_JOB_NAME = flags.DEFINE_string('job_name', None, "Default: the workdir's name.")
_SBATCH_ARG = flags.DEFINE_multi_string('sbatch_arg', [], 'Any other option of sbatch, e.g. --licenses=foo.')
_SETUP = flags.DEFINE_multi_string(
    'setup', [], 'Line of bash before the command, e.g. "module load cuda"; may be given several times.'
)
_STOP_BEFORE = flags.DEFINE_integer(
    'stop_before', 180, 'Seconds before the time limit at which the run is asked to stop.', lower_bound=1
)
_CONTAINER = flags.DEFINE_string('container', None, 'Image to run in; the code is that of the current folder.')
_RUNTIME = flags.DEFINE_enum('container_runtime', 'pyxis', ['pyxis', 'apptainer'], 'What starts --container.')
_MOUNT = flags.DEFINE_multi_string(
    'mount', [], 'SOURCE[:TARGET] in the container, beside the current folder, --workdir and --data_dir.'
)
_DATA_ELSEWHERE = flags.DEFINE_bool(
    'data_elsewhere', False, 'Only the nodes see --data_dir: do not look at it from here.'
)


def main(arguments: list[str]) -> int:
    """Submits the job, or does what --status, --follow or --cancel ask for; `arguments` are the program's."""
    asked = job_spec.subcommand()
    if asked:
        action, workdir = asked
        launch = launch_record.latest(workdir, 'slurm')
        with launch_record.watch(launch):
            actions = {'status': slurm_jobs.print_status, 'follow': slurm_jobs.follow, 'cancel': slurm_jobs.cancel}
            return actions[action](launch)
    gpus = job_spec.default_gpus() if _GPUS.value is None else _GPUS.value
    python = job_spec.PYTHON.value or ('python3' if _CONTAINER.value else sys.executable)
    spec = job_spec.from_flags(
        arguments, python=python, workers=_NODES.value, gpus=gpus, data_is_here=not _DATA_ELSEWHERE.value
    )
    _check_resources(gpus)
    script = _render(spec, gpus, 'dry-run')  # which finds mistakes
    if gpus and not _CPUS.value:
        print(
            'warn  --cpus_per_task is not given: many sites then give a task one core, which cannot feed a GPU. Two to '
            f'three per GPU are enough for PNG records, e.g. --cpus_per_task={4 * gpus}.',
            file=sys.stderr,
        )
    if job_spec.DRY_RUN.value:
        print(script, end='', flush=True)
        slurm_jobs.test_only(script)
        return entry.OK
    return _submit(spec, gpus)


def _submit(spec: job_spec.JobSpec, gpus: int) -> int:
    for launch in launch_record.find(spec.workdir, 'slurm')[-1:]:
        if slurm_jobs.active(launch):
            raise entry.UserError(
                entry.IN_USE,
                f'{spec.workdir}: job {launch["job"]}, launched {launch["submitted"]}, is not over. Use --follow, '
                '--cancel, or another --workdir.',
            )
    folder = launch_record.begin(spec.workdir)
    script = folder / 'job.sbatch'
    script.write_bytes(os.fsencode(_render(spec, gpus, folder.name)))
    logs = slurm_jobs.logs(spec.workdir, len(spec.runs) if spec.is_sweep else 0)
    sizes = [os.path.getsize(log) if os.path.exists(log) else 0 for log in logs]
    job = slurm_jobs.submit(script)
    launch_record.finish(
        folder,
        {
            'launcher': 'slurm',
            'job': job,
            'argv': sys.argv[1:],
            'sweep': spec.is_sweep,
            'runs': [run.workdir for run in spec.runs],
            'logs': logs,
            'log_starts': sizes,
        },
    )
    where = shlex.quote(f'--workdir={spec.workdir}')
    print(f'submitted job {job}; {where} --follow shows its log', flush=True)
    launch = launch_record.latest(spec.workdir, 'slurm')
    with launch_record.watch(launch):
        return slurm_jobs.wait(launch) if job_spec.WAIT.value else entry.OK


def _render(spec: job_spec.JobSpec, gpus: int, launch: str) -> str:
    pyxis, apptainer = _container(spec)
    makes_records = bool(spec.stage or spec.is_data_prep) and '://' not in spec.data_dir
    variables = {
        'options': _options(spec, gpus),
        'setup': _SETUP.value,
        'points': spec.runs if spec.is_sweep else [],
        'workdir': spec.workdir,
        'command': spec.runs[0].command,
        'data_dir': spec.data_dir,
        'data_prep': spec.is_data_prep,
        'stage': spec.stage,
        'launch': launch,
        'nodes': _NODES.value,
        'gpus': gpus,
        'max_restarts': job_spec.MAX_RESTARTS.value,
        'pyxis': pyxis,
        'apptainer': apptainer,
        'to_make': [_data_folder(spec)] if _CONTAINER.value and makes_records else [],
        'run_again': ' | '.join(map(str, (*command.RUN_AGAIN, command.TERMINATED))),
    }
    return templates.render(job_spec.TEMPLATE.value or templates.TEMPLATES / 'job.sbatch', variables)


def _options(spec: job_spec.JobSpec, gpus: int) -> list[str]:
    """Returns the #SBATCH lines, without that word."""
    if '\\' in spec.workdir:
        raise entry.UserError(entry.BAD_USAGE, f'--workdir={spec.workdir}: Slurm takes no log file with a backslash')
    log = os.path.join(spec.workdir, 'slurm' + ('-{}' if spec.is_sweep else '') + '.log')
    options = {
        'job-name': _JOB_NAME.value or os.path.basename(spec.workdir),
        'chdir': os.getcwd(),
        'output': log.replace('%', '%%').replace('{}', '%a') if spec.is_sweep else log.replace('%', '%%'),
        'open-mode': 'append',
        'nodes': str(_NODES.value),
        'ntasks-per-node': '1',
        'signal': f'TERM@{_STOP_BEFORE.value}',  # to the ranks; B: would be to the batch shell alone
        'time': _TIME.value,
        'cpus-per-task': str(_CPUS.value) if _CPUS.value else None,
        'gpus-per-node': str(gpus) if gpus else None,
        **{name.replace('_', '-'): flag.value for name, flag in _PASSED_ON.items()},
        'mail-type': 'END,FAIL' if _PASSED_ON['mail_user'].value else None,
    }
    if spec.is_sweep:
        limit = f'%{job_spec.PARALLELISM.value}' if job_spec.PARALLELISM.value else ''
        options['array'] = f'0-{len(spec.runs) - 1}{limit}'
    lines = ['--requeue', *(['--exclusive'] if _EXCLUSIVE.value else [])]
    lines += [f'--{name}={_directive(name, value)}' for name, value in options.items() if value is not None]
    for argument in _SBATCH_ARG.value:
        name, equals, value = argument.partition('=')
        if not re.fullmatch(r'--?[\w-]+', name):
            raise entry.UserError(entry.BAD_USAGE, f'--sbatch_arg={argument}: write --option or --option=value')
        lines.append(name + equals + (_directive(name, value) if equals else ''))
    return lines


def _directive(name: str, value: str) -> str:
    """Quotes a value as Slurm's own reader of #SBATCH lines wants it."""
    if re.search(r'[\x00-\x1f\x7f]', value):
        raise entry.UserError(entry.BAD_USAGE, f'{name}={value!r}: an option of Slurm holds no line breaks or the like')
    if re.fullmatch(r'[\w@%+=:,./-]+', value):
        return value
    return '"' + value.replace('\\', '\\\\').replace('"', '\\"') + '"'


def _data_folder(spec: job_spec.JobSpec) -> str:
    """Returns the folder of the records, or that in which each staged copy has one of its own."""
    return os.path.dirname(spec.data_dir) if spec.stage else spec.data_dir


def _container(spec: job_spec.JobSpec) -> tuple[list[str], list[str]]:
    """Returns the options of srun for pyxis, and the words before the command for apptainer; one of them is empty."""
    if not _CONTAINER.value:
        if _MOUNT.value:
            raise entry.UserError(entry.BAD_USAGE, '--mount is for a --container')
        return [], []
    here = [os.getcwd(), spec.workdir]
    if command.reads_records(spec.module) or spec.is_data_prep:
        here += [_data_folder(spec)]
    here += [flag.partition('=')[2] for flag in spec.stage if flag.startswith('--data_dir=')]
    mounts = [mount if ':' in mount else f'{mount}:{mount}' for mount in _MOUNT.value]
    for place in dict.fromkeys(place for place in here if '://' not in place):
        if re.search('[:,]', place):
            raise entry.UserError(entry.BAD_USAGE, f'{place}: a folder with a colon or comma cannot be mounted')
        mounts.append(f'{place}:{place}')
    if _RUNTIME.value == 'pyxis':
        options = [f'--container-image={_CONTAINER.value}', f'--container-mounts={",".join(mounts)}']
        return [*options, f'--container-workdir={os.getcwd()}'], []
    binds = [word for mount in mounts for word in ('--bind', mount)]
    gpu = [] if _GPUS.value == 0 or spec.is_data_prep else ['--nv']
    return [], ['apptainer', 'exec', *gpu, *binds, '--pwd', os.getcwd(), _CONTAINER.value]


def _check_resources(gpus: int) -> None:
    """Raises UserError BAD_USAGE for flags that contradict each other."""
    seconds = _seconds(_TIME.value) if _TIME.value else None
    if seconds is not None and seconds <= _STOP_BEFORE.value:
        raise entry.UserError(
            entry.BAD_USAGE,
            f'--time={_TIME.value} is {seconds} s, and the run is asked to stop --stop_before={_STOP_BEFORE.value} s '
            'before its end: it could do nothing. Lengthen the one or shorten the other.',
        )
    if gpus and job_spec.MODULE.value.startswith('data_prep.'):
        raise entry.UserError(entry.BAD_USAGE, f'--gpus_per_node={gpus}: data_prep uses no GPUs; leave it out')
    memory = _PASSED_ON['mem'].value
    if memory and not re.fullmatch(r'\d+[KMGT]?', memory):
        raise entry.UserError(entry.BAD_USAGE, f'--mem={memory}: write a number with K, M, G or T, e.g. 64G')
    for argument in _SBATCH_ARG.value:
        name = argument.partition('=')[0].lstrip('-').replace('-', '_')
        if name in ('output', 'open_mode', 'requeue', 'no_requeue', 'signal', 'array', 'chdir', 'parsable', 'wait'):
            raise entry.UserError(entry.BAD_USAGE, f'--sbatch_arg={argument}: the launcher sets this option itself')
        if name in flags.FLAGS:
            raise entry.UserError(entry.BAD_USAGE, f'--sbatch_arg={argument}: there is a flag --{name} for it')


def _seconds(limit: str) -> int | None:
    """Returns the seconds of a time limit in one of sbatch's forms; None for no limit.

    Raises:
      UserError: BAD_USAGE if it has another form.
    """
    if limit.upper() in ('UNLIMITED', 'INFINITE'):
        return None
    found = re.fullmatch(r'(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?', limit)
    if not found:
        raise entry.UserError(
            entry.BAD_USAGE, f'--time={limit}: write minutes, hours:minutes:seconds or days-hours:minutes'
        )
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


if __name__ == '__main__':
    entry.run(main, forwards=True)
