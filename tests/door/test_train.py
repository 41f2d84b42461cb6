"""Contract 2 on one host, with the real program in processes of its own."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import entry
from tests import tiny


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """Images of mixed sizes, some of which do not divide by 4."""
    train = tiny.scenes(6) + tiny.scenes(4, (52, 45), seed=2)
    validation = tiny.scenes(3, (36, 52), seed=1) + tiny.scenes(2, (33, 47), seed=3)
    return tiny.write_folder(tmp_path_factory.mktemp('data') / 'records', train=train, validation=validation)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp('undisturbed')
    done = tiny.run(tiny.train_command(workdir, data_dir))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def _losses(workdir, data_dir, **fields) -> list[float]:
    """Trains, and returns the loss of each report."""
    done = tiny.run(tiny.train_command(workdir, data_dir, **fields))
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    losses = [line['train/loss'] for line in lines if 'train/loss' in line]
    assert len(losses) == fields['num_steps'], losses
    return losses


def test_replicas_equal_one(tmp_path, data_dir):
    """The same global batch gives the same weights on 1, 2 and 4 devices, with synchronised BatchNorm and clipping, and
    with what lies between the sums compiled."""
    values = {}
    for devices, jit_compile in ((1, 'off'), (2, 'off'), (2, 'auto'), (4, 'auto')):
        folder = tmp_path / f'{devices}-{jit_compile}'
        command = tiny.train_command(
            folder,
            data_dir,
            num_steps=5,
            precision='float64',
            optimizer__name='adam',
            optimizer__clip_norm=0.5,
            runtime__virtual_devices=devices,
            runtime__jit_compile=jit_compile,
        )
        done = tiny.run(command)
        assert done.returncode == 0, done.stderr
        values[folder.name] = tiny.checkpoint_values(folder / 'checkpoints/ckpt-5')
    one = values.pop('1-off')
    for several in values.values():
        differences = {name: np.abs(one[name] - several[name]).max() for name in one if 'model' in name}
        assert max(differences.values()) < 1e-9, differences
    start = json.loads((tmp_path / '1-off/metrics.jsonl').read_text().splitlines()[0])
    assert start['train/gradient_norm'] > 0.5  # or clipping would not have been tested


def test_several_devices_train_in_float32(tmp_path, data_dir):
    """TensorFlow's rewriting of the graph must not let them wait for each other; losses differ by rounding alone."""
    fields = {'num_steps': 3, 'log__every_steps': 1, 'eval__every_steps': 3}
    losses = [_losses(tmp_path / f'{n}', data_dir, runtime__virtual_devices=n, **fields) for n in (0, 2)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_several_compiled_devices_train_in_bfloat16(tmp_path, data_dir):
    fields = {'num_steps': 3, 'log__every_steps': 1, 'eval__every_steps': 3, 'precision': 'bfloat16'}
    fields['runtime__jit_compile'] = 'auto'
    losses = [_losses(tmp_path / f'{n}', data_dir, runtime__virtual_devices=n, **fields) for n in (0, 2)]
    np.testing.assert_allclose(*losses, rtol=2e-2)


def test_microbatches_equal_the_whole_batch(tmp_path, data_dir):
    """One update from 1, 2 or 4 parts; without BatchNorm, whose statistics are of a part."""
    values = {}
    for parts, devices in ((1, 1), (4, 1), (2, 2)):
        workdir = tmp_path / f'{parts}-{devices}'
        fields = {'loss.ohem': 0.5, 'loss.dice': 0.5, 'loss.class_weights': tuple(range(1, 20))}
        command = tiny.train_command(
            workdir,
            data_dir,
            num_steps=5,
            precision='float64',
            model__norm='none',
            runtime__microbatches=parts,
            runtime__virtual_devices=devices,
            **fields,
        )
        done = tiny.run(command)
        assert done.returncode == 0, done.stderr
        values[parts] = tiny.checkpoint_values(workdir / 'checkpoints/ckpt-5')
    for parts in (2, 4):
        assert max(np.abs(values[1][n] - values[parts][n]).max() for n in values[1] if n.startswith('model/')) < 1e-9


def test_a_second_start_finds_the_compiled_step(tmp_path, data_dir):
    """What XLA compiled for the first lies in the workdir, sealed; the second start adds predictions alone. No
    temporary file is left behind."""
    found = []
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    fields = {'num_steps': 3, 'checkpoint__every_steps': 1, 'eval__every_steps': 10, 'runtime__jit_compile': 'on'}
    for _ in range(2):
        for file in tmp_path.glob('checkpoints/ckpt-3.*'):  # the second start takes the last step again
            file.unlink()
        environ = {'TF_XLA_FLAGS': '', 'TMPDIR': str(temporary)}
        done = tiny.run(tiny.train_command(tmp_path, data_dir, **fields), **environ)  # in a new process
        assert done.returncode == 0, done.stderr
        assert not list(temporary.iterdir())
        (sealed,) = tmp_path.glob('xla_cache/*/sealed.json')
        found.append(json.loads(sealed.read_text()))
    assert len(found[0]) >= 1 and found[0] == found[1], found


def test_a_run_is_whole(undisturbed):
    workdir, output = undisturbed
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines if 'train/loss' in line] == [3, 6, 9, 12]
    assert [line['step'] for line in lines if 'eval/miou' in line] == [6, 12]
    assert {
        'config.json',
        'labels.json',
        'metrics.jsonl',
        'checkpoints',
        'best',
        'tensorboard',
        'pictures',
        'report.html',
        'wall_time.jsonl',
    } == {path.name for path in workdir.iterdir()}
    values = tiny.checkpoint_values(workdir / 'checkpoints/ckpt-12')
    assert any('state/slots' in name for name in values), 'weights saved without the optimizer state'
    assert values['state/step/.ATTRIBUTES/VARIABLE_VALUE'] == 12
    assert 'mIoU' in output.splitlines()[-1]
    assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == [
        'checkpoint', 'ckpt-12.data-00000-of-00001', 'ckpt-12.index', 'ckpt-9.data-00000-of-00001', 'ckpt-9.index'
    ]  # fmt: skip


def test_finished_run_started_again_changes_nothing_and_can_be_extended(tmp_path, data_dir):
    command = tiny.train_command(tmp_path, data_dir, num_steps=6)
    first = tiny.run(command)
    before = tiny.checkpoint_values(tmp_path / 'checkpoints/ckpt-6')
    again = tiny.run(command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert {k: v.tobytes() for k, v in before.items()} == {
        k: v.tobytes() for k, v in tiny.checkpoint_values(tmp_path / 'checkpoints/ckpt-6').items()
    }
    longer = tiny.run(tiny.train_command(tmp_path, data_dir, num_steps=9))
    assert longer.returncode == 0 and 'config.num_steps: 6 -> 9' in longer.stdout, longer.stderr
    other = tiny.run(tiny.train_command(tmp_path, data_dir, num_steps=9, seed=1))
    assert other.returncode == entry.IN_USE and 'config.seed: 2019 -> 1' in other.stderr


def test_what_a_run_cannot_go_on_with_leaves_it_as_it_was(tmp_path, data_dir):
    command = tiny.train_command(tmp_path, data_dir, num_steps=6)
    first = tiny.run(command)
    config = (tmp_path / 'config.json').read_text()
    shorter = tiny.run(tiny.train_command(tmp_path, data_dir, num_steps=3))
    assert shorter.returncode == entry.BAD_CONFIG and 'is at step 6 already' in shorter.stderr
    wider = tiny.run([*tiny.train_command(tmp_path, data_dir, num_steps=6, model__width=8), '--accept_config_change'])
    assert wider.returncode == entry.BAD_DATA and 'can be restored' in wider.stderr.splitlines()[-1]
    assert (tmp_path / 'config.json').read_text() == config
    (tmp_path / 'metrics.jsonl').unlink()
    again = tiny.run(command)
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1], again.stderr
    (tmp_path / 'config.json').write_text(config[:100])
    damaged = tiny.run(command)
    assert damaged.returncode == entry.BAD_DATA and 'config.json: not the config of a run' in damaged.stderr
    (tmp_path / 'config.json').unlink()
    assert tiny.run(command).returncode == 0 and (tmp_path / 'config.json').read_text() == config
    below = tiny.run(tiny.train_command(tmp_path / 'config.json/run', data_dir))
    assert below.returncode == entry.BAD_USAGE and 'config.json is no folder' in below.stderr


def test_an_evaluation_that_fails_loses_no_step(tmp_path):
    image, label = tiny.scene((40, 56), seed=1)
    label[:8] = 200  # in no label table
    folder = tiny.write_folder(tmp_path / 'records', train=tiny.scenes(4), validation=[(image, label)])
    done = tiny.run(tiny.train_command(tmp_path / 'run', folder, checkpoint__every_steps=12))
    assert done.returncode == entry.BAD_DATA and 'label ids of 34 and above' in done.stderr, done.stderr
    assert (tmp_path / 'run/checkpoints/ckpt-6.index').exists()


def test_a_split_without_labels_is_refused_before_the_first_step(tmp_path):
    folder = tmp_path / 'records'
    tiny.write_folder(folder, labelled=False, train=tiny.scenes(4), validation=tiny.scenes(2))
    done = tiny.run(tiny.train_command(tmp_path / 'run', folder))
    assert done.returncode == entry.BAD_DATA and 'train (train_000, ...)' in done.stderr, done.stderr
    assert not (tmp_path / 'run').exists()


def test_metrics_without_room_are_no_matter_of_the_devices_memory(tmp_path):
    code = """
import resource, sys
import numpy as np
from launch import entry
from unet.training import metric_writer
writer = metric_writer.MetricsWriter(sys.argv[1], last_step=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    writer.write(1, {'eval/miou': 0.5}, {'picture': np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)})
except entry.UserError as failure:
    print(failure.status, failure)
"""
    done = tiny.run([sys.executable, '-c', code, str(tmp_path)])
    assert done.stdout.startswith(f'{entry.NO_STORAGE} {tmp_path}'), done.stderr


def test_float16_and_bfloat16_and_unpadded_train(tmp_path, data_dir):
    for name, fields in {
        'float16': {'precision': 'float16'},
        'bfloat16': {'precision': 'bfloat16', 'runtime__jit_compile': 'on'},
        'unpadded': {'model__padding': 'valid', 'data__crop': '(60,60)', 'model__skip': 'add', 'labels': 'label_ids'},
        'cached': {'data__cache': 'memory', 'data__resize': '(36,44)', 'eval__resize': '(32,32)', 'eval__batch': 2},
    }.items():
        done = tiny.run(tiny.train_command(tmp_path / name, data_dir, num_steps=6, **fields))
        assert done.returncode == 0, done.stderr
        last = json.loads((tmp_path / name / 'metrics.jsonl').read_text().splitlines()[-1])
        assert 0 <= last['eval/miou_present'] <= 1


def test_overflows_are_told_and_end_the_run_when_they_never_end(tmp_path, data_dir):
    fields = {'precision': 'float16', 'optimizer__learning_rate': 1e30, 'num_steps': 120, 'eval__every_steps': 120}
    done = tiny.run(tiny.train_command(tmp_path, data_dir, **fields))
    assert done.returncode == entry.DIVERGED, done.stderr
    assert 'overflowed 100 times in a row' in done.stderr.splitlines()[-1]
    assert '3 overflowed and skipped, loss scale' in done.stdout

    def refuse(constant):
        raise ValueError(f'{constant} is no JSON')

    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    last = json.loads(lines[-1], parse_constant=refuse)
    assert last['train/skipped_steps'] == 3 and last['train/gradient_norm'] is None


def test_mistakes_get_one_line_and_a_status(tmp_path, data_dir):
    cases = [
        (['--config.globl_batch=4'], entry.BAD_USAGE, 'global_batch'),
        (['--confg=x'], entry.BAD_USAGE, 'confg'),
        (['--config.num_steps=many'], entry.BAD_USAGE, 'num_steps'),
        (['--config.model.shape=3'], entry.BAD_USAGE, "no such field: 'shape'"),
        (['stray'], entry.BAD_USAGE, 'stray'),
        (['--config=configs'], entry.MISSING_INPUT, 'no such file'),
        (['--config=configs/nothing.py'], entry.MISSING_INPUT, 'configs/nothing.py'),
        (['--config', 'configs/nothing.py'], entry.MISSING_INPUT, 'configs/nothing.py'),
        (['--config.data.crop=(30,32)'], entry.BAD_CONFIG, '[28, 32]'),
        (['--config.data.crop=(64,64)', '--config.data.crop=(26,32)'], entry.BAD_CONFIG, '(26, 32)'),
        (['--config.precision=half'], entry.BAD_CONFIG, 'float16'),
        (['--config.runtime.virtual_devices=3'], entry.BAD_CONFIG, '6'),
        (['--config.data.eval_split=test'], entry.MISSING_INPUT, 'validation'),
        (['--config.optimizer.learning_rate=1e30'], entry.DIVERGED, 'step '),
    ]
    for number, (flags, status, text) in enumerate(cases):
        given = {flag.partition('=')[0] for flag in flags}  # a tuple that is given twice would be joined
        command = tiny.train_command(tmp_path / str(number), data_dir, num_steps=6)
        done = tiny.run([word for word in command if word.partition('=')[0] not in given] + flags)
        assert done.returncode == status, (flags, done.returncode, done.stderr)
        assert text in done.stderr.splitlines()[-1], (flags, done.stderr)
        assert 'Traceback' not in done.stderr
    apart = [sys.executable, '-m', 'unet.main', '--config', 'configs/default.py', '--data_dir', '/nowhere']
    done = tiny.run(apart)
    assert done.returncode == entry.MISSING_INPUT and '/nowhere' in done.stderr


def test_a_second_run_on_a_workdir_is_kept_out(tmp_path, data_dir):
    command = tiny.train_command(tmp_path, data_dir, num_steps=1_000_000)  # it goes on until it is killed
    first = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / 'lease.json').exists():
        time.sleep(0.05)
    second = tiny.run(command)
    first.kill()
    first.wait()
    assert second.returncode == entry.IN_USE and str(first.pid) in second.stderr


def test_gpus_promised_but_not_seen_end_the_run(tmp_path, data_dir):
    done = tiny.run(tiny.train_command(tmp_path, data_dir), CUDA_VISIBLE_DEVICES='0,1')
    assert done.returncode == entry.BAD_CONFIG and '2 NVIDIA GPU' in done.stderr and 'cuda' in done.stderr
    assert '(it says: ' in done.stderr, "TensorFlow's own reason"


def test_a_divided_gpu_has_a_remedy_of_its_own(tmp_path, data_dir):
    smi = tmp_path / 'nvidia-smi'
    smi.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H100 (UUID: GPU-1)"; echo "  MIG 1g.10gb Device 0: (UUID: MIG-2)"\n')
    smi.chmod(0o755)
    environ = {'CUDA_VISIBLE_DEVICES': '0', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    done = tiny.run(tiny.train_command(tmp_path / 'run', data_dir), **environ)
    assert done.returncode == entry.BAD_CONFIG and 'the UUID of one' in done.stderr, done.stderr


@pytest.mark.parametrize('program', ['unet.main', 'unet.evaluate', 'unet.predict', 'unet.export', 'unet.report'])
def test_help_answers_without_tensorflow(program):
    code = (
        f'import sys, runpy\nsys.argv = ["x", "--help"]\ntry:\n  runpy.run_module("{program}", run_name="__main__")\n'
    )
    code += 'except SystemExit as e:\n  assert e.code == 0\nassert "tensorflow" not in sys.modules'
    done = subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert '--workdir' in done.stdout


def test_ema_is_evaluated_and_weights_start_another_run(tmp_path, data_dir):
    done = tiny.run(tiny.train_command(tmp_path / 'first', data_dir, num_steps=6, optimizer__ema=0.9))
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / 'first/metrics.jsonl').read_text().splitlines()[-1])
    flags = [f'--workdir={tmp_path / "first"}', f'--data_dir={data_dir}', '--checkpoint=latest']
    done = tiny.run([sys.executable, '-m', 'unet.evaluate', *flags])
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'first/evaluate-validation.json').read_text())
    assert result['scores']['eval/miou'] == last['eval/miou']  # both score the means, not the weights
    values = tiny.checkpoint_values(tmp_path / 'first/checkpoints/ckpt-6')
    means = [value for name, value in values.items() if name.startswith('state/ema/')]
    assert means and not any(np.array_equal(means[0], v) for n, v in values.items() if n.startswith('model/'))

    fields = {'init_from': tmp_path / 'first', 'labels': 'label_ids', 'num_steps': 3}
    done = tiny.run(tiny.train_command(tmp_path / 'second', data_dir, **fields))
    assert done.returncode == 0, done.stderr
    left_out = [line for line in done.stdout.splitlines() if line.startswith('  left out')]
    assert [line.split()[2] for line in left_out] == ['logits/kernel:', 'logits/bias:']
    done = tiny.run(tiny.train_command(tmp_path / 'third', data_dir, init_from=tmp_path / 'nothing'))
    assert done.returncode == entry.MISSING_INPUT and 'nothing' in done.stderr
