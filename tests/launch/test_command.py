import subprocess
import sys

import pytest

from launch import command, entry
from tests import tiny

CONFIG = '--config=configs/default.py'


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # ml_collections loads config files with it
def test_old_names_of_fields_are_understood(capfd):
    config = command.read_config([CONFIG, '--config.loss.hard_pixels=0.5', '--config.loss.hard_least', '0.25'])
    assert (config.loss.ohem, config.loss.ohem_min_fraction) == (0.5, 0.25)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all('is called loss.ohem' in line for line in lines)


@pytest.mark.parametrize(
    ('statuses', 'overall'),
    [([0, 0], 0), ([0, 76], 76), ([76, 70, 78], 70), ([76, 134], 134), ([139, 65], 65), ([75, 143], 143)],
)
def test_a_crash_asks_to_be_run_again_and_a_permanent_failure_outweighs_it(statuses, overall):
    assert command.overall_status(statuses) == overall


def test_programs_understand_old_names_of_fields():
    flags = [CONFIG, '--config.loss.hard_pixels=-1', '--config.data.servers=a:1']
    done = subprocess.run([sys.executable, '-m', 'unet.main', *flags], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == entry.BAD_CONFIG
    renamed, removed, problem = done.stderr.splitlines()
    assert 'loss.ohem now' in renamed and 'data.servers is gone' in removed and 'config.loss.ohem=-1' in problem
