"""What every launcher does with the command that it starts elsewhere: it composes, checks and varies it.

    from launch import command

    command.check('unet.main', ['--config=configs/cityscapes.py'], workers=2, devices=8)
    for point in command.sweep(['config.optimizer.learning_rate=1e-3,3e-4']):
        arguments = point.applied_to(['--config=configs/cityscapes.py'])

This module imports neither TensorFlow nor `unet`, so that launchers answer at once.
"""

import dataclasses
import itertools
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import default
from launch import entry, record_folder

WITH_CONFIG = ('unet.main', 'unet.preflight', 'unet.benchmark')  # programs that are given a --config
# Statuses after which a run goes on when it is started again; the last three are a crash by SIGABRT, SIGBUS or SIGSEGV:
# as a rule a GPU, its driver or NCCL failed.
RUN_AGAIN = (entry.STOPPED, entry.PEER_LOST, 134, 135, 139)
TERMINATED = 143  # by SIGTERM, before the program could answer it

_Answer = TypeVar('_Answer')
_PATIENCE = 600.0  # seconds that a cluster may be without an answer
_ASK_AGAIN = 5.0


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
      name: its folder below the workdir.
      arguments: the flags that it sets.
    """

    name: str
    arguments: tuple[str, ...]

    def applied_to(self, arguments: list[str]) -> list[str]:
        """Returns the arguments with the point's own in place of those for the same fields, which tuples would join."""
        swept = {argument.partition('=')[0] for argument in self.arguments}
        kept, skip = [], False
        for argument in arguments:
            name, equals, _ = argument.partition('=')
            if skip:
                skip = False
            elif '--' + name.lstrip('-') in swept:
                skip = not equals
            else:
                kept.append(argument)
        return [*kept, *self.arguments]


def reads_records(module: str) -> bool:
    """Says whether a program reads the records that --data_dir names."""
    return module.startswith('unet.') and module != 'unet.predict'


def overall_status(statuses: list[int]) -> int:
    """Returns one exit status for several ranks or jobs.

    A permanent failure outweighs those that ask to be run again.
    """
    permanent = [status for status in statuses if status not in (entry.OK, *RUN_AGAIN, TERMINATED)]
    return min(permanent) if permanent else max(statuses)


def patiently(ask: Callable[[], _Answer]) -> _Answer:
    """Asks a cluster, and asks again for ten minutes if it does not answer (PEER_LOST), as while it is restarted."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except entry.UserError as error:
            if error.status != entry.PEER_LOST or time.monotonic() > deadline:
                raise
        time.sleep(_ASK_AGAIN)


def compose(
    python: str, module: str, workdir: str, data_dir: str | None, arguments: list[str] | tuple[str, ...]
) -> list[str]:
    """Composes the command line of a program.

    Args:
      python: the interpreter.
      module: the program. Those of unet are given --workdir and, if they read records, --data_dir, those of data_prep
        --data_dir, any other neither.
      workdir: the run's folder.
      data_dir: the record folder; None to leave out the flag.
      arguments: what follows.
    """
    records = [f'--data_dir={data_dir}'] if data_dir else []
    places = {'unet': [f'--workdir={workdir}', *(records if reads_records(module) else [])], 'data_prep': records}
    return [python, '-m', module, *places.get(module.partition('.')[0], []), *arguments]


def value_of(name: str, arguments: list[str]) -> str:
    """Returns the last value of a flag among the arguments; '' if it is not there."""
    found = ''
    for argument, following in zip(arguments, [*arguments[1:], ''], strict=True):
        flag, equals, value = argument.partition('=')
        if flag in (f'--{name}', f'-{name}'):
            found = value if equals else following
    return found


def config_path(arguments: list[str]) -> str:
    """Returns the file that --config names among the arguments; '' if there is none."""
    for argument, following in zip(arguments, [*arguments[1:], ''], strict=False):
        if re.match('--?config(=|$)', argument):
            return (argument.partition('=')[2] if '=' in argument else following).partition(':')[0]
    return ''


def read_config(arguments: list[str]) -> ConfigDict | None:
    """Reads the config that `--config=... --config.x=...` among the arguments stand for.

    Returns:
      The config; None if there is no --config.

    Raises:
      UserError: with the status that the program itself would end with.
    """
    arguments = entry.expand_home(arguments)
    path = config_path(arguments)
    if not path:
        return None
    if not os.path.isfile(path):
        raise entry.UserError(entry.MISSING_INPUT, f'--config={path}: no such file (seen from {os.getcwd()})')
    argv, values = ['', *entry.config_arguments(arguments)], flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', None, flag_values=values, sys_argv=argv)
    try:
        values(argv, known_only=True)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise entry.UserError(entry.BAD_USAGE, f'--config: {entry.config_mistake(error)}') from error
    return config.value


def check(module: str, arguments: list[str], *, workers: int, devices: int) -> None:
    """Checks a command, so that it fails here and now instead of later in the cluster.

    Args:
      module: program to start.
      arguments: what it is started with.
      workers: number of processes.
      devices: GPUs of all workers together, or workers if there are no GPUs.

    Raises:
      UserError: BAD_USAGE, MISSING_INPUT or BAD_CONFIG.
    """
    root = pathlib.Path(__file__).parent.parent
    if not (root / (module.replace('.', '/') + '.py')).exists() and not any(
        (pathlib.Path(folder) / (module.replace('.', '/') + '.py')).exists() for folder in ('.', *sys.path)
    ):
        raise entry.UserError(
            entry.BAD_USAGE, f'--module={module}: no such program; e.g. unet.main or data_prep.build_tfrecords'
        )
    if module.startswith('data_prep.') and workers > 1:
        raise entry.UserError(
            entry.BAD_USAGE, f'--module={module} uses all cores of one host: ask for one worker, not {workers}'
        )
    if module not in WITH_CONFIG:
        return
    config = read_config(arguments)
    if config is None:
        raise entry.UserError(
            entry.BAD_USAGE, f'{module} needs a config: end the line with -- --config=configs/cityscapes.py'
        )
    problems = default.validate(config)
    if not problems and config.global_batch % devices:
        problems = [
            f'config.global_batch={config.global_batch} does not divide over {devices} devices: the next that does is '
            f'{-(-config.global_batch // devices) * devices}'
        ]
    if not problems and config.runtime.virtual_devices and devices > workers:
        problems = [
            f'config.runtime.virtual_devices={config.runtime.virtual_devices} splits the CPU, and GPUs are asked for: '
            'set one of them to 0'
        ]
    if problems:
        raise entry.UserError(entry.BAD_CONFIG, '\n'.join(problems))


def check_folder(flag: str, path: str) -> None:
    """Checks that a flag's path on this host is a folder or may become one.

    Raises:
      UserError: BAD_USAGE.
    """
    absolute = pathlib.Path(path).absolute()
    for place in (absolute, *absolute.parents):
        if place.is_dir():
            return
        if os.path.lexists(place):
            raise entry.UserError(entry.BAD_USAGE, f'--{flag}={path}: {place} is no folder; pass another path')


def check_data(data_dir: str, splits: tuple[str, ...], workers: int, *, data_elsewhere: bool = True) -> None:
    """Checks a record folder that is reachable from here: it must be finished and hold enough images of the splits.

    A line on stderr says so if there are more workers than shards: each worker reads its own records wherever they are,
    but then several read the same files.

    Args:
      data_dir: the folder.
      splits: those to train on and, last, the one to evaluate on; empty if that is not known.
      workers: number of processes.
      data_elsewhere: whether the launcher has such a flag.

    Raises:
      UserError: MISSING_INPUT, BAD_DATA or BAD_CONFIG.
    """
    try:
        found = record_folder.shard_lengths(data_dir)
    except entry.UserError as error:
        if error.status != entry.MISSING_INPUT or not data_elsewhere:
            raise
        raise entry.UserError(
            error.status, f'{error}. Pass --data_elsewhere if only the cluster sees the folder.'
        ) from error
    for split in splits:
        if not found.get(split):
            raise entry.UserError(
                entry.MISSING_INPUT, f'{data_dir}: no split {split!r}; it holds {", ".join(found) or "none"}'
            )
    train = [images for split in splits[:-1] for images in found[split]]
    if splits and workers > sum(train):
        raise entry.UserError(
            entry.BAD_CONFIG, f'{data_dir}: {workers} workers, and only {sum(train)} images to train on. Use fewer.'
        )
    if splits and workers > len(train):
        print(
            f'{data_dir}: {workers} workers share {len(train)} shards of {"+".join(splits[:-1])}; more shards can be '
            'read in parallel',
            file=sys.stderr,
        )


def sweep(specifications: list[str]) -> list[Point]:
    """Returns the points of a sweep.

    Args:
      specifications: of the form `field=value,value`; commas within brackets do not divide.

    Returns:
      Every combination, the last field varying fastest; none if there are no specifications.

    Raises:
      UserError: BAD_USAGE.
    """
    if not specifications:
        return []
    axes = []
    for text in specifications:
        field, equals, values = text.removeprefix('--').partition('=')
        parts = _split_commas(values)
        if not (re.fullmatch(r'[A-Za-z_][\w.]*', field) and equals and all(parts)):
            raise entry.UserError(
                entry.BAD_USAGE,
                f'--sweep={text}: write field=value,value e.g. config.optimizer.learning_rate=1e-3,3e-4',
            )
        axes.append([(field, value) for value in parts])
    points = []
    for combination in itertools.product(*axes):
        name = ','.join(f'{field.removeprefix("config.")}={value}' for field, value in combination)
        folder = re.sub(r'[^\w.,=+-]', '_', name)
        points.append(Point(folder, tuple(f'--{field}={value}' for field, value in combination)))
    names = [point.name for point in points]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise entry.UserError(entry.BAD_USAGE, f'--sweep: {twice} comes twice; each point has a workdir of its own')
    return points


def _split_commas(text: str) -> list[str]:
    parts, depth = [''], 0
    for character in text:
        depth += (character in '([{') - (character in ')]}')
        if character == ',' and depth == 0:
            parts.append('')
        else:
            parts[-1] += character
    return parts
