import json
import os

import pytest
import tensorflow as tf

from configs import default, validation
from launch import entry
from unet.reporting import runs
from unet.training import checkpoint, metric_writer, workdir


def write(folder, **changes):
    """The config.json of a run, as the version before the fields of `changes` got their names wrote it."""
    config = default.get_config().to_dict()
    for name in ('ohem', 'ohem_threshold', 'ohem_min_fraction'):
        del config['loss'][name]
    for name in ('beta1', 'beta2', 'epsilon'):
        del config['optimizer'][name]
    config['loss'] |= {'hard_pixels': 0.0, 'hard_threshold': 0.7, 'hard_least': 0.1} | changes
    config['data']['servers'] = []
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'checkpoints').mkdir()
    (folder / 'checkpoints/ckpt-1.index').touch()


def test_the_run_of_an_older_version_has_the_config_of_today(tmp_path, capsys):
    write(tmp_path)
    assert workdir.read_config(tmp_path) == default.get_config()
    assert 'loss.hard_pixels is called loss.ohem now' in capsys.readouterr().err
    workdir.compare_config(tmp_path, default.get_config())  # nothing has changed
    assert not capsys.readouterr().out


def test_the_run_of_an_older_version_does_not_go_on_with_another_loss(tmp_path):
    write(tmp_path, hard_pixels=0.5)
    with pytest.raises(entry.UserError, match=r'config.loss.ohem: 0.5 -> 0.0'):
        workdir.compare_config(tmp_path, default.get_config())


@pytest.mark.parametrize('name', ['model.norm', 'optimizer.ema', 'seed', 'runtime.peer_seconds'])
def test_a_run_from_before_a_field_has_its_default(tmp_path, capsys, name):
    config = default.get_config()
    values = {other: value for other, value in validation.flatten(config).items() if other != name}
    (tmp_path / 'config.json').write_text(validation.nested(values).to_json(), encoding='utf-8-sig')
    assert workdir.read_config(tmp_path) == config
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f'{name}={default.FIELDS[name].default!r}' in said[0]


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[]',
        'null',
        '7',
        '{"model": 3}',
        '{"model": null}',
        '{"seed": "x"}',
        '{"data": {"crop": 7}}',
        '{"seed": null}',
    ],
)
def test_what_is_no_config_is_refused(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(entry.UserError, match='not the config of a run') as failure:
        workdir.read_config(tmp_path)
    assert failure.value.status == entry.BAD_DATA and '\n' not in str(failure.value)


@pytest.mark.parametrize(
    'damage',
    [
        b'{"step": 2, "eval/miou": 0.\xff}',
        b'{"step": 2, "ev',
        b'\0\0\0\0',
        b'[7]',
        b'7',
        b'{"step": 2, "eval/miou": "x"}',
        b'{"step": Infinity}',
        b'{"step": null}',
        b'{}',
    ],
)
def test_damaged_lines_of_the_metrics_are_left_out(tmp_path, damage):
    lines = [b'{"step": 1, "eval/miou": 0.5}', damage, b'{"step": 3, "eval/miou": null}', b'{"step": 9}']
    path = tmp_path / workdir.METRICS_FILE
    path.write_bytes(b'\n'.join(lines) + b'\n')
    assert [line['step'] for line in workdir.read_metrics(tmp_path)] == [1, 3, 9]
    assert list(workdir.last_scores(tmp_path)) == ['eval/miou']
    metric_writer.MetricsWriter(str(tmp_path), last_step=3).write(4, {'train/loss': 0.25})
    assert path.read_bytes().splitlines() == [lines[0], lines[2], b'{"step": 4, "train/loss": 0.25}']


def test_checkpoints_of_other_names_are_left_alone(tmp_path):
    """Copies that a user or a file manager has put beside those of the run."""
    strange = (
        'ckpt-best.index',
        'ckpt-7 (copy).index',
        'ckpt-007.index',
        'ckpt-1.5.index',
        'model.index',
        'ckpt-.index',
    )
    contents = tf.train.Checkpoint(value=tf.Variable(1.0))
    for step in (1, 2, 3):
        contents.value.assign(step)
        checkpoint.save(str(tmp_path), contents, step=step, keep=2)
        for name in strange:
            (tmp_path / name).write_bytes(b'')
    assert checkpoint.list_newest_first(tmp_path) == [3, 2]
    contents.value.assign(0)
    assert checkpoint.restore(str(tmp_path), contents) == f'{tmp_path}/ckpt-3' and contents.value.numpy() == 3
    assert all((tmp_path / name).exists() for name in strange)


def test_an_evaluation_belongs_to_its_checkpoint_whatever_their_times(tmp_path):
    """`cp -r` dates the files of a run anew, in any order."""
    contents = tf.train.Checkpoint(value=tf.Variable(1.0))
    path, file = checkpoint.save(str(tmp_path), contents, step=1, keep=1), tmp_path / 'evaluate-validation.json'
    written = dict.fromkeys(('images', 'scores', 'scores_of_images', 'confusion'))
    written |= {'checkpoint': path, 'checkpoint_sha256': checkpoint.digest(path)}
    file.write_text(json.dumps(written))
    for older in (file, tmp_path / 'ckpt-1.index'):
        os.utime(older, (older.stat().st_atime, older.stat().st_mtime - 100))
        assert runs.read_evaluation(file, path) == written
    contents.value.assign(2.0)
    checkpoint.save(str(tmp_path), contents, step=1, keep=1)
    assert runs.read_evaluation(file, path) is None and runs.read_evaluation(file, None) is None
    for damaged in ('', '[]', '{"checkpoint": 7}'):
        file.write_text(damaged)
        with pytest.raises(entry.UserError, match='Run unet.evaluate again') as failure:
            runs.read_evaluation(file, path)
        assert failure.value.status == entry.BAD_DATA
