"""The checks before a run, and the proof on the devices at hand: on two devices of one process, and of two."""

import json
import sys

import pytest

from configs import default
from data_prep import labels
from launch import entry
from tests import tiny


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'records'
    return tiny.write_folder(folder, train=tiny.scenes(6), validation=tiny.scenes(2, seed=1))


def preflight(workdir, data_dir, *flags: str, **fields) -> list[str]:
    command = tiny.train_command(workdir, data_dir, **fields)
    return [*command[:2], 'unet.preflight', *command[3:], *flags]


def failures(output: str) -> list[str]:
    return [line for line in output.splitlines() if 'FAIL' in line]


def test_two_devices_prove_themselves(tmp_path, data_dir):
    """An overflow on either device among it, in float16."""
    fields = {'runtime.virtual_devices': 2, 'optimizer.ema': 0.9, 'loss.auxiliary': 0.4}
    fields['runtime.jit_compile'] = 'auto'
    done = tiny.run(preflight(tmp_path, data_dir, '--selfcheck', '--json', **fields))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(check['passed'] for check in checks)
    names = [check['name'] for check in checks]
    for name in (
        '2 devices train as one',
        'recomputed activations give the same',
        'the compiled step gives the same',
        'a step taken again after restoring gives the same',
        'an overflow on device 0 is withheld on all',
        'an overflow on device 1 is withheld on all',
        'all-reduce',
    ):
        assert name in names
    assert not (tmp_path / 'config.json').exists(), 'a check starts no run'


def test_two_processes_prove_themselves(tmp_path, data_dir):
    """The second process overflows alone, and all keep their weights."""
    command = preflight(tmp_path, data_dir, '--selfcheck')
    launch = [sys.executable, '-m', 'launch.local', '--workers=2', '--module=unet.preflight', '--', *command[3:]]
    done = tiny.run(launch)
    assert done.returncode == 0 and not failures(done.stdout), done.stdout
    assert '[0] pass  2 devices train as one' in done.stdout
    assert '[0] pass  an overflow on device 1 is withheld on all' in done.stdout


def test_what_cannot_work_is_told_with_its_remedy(tmp_path, data_dir):
    done = tiny.run(
        preflight(
            tmp_path / 'a/run', data_dir, data__crop='(256,256)', data__scale='(0.5,1.0)', runtime__microbatches=3
        )
    )
    assert done.returncode == entry.BAD_CONFIG, done.stdout + done.stderr
    crop, batch = failures(done.stdout)
    assert 'crops of 256x256 show at least 256x256 pixels of images of up to 40x56. Every' in crop
    assert 'The next config.global_batch that divides is 6' in batch
    done = tiny.run(tiny.train_command(tmp_path / 'run', data_dir, runtime__microbatches=3))
    assert done.returncode == entry.BAD_CONFIG and 'divides is 6' in done.stderr.splitlines()[-1]
    (tmp_path / 'file').touch()
    fields = {'loss.class_weights': (1, 2), 'init_from': '/nowhere'}
    done = tiny.run(preflight(tmp_path / 'file/run', data_dir, **fields))
    assert done.returncode == entry.BAD_USAGE
    folder, losses, source = failures(done.stdout)
    assert 'is no folder' in folder and '2 values' in losses and '/nowhere: no run here' in source


def test_a_batch_too_large_for_the_memory_is_found_in_parts(data_dir):
    import tensorflow as tf

    from unet.training import build as training_build
    from unet.training import device_memory

    config = default.get_config()
    config.data.crop, config.model.width = (64, 64), 4
    tried = []
    # XLA on a GPU that is nearly full says the second of these.
    errors = [
        tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor'),
        tf.errors.NotFoundError(None, None, 'Failed to determine best cudnn convolution algorithm for: ...'),
    ]

    def try_step(microbatches):
        images = 12 // microbatches
        tried.append(images)
        if images > 3:
            raise errors[len(tried) % 2]

    cost, memory = training_build.estimate_cost(config, 19), device_memory.usable_bytes()
    assert device_memory.find_microbatches(cost, 12, memory, try_step) == 4
    assert tried == [12, 6, 4, 3]
    tried.clear()
    config.data.crop, config.model.width = (16_384, 16_384), 512  # the estimate spares the attempts
    assert device_memory.find_microbatches(training_build.estimate_cost(config, 19), 12, memory, try_step) is None
    assert not tried
    with pytest.raises(entry.UserError, match='not even one image of 16384x16384'):
        training_build.with_fitting_microbatches(config, labels.CITYSCAPES, None, replicas=2)


def test_the_number_of_parts_is_found_written_and_kept(tmp_path, data_dir):
    done = tiny.run(tiny.train_command(tmp_path, data_dir, num_steps=3, runtime__microbatches=0))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'config.json').read_text())['runtime']['microbatches'] == 1
    recorded = json.loads((tmp_path / 'config.json').read_text())
    recorded['runtime']['microbatches'] = 2
    (tmp_path / 'config.json').write_text(json.dumps(recorded))
    done = tiny.run(tiny.train_command(tmp_path, data_dir, num_steps=6, runtime__microbatches=0))
    assert done.returncode == 0, done.stderr
    assert 'in 2 microbatches; batch statistics over 2 images' in done.stdout
    assert json.loads((tmp_path / 'config.json').read_text())['runtime']['microbatches'] == 2
