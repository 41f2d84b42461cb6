import json
import sys

import pytest

from launch import entry
from tests import tiny


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp('data'), train=tiny.scenes(8), validation=tiny.scenes(3, seed=1))


def compare(tmp_path, data_dir, rows, *flags):
    (tmp_path / 'rows.json').write_text(rows if isinstance(rows, str) else json.dumps(rows))
    small = [argument for argument in tiny.train_command('', data_dir) if argument.startswith('--config')]
    given = [f'--data_dir={data_dir}', f'--rows={tmp_path}/rows.json', f'--folder={tmp_path}/accuracy', *flags]
    return tiny.run([sys.executable, '-m', 'benchmarks.accuracy', *small, *given])


def test_a_row_takes_the_steps_that_its_time_allows():
    """Start and evaluation take a minute here, a step a tenth of one; and the table has mean and half the range."""
    code = """
import pathlib, types
from benchmarks import accuracy
accuracy._train = lambda workdir, fields, seed, steps: {'minutes': 1 + 0.1 * steps}
accuracy._MINUTES = types.SimpleNamespace(value=30)
assert accuracy._steps_within(pathlib.Path('/tmp'), {}) == 290
seeds = [dict(miou=score, rare=0.1, least=0.0, images_per_second=4.0, minutes=30.0) for score in (0.30, 0.34)]
assert accuracy.table({'today': seeds}).splitlines()[-1].startswith('| today | 2 | 32.0 ± 2.0 | 10.0 ± 0.0 |')
"""
    done = tiny.run([sys.executable, '-c', code])
    assert done.returncode == 0, done.stderr


def test_a_row_is_trained_once(tmp_path, data_dir):
    rows = {'with a stem': {'model.stem': 2, 'data.crop': [32, 32]}}
    flags = ['--seeds=3', '--minutes=0.01', '--rare=car']
    done = compare(tmp_path, data_dir, rows, *flags)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / 'accuracy/results.json').read_text()).values()
    assert result['seed'] == '3' and result['steps'] == 1 and result['fields'] == rows['with a stem']
    assert 0 <= result['least'] <= result['miou'] <= 1
    config = json.loads((tmp_path / 'accuracy/with a stem-3/config.json').read_text())
    assert config['model']['stem'] == 2 and config['seed'] == 3 and config['num_steps'] == result['steps']
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f'| with a stem | 1 | {100 * result["miou"]:.1f} |')
    again = compare(tmp_path, data_dir, rows, *flags)
    assert again.stdout.splitlines()[-1] == last and 'mIoU 0' not in again.stdout
    assert [path.name for path in (tmp_path / 'accuracy').iterdir() if path.name.startswith('.')] == []


@pytest.mark.parametrize(
    ('rows', 'status', 'text'),
    [
        ('{"a": ', entry.BAD_DATA, 'rows.json: not JSON'),
        ({'a': {'model.stemm': 2}}, entry.BAD_CONFIG, "row 'a'"),
        ({'a': {'model.stem': 3}}, entry.BAD_CONFIG, 'must be 1, 2 or 4'),
    ],
    ids=['cut off', 'no such field', 'no such value'],
)
def test_rows_that_cannot_be_trained_are_named_before_any_is(tmp_path, data_dir, rows, status, text):
    done = compare(tmp_path, data_dir, rows)
    assert done.returncode == status and text in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr
