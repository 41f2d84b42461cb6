"""The flags that launch.slurm and launch.kubernetes share, and the job that they describe.

    from absl import flags
    from launch import job_spec

    flags.FLAGS(['launch.slurm', '--workdir=runs/x'])
    spec = job_spec.from_flags(['--config=configs/default.py'], python='python', workers=2, gpus=1, data_is_here=False)
    spec.runs[0].command  # ['python', '-m', 'unet.main', '--workdir=/.../runs/x', ..., '--config=configs/default.py']

A job is one run, or the runs of a sweep.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import sys

from absl import flags

from launch import command, entry

MODULE = flags.DEFINE_string(
    'module', 'unet.main', 'Program to start: unet.main, or e.g. data_prep.build_tfrecords as a job without GPUs.'
)
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run, forwarded; the launch is recorded in it. Default runs/<config name>.'
)
DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder, forwarded.')
_STAGE_DIR = flags.DEFINE_string(
    'stage_dir', None, "Folder on the node's own disk, e.g. /local/nvme: records are copied there before training."
)
_STAGE_SPLITS = flags.DEFINE_list(
    'stage_splits', None, 'Splits to copy; default those that the config trains and evaluates on.'
)
_SWEEP = flags.DEFINE_multi_string(
    'sweep', [], 'config.field=value,value: one run for each, below --workdir. Given again: every combination.'
)
PARALLELISM = flags.DEFINE_integer('parallelism', None, 'Runs of a sweep at a time; default all.', lower_bound=1)
MAX_RESTARTS = flags.DEFINE_integer(
    'max_restarts', 3, 'Attempts in a row that may end without a new checkpoint; others are not counted.', lower_bound=0
)
PYTHON = flags.DEFINE_string('python', None, 'Python to run with.')
TEMPLATE = flags.DEFINE_string('template', None, 'Your own copy of a file in launch/templates.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Check, and print what would be submitted.')
WAIT = flags.DEFINE_bool('wait', False, "Wait for the job's end and exit with its status.")
FOLLOW = flags.DEFINE_bool('follow', False, 'Print the log of the last launch of --workdir as it grows.')
STATUS = flags.DEFINE_bool('status', False, 'Print the state of the last launch of --workdir.')
CANCEL = flags.DEFINE_bool('cancel', False, 'End the last launch of --workdir; a run saves a checkpoint first.')


@dataclasses.dataclass(frozen=True)
class Run:
    """One program to start.

    Attributes:
      workdir: its folder, an absolute path.
      command: its command line; paths in it are absolute.
    """

    workdir: str
    command: list[str]


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """What is to be launched.

    Attributes:
      module: the program.
      workdir: the launch's folder; a sweep's runs have theirs below it.
      data_dir: the folder that the program reads records from (the staged copy if there is one) or writes them to.
      runs: one run, or those of the sweep.
      is_sweep: whether --sweep was given.
      stage: command that copies the records to the node's disk; empty if they are read where they are.
    """

    module: str
    workdir: str
    data_dir: str
    runs: list[Run]
    is_sweep: bool
    stage: list[str]

    @property
    def is_data_prep(self) -> bool:
        """Says whether the program is one of data_prep, which has no checkpoints and no GPUs."""
        return self.module.startswith('data_prep.')


def subcommand() -> tuple[str, str] | None:
    """Finds out whether --status, --follow or --cancel was given.

    Returns:
      'status', 'follow' or 'cancel', and --workdir; None to submit a job.

    Raises:
      UserError: BAD_USAGE if two were given, or one without --workdir.
    """
    given = [flag.name for flag in (STATUS, FOLLOW, CANCEL) if flag.value]
    if len(given) > 1:
        raise entry.UserError(entry.BAD_USAGE, f'--{given[0]} and --{given[1]}: one at a time')
    if not given:
        return None
    if WORKDIR.value is None:
        raise entry.UserError(entry.BAD_USAGE, f'--{given[0]}: pass the --workdir of the launch too')
    return given[0], WORKDIR.value


def default_gpus() -> int:
    """Returns the GPUs of each worker where no flag says how many: 1, and none for programs that cannot use any."""
    return 1 if MODULE.value.startswith('unet.') else 0


def from_flags(arguments: list[str], *, python: str, workers: int, gpus: int, data_is_here: bool) -> JobSpec:
    """Makes the job that the flags describe, once all that can be checked from here is right.

    Args:
      arguments: the words after `--`.
      python: interpreter in the cluster.
      workers: processes of each run.
      gpus: GPUs of each worker.
      data_is_here: whether this host sees --data_dir, and a --config by its full path, as the cluster does.

    Raises:
      UserError: BAD_USAGE, MISSING_INPUT, BAD_DATA or BAD_CONFIG, with the status the program itself would end with.
    """
    module = MODULE.value
    for name in ('workdir', 'data_dir'):
        if any(re.match(f'--?{name}(=|$)', argument) for argument in arguments):
            raise entry.UserError(entry.BAD_USAGE, f'--{name}: write it before the --; it is forwarded from there')
    points = command.sweep(_SWEEP.value)
    if PARALLELISM.value and not points:
        raise entry.UserError(entry.BAD_USAGE, '--parallelism is for a --sweep')
    config_file = command.config_path(arguments)
    config = None
    if not data_is_here and os.path.isabs(config_file) and not os.path.exists(config_file):
        print(f'{config_file}: not on this host, so the config was not checked', file=sys.stderr)
    else:
        for point in points or [command.Point('', ())]:
            command.check(module, point.applied_to(arguments), workers=workers, devices=workers * max(gpus, 1))
        config = command.read_config(arguments) if module in command.WITH_CONFIG else None

    remote = '://' in DATA_DIR.value
    source = DATA_DIR.value if remote else os.path.abspath(DATA_DIR.value)
    workdir = os.path.abspath(WORKDIR.value or os.path.join('runs', _default_name(module, arguments)))
    if '://' in (WORKDIR.value or ''):
        raise entry.UserError(
            entry.BAD_USAGE, f'--workdir={WORKDIR.value}: a run writes to a folder, not to gs:// and the like'
        )
    if data_is_here:
        command.check_folder('workdir', workdir)
        if module.startswith('data_prep.') and not remote:
            command.check_folder('data_dir', source)
    splits = (*config.data.train_splits, config.data.eval_split) if config else ()
    if command.reads_records(module) and data_is_here and not remote:
        command.check_data(source, splits, workers)
    for argument in entry.expand_home(arguments):
        flag, _, folder = argument.partition('=')
        if data_is_here and flag == '--cityscapes_dir' and not ('://' in folder or os.path.isdir(folder)):
            raise entry.UserError(entry.MISSING_INPUT, f'{argument}: no such folder (seen from {os.getcwd()})')
    data_dir, stage = source, []
    if _STAGE_DIR.value:
        if not command.reads_records(module):
            raise entry.UserError(entry.BAD_USAGE, f'--stage_dir: --module={module} reads no records')
        wanted = _STAGE_SPLITS.value or list(dict.fromkeys(splits))
        # A name of its own for every source, so that jobs that share a node share what is the same and no more.
        digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
        data_dir = os.path.join(os.path.abspath(_STAGE_DIR.value), f'{os.path.basename(source.rstrip("/"))}-{digest}')
        stage = [python, '-m', 'data_prep.stage_tfrecords', f'--data_dir={source}', f'--to={data_dir}']
        stage += [f'--splits={",".join(wanted)}'] if wanted else []
    runs = []
    for point in points or [command.Point('', ())]:
        folder = os.path.join(workdir, point.name) if point.name else workdir
        composed = command.compose(python, module, folder, data_dir, point.applied_to(arguments))
        runs.append(Run(folder, composed))
    return JobSpec(module, workdir, source if module.startswith('data_prep.') else data_dir, runs, bool(points), stage)


def _default_name(module: str, arguments: list[str]) -> str:
    return pathlib.Path(command.config_path(arguments)).stem or module.rpartition('.')[2]
