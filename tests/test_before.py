"""What was made before fields, keys and modules had today's names still loads, goes on and scores the same.

The files in tests/before/ were written by the code of commit dd52678: a record folder of six images and two, a float64
run of four steps whose config has the fields that were renamed since, the checkpoint that the same code reached after
two more steps, and an export with the label ids that it predicted.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tests import tiny

BEFORE = pathlib.Path(__file__).parent / 'before'
RECORDS = BEFORE / 'records'


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(BEFORE / 'run', tmp_path / 'run')


def test_a_run_goes_on_to_the_same_values(workdir):
    fields = {
        'precision': 'float64',
        'data.scale': '(1.0,1.0)',
        'model.width': 1,
        'model.dropout': 0.2,
        'loss.ohem': 0.5,
        'loss.ohem_threshold': 0.6,
        'loss.ohem_min_fraction': 0.25,
        'loss.dice': 0.5,
        'optimizer.name': 'adamw',
        'optimizer.ema': 0.9,
        'optimizer.clip_norm': 0.5,
        'eval.every_steps': 4,
        'checkpoint.every_steps': 2,
        'log.every_steps': 2,
    }
    done = tiny.run(tiny.train_command(workdir, RECORDS, num_steps=6, **fields))
    assert done.returncode == 0, done.stderr
    changes = [line for line in done.stdout.splitlines() if line.startswith('  config.')]
    assert changes == ['  config.num_steps: 4 -> 6', '  config.runtime.steps_per_call: 1 -> 0']
    assert 'Going on from' in done.stdout
    ours = tiny.checkpoint_values(workdir / 'checkpoints/ckpt-6')
    theirs = tiny.checkpoint_values(BEFORE / 'two_more_steps/ckpt-6')
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_fields_are_understood_by_the_names_that_they_had(workdir):
    """On the command line, too; the same run would not go on if a value had got lost."""
    config = json.loads((workdir / 'config.json').read_text())
    flags = [f'--config.{section}.{name}={value}' for section, name, value in _values(config) if name != 'servers']
    single = [f'--config.{name}={value}' for name, value in config.items() if not isinstance(value, dict)]
    command = [sys.executable, '-m', 'unet.main', '--config=configs/default.py', f'--workdir={workdir}']
    done = tiny.run([*command, f'--data_dir={RECORDS}', *single, *flags])
    assert done.returncode == 0, done.stderr
    assert 'config has changed' not in done.stdout
    for old, new in (
        ('hard_pixels', 'ohem'),
        ('hard_threshold', 'ohem_threshold'),
        ('hard_least', 'ohem_min_fraction'),
    ):
        assert any(f'loss.{old}' in line and f'loss.{new}' in line for line in (done.stdout + done.stderr).splitlines())


def _values(config: dict) -> list[tuple[str, str, object]]:
    found = [
        (s, name, value) for s, fields in config.items() if isinstance(fields, dict) for name, value in fields.items()
    ]
    return [(s, name, tuple(value) if isinstance(value, list) else value) for s, name, value in found]


def test_a_checkpoint_scores_the_same(workdir):
    before = json.loads((workdir / 'evaluate-validation.json').read_text())
    flags = [f'--workdir={workdir}', f'--data_dir={RECORDS}', '--checkpoint=latest']
    done = tiny.run([sys.executable, '-m', 'unet.evaluate', *flags])
    assert done.returncode == 0, done.stderr
    now = json.loads((workdir / 'evaluate-validation.json').read_text())
    assert now['confusion'] == before['confusion']
    assert now['scores'] == pytest.approx(before['scores'], abs=1e-12, nan_ok=True)


def test_a_report_shows_an_evaluation_by_its_old_keys(workdir):
    before = json.loads((workdir / 'evaluate-validation.json').read_text())
    done = tiny.run([sys.executable, '-m', 'unet.report', f'--workdir={workdir}', f'--data_dir={RECORDS}'])
    assert done.returncode == 0, done.stderr
    page = (workdir / 'report.html').read_text()
    assert f'{100 * before["scores"]["eval/miou"]:.2f}' in page and 'step 4' in page.lower()


def test_an_export_predicts_the_same(tmp_path):
    flags = [f'--model={BEFORE / "export"}', f'--images={BEFORE / "images"}', f'--output_dir={tmp_path}']
    done = tiny.run([sys.executable, '-m', 'unet.predict', *flags, '--outputs=label_ids'])
    assert done.returncode == 0, done.stderr
    expected = sorted((BEFORE / 'label_ids').iterdir())
    assert [path.name for path in expected] == sorted(path.name for path in (tmp_path / 'label_ids').iterdir())
    for path in expected:
        np.testing.assert_array_equal(
            np.array(Image.open(tmp_path / 'label_ids' / path.name)), np.array(Image.open(path))
        )
