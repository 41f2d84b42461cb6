import json
import os
import re
import subprocess
import sys

import pytest

from launch import entry
from tests import tiny


def outcome(body: str) -> subprocess.CompletedProcess:
    code = f'import errno\nfrom launch import entry\ndef main():\n  {body}\nentry.run(main)'
    return subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    'body, status, text',
    [
        ('pass', 0, ''),
        ('raise entry.UserError(65, "shard 3 is damaged")', 65, 'shard 3 is damaged'),
        ('raise OSError(errno.ENOSPC, "No space left on device", "/data/x")', entry.NO_STORAGE, '/data/x'),
        ('raise KeyboardInterrupt', entry.STOPPED, 'stopped'),
    ],
)
def test_an_outcome_is_one_line_and_a_status(body, status, text):
    done = outcome(body)
    assert done.returncode == status
    assert text in done.stderr and 'Traceback' not in done.stderr and len(done.stderr.splitlines()) == bool(text)


@pytest.mark.parametrize('sink', ['reader gone', 'terminal closed', 'disk full'])
def test_long_work_outlives_what_reads_it(tmp_path, sink):
    """And everything else that breaks is still a failure."""
    code = f"""
import sys, warnings
from absl import logging
from launch import entry, host
def main():
    host.ignore_broken_pipes()
    sys.stdin.readline()
    for number in range(3000):
        print('a line of several words', flush=number % 2)
        print('a line of several words', file=sys.stderr)
        logging.error('a line of several words')
    warnings.warn('a line of several words')
    open('{tmp_path}/done', 'x')
    raise BrokenPipeError
entry.run(main)
"""
    end, ours = os.openpty() if sink == 'terminal closed' else os.pipe()
    if sink == 'disk full':
        ours = os.open('/dev/full', os.O_WRONLY)
    process = subprocess.Popen(
        [sys.executable, '-c', code], cwd=tiny.ROOT, stdin=subprocess.PIPE, stdout=ours, stderr=ours
    )
    os.close(ours)
    os.close(end)
    process.communicate(b'go\n', timeout=60)
    assert (tmp_path / 'done').exists() and process.returncode == entry.BUG


def test_short_work_ends_quietly_once_nobody_reads_it():
    code = 'from launch import entry\nentry.run(lambda: [print(number) for number in range(100_000)] and 1)'
    done = subprocess.run(
        ['bash', '-o', 'pipefail', '-c', f"'{sys.executable}' -c '{code}' | head -1"],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (entry.OK, '0\n', '')


def test_a_bug_shows_its_traceback():
    done = outcome('1 / 0')
    assert done.returncode == entry.BUG and 'ZeroDivisionError' in done.stderr


def test_sizes_are_height_and_width():
    assert entry.parse_size('size', '512x1024') == (512, 1024)
    for text in ('', '512', '512x', '0x16', '16x0', 'axb', '-16x16', '16x16x3', '16X16'):
        with pytest.raises(entry.UserError, match=f'--tile={text}: expected HEIGHTxWIDTH') as raised:
            entry.parse_size('tile', text)
        assert raised.value.status == entry.BAD_USAGE


PACKAGES = ('unet', 'data_prep', 'launch')
COMMANDS = [
    f'{package}.{path.stem}'
    for package in PACKAGES
    for path in sorted((tiny.ROOT / package).glob('*.py'))
    if path.name != 'entry.py' and 'entry.run(main' in path.read_text()
]
# Prints, for each command, the flags that it and the modules of this project that it imports define, and its help.
HELP = f"""
import contextlib, io, json, os, runpy, sys
from absl import flags
for command in sys.argv[1:]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    sys.argv, text = [command, '--help'], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        runpy.run_module(command, run_name='__main__', alter_sys=True)
    ours = [
        flag.name for module, defined in flags.FLAGS.flags_by_module_dict().items() for flag in defined
        if module.partition('.')[0] in {PACKAGES} or module.endswith('.py')
    ]
    print(json.dumps([command, ours, text.getvalue()]), flush=True)
    os._exit(0)
"""


def test_help_lists_all_flags_of_a_command_and_no_others():
    done = subprocess.run([sys.executable, '-c', HELP, *COMMANDS], cwd=tiny.ROOT, capture_output=True, text=True)
    seen = []
    for command, defined, text in map(json.loads, done.stdout.splitlines()):
        seen.append(command)
        listed = re.findall(r'^  (?:-\w,)?--(?:\[no\])?(\w+):', text, re.MULTILINE)
        assert sorted(listed) == sorted(defined), command
    assert seen == COMMANDS and len(seen) >= 14, done.stderr
