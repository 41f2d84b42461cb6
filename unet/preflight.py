"""Checks everything that can be checked before a long run, one line each; fails if any of them does.

    python -m unet.preflight --config=configs/cityscapes.py --data_dir=data/cityscapes --workdir=runs/cityscapes

With --selfcheck it also trains a small model on the devices at hand, to prove that N of them train as one, that an
overflow on any of them is withheld on all, that compiled, recomputed and restored steps give the same, and to measure
the all-reduce. On several hosts, start it as unet.main is started: it is `--module=unet.preflight` of the launchers.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from absl import flags

from launch import entry, host
from unet import config_flag

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from data_prep import records
    from unet.diagnostics import checks
    from unet.distributed import cluster

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; default runs/<config name>.')
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder.')
_SELFCHECK = flags.DEFINE_bool('selfcheck', False, 'Train a small model on these devices too; takes minutes.')
_BANDWIDTH = flags.DEFINE_float(
    'gigabytes_per_second', 10.0, 'That a host can send to the others, for the time expected.', lower_bound=0.001
)
_LATENCY = flags.DEFINE_float(
    'latency_milliseconds',
    0.02,
    'That a message between hosts takes besides, for the time expected; about 1 between CPUs.',
    lower_bound=0,
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per check.')


def main() -> int:
    config = config_flag.checked()
    runtime = config.runtime
    workdir = _WORKDIR.value or os.path.join('runs', config_flag.name())

    with host.quiet_import():
        from data_prep import records
        from unet import train
        from unet.distributed import cluster

    split = records.read_split(_DATA_DIR.value, '+'.join(config.data.train_splits))
    eval_split = records.read_split(_DATA_DIR.value, config.data.eval_split)
    failed = []
    with cluster.join(
        virtual_devices=runtime.virtual_devices,
        peer_seconds=runtime.peer_seconds,
        stall_seconds=runtime.stall_seconds,
        compare=train.values_to_compare(config, [split, eval_split]),
    ) as joined:
        for check in _checks(config, workdir, split, eval_split, joined):
            joined.stall.progress()
            print(_line(check), flush=True)
            if not check.passed:
                failed.append(check)
        joined.group.all_gather(None)
    return next((check.status for check in failed if check.status), entry.OK)


def _checks(
    config: 'ConfigDict',
    workdir: str,
    split: 'records.Split',
    eval_split: 'records.Split',
    joined: 'cluster.Joined',
) -> 'Iterator[checks.Check]':
    """Makes all checks, on all processes of the cluster together, and yields each as it is made."""
    from data_prep import records
    from unet.diagnostics import checks, selfcheck
    from unet.models import build as model_build
    from unet.training import build as training_build
    from unet.training import restore
    from unet.training import workdir as workdir_files

    group, strategy = joined.group, joined.strategy
    table = records.read_label_table(_DATA_DIR.value)
    yield checks.Check('workers', True, f'{joined.workers.count}, each reached by each other')
    yield checks.Check('agreement', True, 'code, config and data are the same on all workers')
    devices = f'{joined.replicas} {"GPU" if host.visible_gpus() else "CPU"} device(s)'
    yield checks.Check('devices', True, f'{devices}; the driver shows {len(host.visible_gpus())} GPU(s) here')
    ours = checks.before_training(config, workdir, _DATA_DIR.value, split, eval_split, table, strategy)
    for rank, theirs in enumerate(group.all_gather([dataclasses.asdict(check) for check in ours])):
        for check in (checks.Check(**fields) for fields in theirs):
            if rank == 0:
                yield check
            elif not check.passed:
                yield dataclasses.replace(check, name=f'{check.name} on {group.name(rank)}')
    yield _attempt('workdir', f'{workdir} may be written to', lambda: workdir_files.check_writable(workdir))
    yield _attempt('config of the run', 'the same, or new', lambda: workdir_files.compare_config(workdir, config))
    yield _attempt(
        'labels of the run', 'the same, or new', lambda: workdir_files.check_labels(workdir, table, _DATA_DIR.value)
    )
    class_pixels = records.class_pixels(_DATA_DIR.value, config.data.train_splits)
    yield _attempt('losses', 'fit the classes', lambda: training_build.make_losses(config, table, class_pixels))
    if config.init_from:
        model = model_build.build_model(config, table, replicas=1)
        yield _attempt('init_from', 'fits', lambda: restore.init_from(config.init_from, model))
    yield checks.expected_time(config, table, strategy, 1e9 * _BANDWIDTH.value, _LATENCY.value / 1000)
    if _SELFCHECK.value:
        passed = True
        for check in selfcheck.run(config, table, strategy):
            passed &= check.passed
            yield check
        if passed and joined.is_chief and model_build.jit_collectives(config, joined.replicas):
            selfcheck.remember(workdir, strategy)


def _attempt(name: str, found: str, call: Callable[[], object]) -> 'checks.Check':
    """The check that a call raises no UserError, and that the system refuses nothing."""
    from unet.diagnostics import checks

    try:
        call()
    except Exception as error:
        refused = entry.as_user_error(error)
        if refused is None:
            raise
        return checks.Check(name, False, str(refused), status=refused.status)
    return checks.Check(name, True, found)


def _line(check: 'checks.Check') -> str:
    if not _JSON.value:
        return str(check)
    if check.passed:
        check = dataclasses.replace(check, remedy='', status=entry.OK)
    return json.dumps(dataclasses.asdict(check))


if __name__ == '__main__':
    entry.run(main)
