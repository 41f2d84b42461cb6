"""The rules of configs: what a field may hold, how fields go together, what fields were called before.

    from configs import default, validation

    validation.validate(default.get_config(), default.FIELDS)  # []: nothing is wrong
    values, notes = validation.bring_up_to_date({'loss.hard_pixels': 1.0}, default.FIELDS)
    validation.output_size(572, depth=5, padding='valid')  # 388

This module does not import TensorFlow, so that launchers and `--help` answer at once.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

LOSSES = ('cross_entropy', 'focal', 'ohem', 'dice')  # those that have a weight in config.loss

Value = bool | int | float | str | tuple

_NEW_NAMES = {
    'loss.hard_pixels': 'loss.ohem',
    'loss.hard_threshold': 'loss.ohem_threshold',
    'loss.hard_least': 'loss.ohem_min_fraction',
}
_REMOVED = {'data.servers': 'each host decodes the crops of its own devices'}


@dataclasses.dataclass(frozen=True)
class Field:
    """One option of a config.

    Attributes:
      default: its value where nothing else is set; its type is the type of the field.
      choices: the strings that it, or each part of a tuple, may be; empty if it may be any.
      at_least, at_most: bounds of a number, both included.
      below: bound of a number that is not included.
      check: takes a value that is no string and returns what is wrong with it, '' if nothing is.
    """

    default: Value
    choices: tuple[str, ...] = ()
    at_least: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    check: Callable[..., str] | None = None

    def problem(self, value: Value) -> str:
        """Returns what is wrong with a value of the right type; '' if nothing is."""
        if isinstance(value, str):
            return '' if not self.choices or value in self.choices else f'choose one of {", ".join(self.choices)}'
        if isinstance(value, tuple):
            if self.choices and (len(set(value)) < len(value) or not set(value) <= set(self.choices)):
                return f'choose among {", ".join(self.choices)}, each once'
            return self.check(value) if self.check else ''
        if self.check:
            return self.check(value)
        if value < self.at_least:
            return f'must be at least {self.at_least}'
        if value > self.at_most:
            return f'must be at most {self.at_most}'
        return '' if value < self.below else f'must be below {self.below}'


def size(value: tuple) -> str:
    """Checks (height, width) in pixels."""
    return '' if _is_size(value, 1) else 'must be (height, width) in whole pixels'


def size_or_zeros(value: tuple) -> str:
    """Checks (height, width) in pixels, or (0, 0)."""
    if not _is_size(value, 0):
        return 'must be (height, width) in whole pixels'
    return '' if any(value) == all(value) else 'give both height and width, or (0, 0) for neither'


def _is_size(value: tuple, least: int) -> bool:
    return len(value) == 2 and all(isinstance(side, int) and side >= least for side in value)


def positive_range(value: tuple) -> str:
    """Checks (smallest, largest)."""
    fine = len(value) == 2 and 0 < value[0] <= value[1]
    return '' if fine else 'must be (smallest, largest), both above 0'


def steps(value: tuple) -> str:
    """Checks (after this step, up to this step)."""
    fine = _is_size(value, 0) and value[0] <= value[1]
    return '' if fine else 'must be (after this step, up to this step)'


def weights(value: tuple) -> str:
    """Checks weights of classes, or none."""
    fine = not value or min(value) >= 0 < max(value)
    return '' if fine else 'none may be below 0, and not all of them 0'


def stem(value: int) -> str:
    """Checks a power of two."""
    return '' if value in (1, 2, 4) else 'must be 1, 2 or 4'


def names(value: tuple) -> str:
    """Checks the names of one split or more."""
    if not value:
        return 'name at least one split'
    return '' if len(set(value)) == len(value) else 'name each split once'


def validate(config: ConfigDict, fields: Mapping[str, Field]) -> list[str]:
    """Says what cannot work about a config.

    Launchers call it before they submit and the trainer before it starts.

    Args:
      config: the config, its values of the types that ml_collections has checked.
      fields: what there is to set, by dotted name.

    Returns:
      One line for each mistake, with value, limit and remedy; an empty list if all is well.
    """
    values = flatten(config)
    problems = [f'config.{name}: no such field' for name in values if name not in fields]
    problems += [f'config.{name}: missing' for name in fields if name not in values]
    for name, value in values.items():
        if name in fields and (malformed := _malformed(value, fields[name])):
            problems.append(f'config.{name}={value}: {malformed}')
    if problems:
        return problems
    for name, field in fields.items():
        if problem := field.problem(values[name]):
            shown = repr(values[name]) if field.choices else values[name]
            problems.append(f'config.{name}={shown}: {problem}')
    return problems or _problems_between(config)


def problems_of_types(values: Mapping[str, Value], fields: Mapping[str, Field]) -> list[str]:
    """Says which values, by dotted name, are not of their field's type, as in a file that was edited by hand."""
    sections = {name.rpartition('.')[0] for name in fields}
    problems = [f'{name}={value!r} instead of fields' for name, value in values.items() if name in sections]
    for name, field in fields.items():
        kind = type(field.default)
        if type(values[name]) is not kind and not (kind is float and type(values[name]) is int):
            problems.append(f'{name}={values[name]!r}, which is no {kind.__name__}')
    return problems


def _malformed(value: Value, field: Field) -> str:
    """What is wrong with the form of a value, whatever its bounds; '' if nothing is."""
    of_names = isinstance(field.default, tuple) and isinstance(next(iter(field.choices + field.default), None), str)
    for part in value if isinstance(value, tuple) else (value,):
        if of_names and not isinstance(part, str):
            return f"must be names in quotes, e.g. ('{part}',)"
        if isinstance(value, tuple) and not of_names and not isinstance(part, int | float):
            return f'{part!r} is no number'
        if isinstance(part, float) and not math.isfinite(part):
            return 'must be finite'
    return ''


def _problems_between(config: ConfigDict) -> list[str]:
    """What cannot work about fields together, each of which is fine by itself."""
    problems = []
    if not any(config.loss[name] > 0 for name in LOSSES):
        problems.append('config.loss: give at least one loss a weight above 0')
    profiled = tuple(config.profile.steps)
    if profiled[1] > config.num_steps:
        problems.append(f'config.profile.steps={profiled}: the run ends at step {config.num_steps} (config.num_steps)')
    crop = tuple(config.data.crop)
    if config.model.stem > 1 and config.model.padding == 'valid':
        problems.append(f"config.model.stem={config.model.stem}: needs config.model.padding='same'")
    elif problem := input_size_problem(crop, config.model.depth, config.model.padding, config.model.stem):
        problems.append(f'config.data.crop={crop}: {problem}')
    return problems


def output_size(size: int, depth: int, padding: str, stem: int = 1) -> int:
    """Returns the pixels along one side of the U-Net's output for an input of `size`; 0 if it takes no such input.

    Every halving, of pooling and stem, needs an even size. An unpadded model (padding 'valid', stem 1) loses 4 pixels
    per level on the way down and again on the way up, e.g. 572 -> 388 at depth 5 (https://arxiv.org/abs/1505.04597,
    figure 1).
    """
    if padding == 'same':
        return 0 if size % input_multiple(depth, stem) else size
    loss = 4
    for _ in range(depth - 1):
        size -= loss
        if size <= 0 or size % 2:
            return 0
        size //= 2
    size -= loss
    for _ in range(depth - 1):
        size = 2 * size - loss
    return max(size, 0)


def input_multiple(depth: int, stem: int = 1) -> int:
    """Returns the pixels that height and width of a padded U-Net's input are multiples of."""
    return stem * 2 ** (depth - 1)


def input_size_problem(size: tuple[int, int], depth: int, padding: str, stem: int = 1) -> str:
    """Says that the U-Net takes no input of this height or width, and which are the nearest it takes; '' if it does."""
    for side in size:
        if not output_size(side, depth, padding, stem):
            usable = [near for near in range(1, side + 1024) if output_size(near, depth, padding, stem)]
            nearest = sorted(sorted(usable, key=lambda near: abs(near - side))[:2])
            remedy = f'the nearest it takes are {nearest}' if nearest else 'make it larger'
            unpadded = 'n unpadded' if padding == 'valid' else ''
            stemmed = f' and stem {stem}' if stem > 1 else ''
            return f'a{unpadded} model of depth {depth}{stemmed} takes no input of {side} pixels; {remedy}'
    return ''


def flatten(config: ConfigDict, prefix: str = '') -> dict[str, Value]:
    """Returns the values by dotted name: {'data.crop': (512, 1024), ...}."""
    values: dict[str, Value] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            values |= flatten(value, f'{prefix}{name}.')
        else:
            values[prefix + name] = tuple(value) if isinstance(value, list) else value
    return values


def nested(values: Mapping[str, Value]) -> ConfigDict:
    """Returns the config of values by dotted name, the opposite of `flatten`."""
    config = ConfigDict()
    for name, value in values.items():
        *sections, last = name.split('.')
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        section[last] = value
    return config


def bring_up_to_date(values: Mapping[str, Value], fields: Mapping[str, Field]) -> tuple[dict[str, Value], list[str]]:
    """Makes the config of an older version one of this version.

    Args:
      values: the old config's, by dotted name.
      fields: what there is to set today, by dotted name.

    Returns:
      The values, under the names of today, with the default for every field that was not there yet; unknown names stay.
      And one line for each old name, and one for all new fields.
    """
    notes = [note for name in values if (note := _note_of_old_name(name))]
    current = {_NEW_NAMES.get(name, name): value for name, value in values.items() if name not in _REMOVED}
    added = {name: field.default for name, field in fields.items() if name not in current}
    if added:
        shown = ', '.join(f'{name}={value!r}' for name, value in added.items())
        notes.append(f'it was written before these fields were there, which have their defaults: {shown}')
    return current | added, notes


def bring_arguments_up_to_date(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Gives fields on a command line the names of today.

    Args:
      arguments: e.g. ['--config.loss.hard_pixels=1'].

    Returns:
      The arguments, e.g. ['--config.loss.ohem=1'], and one line for each old name.
    """
    current, notes, skip = [], [], False
    for argument in arguments:
        found = re.fullmatch(r'(--?config\.)([\w.]+)(=.*)?', argument, re.DOTALL)
        if skip:  # the value of a removed field, written apart from it
            skip = False
            continue
        prefix, name, value = found.groups() if found else ('', '', None)
        if note := _note_of_old_name(name):
            notes.append(f'--config.{note}')
        if name in _REMOVED:
            skip = value is None
        else:
            current.append(f'{prefix}{_NEW_NAMES[name]}{value or ""}' if name in _NEW_NAMES else argument)
    return current, notes


def _note_of_old_name(name: str) -> str:
    if name in _NEW_NAMES:
        return f'{name} is called {_NEW_NAMES[name]} now'
    return f'{name} is gone and counts no more: {_REMOVED[name]}' if name in _REMOVED else ''
