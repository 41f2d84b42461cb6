import pathlib
import shlex
import sys

from launch import entry
from tests import launching, tiny


def test_workers_keep_to_their_cores():
    """In a process of its own, since each program has its own flags."""
    code = """
from launch import local
print(local.core_shares(2, 0), local.core_shares(1, 1))
local.core_shares(4096, 1)
"""
    done = tiny.run([sys.executable, '-c', code])
    assert done.stdout.startswith('[set(), set()] [{') and '4096 workers need 4096 cores' in done.stderr


def test_a_dry_run_looks_at_the_folders_and_leaves_what_follows_alone(tmp_path):
    (tmp_path / 'file').touch()
    records = tiny.write_folder(tmp_path / 'records', train=tiny.scenes(2), validation=tiny.scenes(2, seed=1))
    home = tmp_path / 'home'
    (home / 'configs').mkdir(parents=True)
    (home / 'configs/own.py').write_text('from configs.default import get_config')
    config, data, build = '--config=configs/default.py', f'--data_dir={records}', '--module=data_prep.build_tfrecords'
    cases = [
        (entry.OK, [data, f'--workdir={tmp_path}/new/run', '--', config]),
        (entry.MISSING_INPUT, [f'--data_dir={tmp_path}/none', '--', config]),
        (entry.MISSING_INPUT, ['--', config, f'--data_dir={tmp_path}/none']),
        (entry.MISSING_INPUT, [f'--data_dir={tmp_path}/file', '--', config]),
        (entry.MISSING_INPUT, [data, '--', config, '--config.data.eval_split=test']),
        (entry.MISSING_INPUT, ['--module=unet.evaluate', f'--data_dir={tmp_path}/none', '--', '--batch=1']),
        (entry.OK, ['--module=unet.benchmark', f'--data_dir={tmp_path}/none', '--', config, '--parts=step']),
        (entry.BAD_USAGE, [data, f'--workdir={tmp_path}/file', '--', config]),
        (entry.BAD_USAGE, [data, f'--workdir={tmp_path}/file/run', '--', config]),
        (entry.BAD_USAGE, [build, '--workers=1', f'--data_dir={tmp_path}/file', '--', '--cityscapes_dir=x']),
        (entry.OK, [build, '--workers=1', f'--data_dir={tmp_path}/new', '--', '--cityscapes_dir=~/dataset']),
        (entry.OK, [data, '--workdir=~/run', '--', '--config=~/configs/own.py', '--config.init_from=~/other']),
    ]
    done = launching.dry_runs('local', tmp_path / 'said', [arguments for _, arguments in cases], HOME=str(home))
    for (status, arguments), (found, out, said) in zip(cases, done, strict=True):
        assert found == status, (arguments, said)
        assert status == entry.OK or ('data_elsewhere' not in said and len(said.splitlines()) == 1 and not out), said
    words = shlex.split(done[-1][1].splitlines()[0])
    assert f'--workdir={home}/run' in words
    assert words[-2:] == ['--config=~/configs/own.py', '--config.init_from=~/other']  # each program expands its own
    assert not pathlib.Path(tiny.ROOT, '~').exists()


def test_other_launchers_look_at_the_workdir_too(tmp_path):
    (tmp_path / 'file').touch()
    data = f'--data_dir={tiny.write_folder(tmp_path / "records", train=tiny.scenes(2), validation=tiny.scenes(2))}'
    commands = [
        [data, f'--workdir={tmp_path}/{name}', '--', '--config=configs/default.py'] for name in ('file', 'file/x')
    ]
    for found, _, said in launching.dry_runs('slurm', tmp_path / 'said', commands):
        assert found == entry.BAD_USAGE and f'{tmp_path}/file is no folder' in said
