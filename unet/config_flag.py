"""The flag --config of the programs that train.

config = config_flag.checked()      # configs/cityscapes.py with the fields that the command line sets
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import default
from launch import entry

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, e.g. configs/cityscapes.py; required.')


def checked() -> ConfigDict:
    """Returns the config, in which `validate` finds nothing wrong.

    Raises:
      UserError: BAD_USAGE if there is none, BAD_CONFIG if it cannot work.
    """
    if _CONFIG.value is None:
        raise entry.UserError(entry.BAD_USAGE, 'pass --config, e.g. --config=configs/cityscapes.py')
    problems = default.validate(_CONFIG.value)
    if problems:
        raise entry.UserError(entry.BAD_CONFIG, '\n'.join(problems))
    return _CONFIG.value


def name() -> str:
    """Returns the name of the config's file, without its folder and suffix."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem


def arguments(command_line: list[str]) -> list[str]:
    """Returns the arguments that say what the config is, to start another program with the same one."""
    kept = []
    for argument, following in zip(command_line, [*command_line[1:], '-'], strict=True):
        if argument.lstrip('-').removeprefix('no').startswith('config'):
            kept += [argument] if '=' in argument or following.startswith('-') else [argument, following]
    return kept
