"""Templates filled in so that no value can break out of its place.

    from launch import templates

    templates.shell(['rm', 'a file'])  # rm 'a file'
    templates.to_yaml({'answer': 'no'})  # {"answer": "no"}

Templates are jinja2 with two filters: `shell` quotes a string, or each of a list, for bash; `yaml` writes any value as
YAML on one line. A variable that a template names and nobody gives is an error.
"""

import json
import os
import pathlib
import re
import shlex
from collections.abc import Mapping

import jinja2
import yaml

from launch import entry

TEMPLATES = pathlib.Path(__file__).parent / 'templates'


def render(template: str | os.PathLike[str], variables: Mapping[str, object]) -> str:
    """Fills in a template.

    Args:
      template: its file, which may include others from its own folder and from launch/templates.
      variables: value of each variable in it.

    Raises:
      UserError: MISSING_INPUT if there is no such template, BAD_USAGE if it cannot be filled in.
    """
    template = pathlib.Path(template)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {'shell': shell, 'yaml': to_yaml}
    try:
        text = template.read_text('utf-8')
    except OSError as error:
        raise entry.UserError(
            entry.MISSING_INPUT,
            f'--template={template}: {error.strerror}. Those that come with the launchers are in {TEMPLATES}.',
        ) from error
    except UnicodeDecodeError as error:
        raise entry.UserError(
            entry.BAD_USAGE, f'--template={template}: is not UTF-8 ({error}). Save it as such.'
        ) from error
    try:
        return environment.from_string(text).render(variables)
    except jinja2.TemplateError as error:
        number = getattr(error, 'lineno', None)
        line = f' line {number}' if number else ''
        raise entry.UserError(entry.BAD_USAGE, f'--template={template}:{line} {error.message}') from error


def shell(value: str | list[str] | tuple[str, ...]) -> str:
    """Quotes one word for bash, or several, which it joins by spaces.

    Control characters are written as escapes, so that a value never spans lines: sbatch refuses a script with carriage
    returns, and would take a line that starts with #SBATCH for its own.
    """
    if not isinstance(value, str):
        return ' '.join(map(shell, value))
    if not re.search(r'[\x00-\x1f\x7f]', value):
        return shlex.quote(value)
    escaped = value.replace('\\', '\\\\').replace("'", "\\'")
    return "$'" + re.sub(r'[\x00-\x1f\x7f]', lambda found: f'\\x{ord(found.group()):02x}', escaped) + "'"


class _Quoting(yaml.SafeDumper):
    """Quotes every string: YAML 1.1 and 1.2 differ on whether 1e-3, no and 0o7 are strings."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar('tag:yaml.org,2002:str', text, style='"'))


def to_yaml(value: object) -> str:
    """Writes a value as YAML on one line, in flow style."""
    value = json.loads(json.dumps(value))  # tuples become lists, and nothing is an alias of anything
    text = yaml.dump(value, Dumper=_Quoting, default_flow_style=True, width=float('inf'), sort_keys=False)
    return text.removesuffix('\n').removesuffix('\n...')
