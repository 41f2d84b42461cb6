"""Every program in folders whose names hold what shells, globs, zip locations and TensorFlow give a meaning to."""

import os
import pathlib
import shlex
import shutil
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from launch import entry, files
from tests import tiny
from unet.training import restore

STEP = 'state/step/.ATTRIBUTES/VARIABLE_VALUE'
ODD = 'a [1]{b}*?!#%\\ übung'


def run(module: str, *arguments: str, status: int = entry.OK) -> str:
    done = tiny.run([sys.executable, '-m', module, *arguments])
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """A dataset and what the programs made of it, all in folders with an odd name; a neighbour that patterns would
    take for it."""
    root = tmp_path_factory.mktemp('names') / ODD
    dataset, data, workdir = (root / f'{name} {ODD}' for name in ('dataset', 'records', 'run'))
    for split, number in (('train', 4), ('val', 2)):
        for i, (image, label) in enumerate(tiny.scenes(number, (48, 64), seed=len(split))):
            for kind, pixels in (('leftImg8bit', image), ('gtFine', label)):
                suffix = 'gtFine_labelIds' if kind == 'gtFine' else kind
                path = dataset / kind / split / 'x!v2' / f'x!v2_{i:06d}_{len(split):06d}_{suffix}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    said = run('data_prep.build_tfrecords', f'--cityscapes_dir={dataset}', f'--data_dir={data}', '--workers=1')
    fields = {'num_steps': 2, 'eval__every_steps': 2, 'checkpoint__every_steps': 1, 'log__every_steps': 1}
    for steps in (2, 4):
        done = tiny.run(tiny.train_command(workdir, data, **fields | {'num_steps': steps}))
        assert done.returncode == 0, done.stderr
    assert 'Going on from' in done.stdout
    return dataset, data, workdir, said


def test_printed_commands_are_quoted_for_the_shell(odd):
    dataset, data, _, said = odd
    check = next(line for line in said.splitlines() if line.startswith('Check:'))
    assert shlex.split(check)[-2:] == [f'--data_dir={data}', f'--cityscapes_dir={dataset}']


def test_every_program_finds_what_the_others_wrote(odd):
    dataset, data, workdir, _ = odd
    run('data_prep.verify_tfrecords', f'--data_dir={data}', f'--cityscapes_dir={dataset}')
    assert 'mIoU' in run('unet.evaluate', f'--workdir={workdir}', f'--data_dir={data}')
    run('unet.export', f'--workdir={workdir}', f'--data_dir={data}', '--size=48x64')
    images, found = dataset / 'leftImg8bit/val', {}
    for flag, path in (('workdir', workdir), ('model', workdir / 'export')):
        output = workdir.parent / f'{flag} {ODD}'
        run('unet.predict', f'--{flag}={path}', f'--images={images}', f'--output_dir={output}')
        found[flag] = {file.name: np.asarray(Image.open(file)) for file in output.rglob('*label*.png')}
    run('unet.report', f'--workdir={workdir}', f'--data_dir={data}')
    copy = workdir.parent / f'copy {ODD}'
    run('data_prep.stage_tfrecords', f'--data_dir={data}', f'--to={copy}')
    run('data_prep.verify_tfrecords', f'--data_dir={copy}')
    begun = workdir.parent / f'begun {ODD}'
    done = tiny.run(tiny.train_command(begun, data, num_steps=1, init_from=workdir))
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_whose_own_name_holds_patterns(tmp_path, odd):
    import tensorflow as tf

    newest = next((odd[2] / 'checkpoints').glob('ckpt-4.index')).with_suffix('')
    wanted = tf.train.load_variable(
        str(tiny.ROOT / shutil.copytree(newest.parent, tmp_path / 'plain') / 'ckpt-4'), STEP
    )
    for name in ('best[1]', 'a*b?', 'back\\slash.v2'):
        for file in newest.parent.glob('ckpt-4.*'):
            shutil.copy(file, tmp_path / f'{name}{file.suffix}')
            shutil.copy(file, tmp_path / f'other{file.suffix}')
        assert restore.step_of(str(tmp_path / name)) == wanted
    run('unet.predict', f'--workdir={odd[2]}', f'--checkpoint={tmp_path}/best[1]', f'--images={odd[0]}/leftImg8bit/val',
        f'--output_dir={tmp_path}/found')  # fmt: skip


def test_a_pattern_never_reaches_into_another_folder(tmp_path):
    """The leftovers of `q1` are not those of `q[1]`, to build and stage."""
    (tmp_path / 'q1').mkdir()
    (tmp_path / 'q[1]').mkdir()
    (tmp_path / 'q1/.a.part').touch()
    (tmp_path / 'q[1]/.b.part').touch()
    assert files.matching(tmp_path / 'q[1]', '.*.part') == [tmp_path / 'q[1]/.b.part']
    assert files.matching(tmp_path / 'q[2]', '*') == []


def test_zip_files_in_an_odd_folder(tmp_path, odd):
    dataset = odd[0]
    zipped = tmp_path / 'z [2]'
    zipped.mkdir()
    for kind, name in (('leftImg8bit', 'leftImg8bit_trainvaltest.zip'), ('gtFine', 'gtFine!_trainvaltest.zip')):
        with zipfile.ZipFile(zipped / name, 'w') as archive:
            for file in (dataset / kind).rglob('*.png'):
                archive.write(file, file.relative_to(dataset))
    run('data_prep.build_tfrecords', f'--cityscapes_dir={zipped}', f'--data_dir={tmp_path}/q[1]', '--workers=1')
    run('data_prep.verify_tfrecords', f'--data_dir={tmp_path}/q[1]', f'--cityscapes_dir={zipped}')


def test_home_is_expanded(tmp_path, odd):
    """Which the shell does not do behind a =."""
    command = [sys.executable, '-m', 'data_prep.verify_tfrecords', f'--data_dir=~/{odd[1].relative_to("/")}']
    done = tiny.run(command, HOME='/')
    assert done.returncode == 0 and not pathlib.Path(tiny.ROOT, '~').exists(), done.stderr


def test_long_names_are_written(tmp_path):
    for name in ('a' * 250, 'ü' * 125, 'short'):
        files.write_atomically(tmp_path / name, 'x')
        assert (tmp_path / name).read_text() == 'x'
    assert len(os.listdir(tmp_path)) == 3


def test_a_name_that_is_no_text_is_named(tmp_path, odd):
    """Image ids are text; unet.predict takes any name."""
    folder = tmp_path / 'dataset/leftImg8bit/train/x'
    folder.mkdir(parents=True)
    file = os.fsencode(folder) + b'/x_\xff_000000_leftImg8bit.png'
    with open(file, 'wb') as image:
        image.write(tiny.png(tiny.scene((48, 64), 0)[0]))
    done = tiny.run(
        [
            sys.executable,
            '-m',
            'data_prep.build_tfrecords',
            f'--cityscapes_dir={tmp_path}/dataset',
            f'--data_dir={tmp_path}/r',
        ]
    )
    assert (
        done.returncode == entry.BAD_DATA and r"x_\udcff_000000_leftImg8bit.png': its name is not UTF-8" in done.stderr
    )
    run('unet.predict', f'--workdir={odd[2]}', f'--images={folder}', f'--output_dir={tmp_path}/found')
    assert len(list((tmp_path / 'found').rglob('*.png'))) >= 1
