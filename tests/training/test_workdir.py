import json

import pytest

from configs import default
from launch import entry
from unet.training import workdir


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
