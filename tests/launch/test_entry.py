import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from launch import entry, files
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
        ('bytearray(1 << 62)', entry.BAD_CONFIG, 'out of memory'),
        ('import numpy; numpy.zeros(1 << 58)', entry.BAD_CONFIG, 'Unable to allocate'),
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


def write(path: pathlib.Path) -> None:
    files.write_atomically(path, 'content')


@pytest.mark.parametrize(
    'call, name, status',
    [
        (write, 'none/file', entry.MISSING_INPUT),
        (pathlib.Path.read_bytes, 'none', entry.MISSING_INPUT),
        (pathlib.Path.mkdir, 'file/below', entry.BAD_USAGE),
        (os.makedirs, 'file', entry.BAD_USAGE),
        (write, 'folder', entry.BAD_USAGE),
        (pathlib.Path.read_bytes, 'folder', entry.BAD_USAGE),
        (os.makedirs, 'n' * 300, entry.BAD_USAGE),
        (write, 'loop/file', entry.BAD_USAGE),
        (pathlib.Path.write_bytes, '/proc/self/none', entry.MISSING_INPUT),
    ],
)
def test_what_the_system_refuses_names_the_path_and_a_remedy(tmp_path, call, name, status):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'loop').symlink_to('loop')
    arguments = (b'',) if call is pathlib.Path.write_bytes else ()
    with pytest.raises(OSError) as raised:
        call(tmp_path / name, *arguments)
    found = entry.as_user_error(raised.value)
    assert found is not None and found.status == status
    assert str(tmp_path / name) in str(found) and len(str(found).split('. ')) > 1 and '\n' not in str(found)
    assert {path.name for path in tmp_path.iterdir()} == {'file', 'folder', 'loop'}  # nothing half written


@pytest.mark.parametrize('length, status', [(100, entry.OK), (20_000, entry.NO_STORAGE)])
def test_a_file_that_may_not_grow_is_named_and_leaves_nothing_behind(tmp_path, length, status):
    done = outcome(
        f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); from launch import files; '
        f'files.write_atomically("{tmp_path}/file", "x" * {length})'
    )
    assert done.returncode == status, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['file'] * (not status)
    assert not status or (f'{tmp_path}/file: ' in done.stderr and 'ulimit -f' in done.stderr)


def test_without_a_temporary_folder_the_remedy_is_named():
    done = outcome('import tempfile; tempfile._candidate_tempdir_list = lambda: ["/none"]; tempfile.mkdtemp()')
    assert done.returncode == entry.MISSING_INPUT and 'Set TMPDIR' in done.stderr, done.stderr


def test_errors_of_libraries_and_of_connections_are_bugs():
    for error in (OSError('cannot identify image'), BrokenPipeError(errno.EPIPE, 'Broken pipe'), KeyError('x')):
        assert entry.as_user_error(error) is None


def test_what_tensorflow_passes_on_is_told_like_what_it_came_from(tmp_path):
    import tensorflow as tf

    (tmp_path / 'file').write_text('')
    for call, path, status in (
        (lambda: tf.io.read_file(f'{tmp_path}/none'), 'none', entry.MISSING_INPUT),
        (lambda: tf.io.read_file(str(tmp_path)), '', entry.BAD_USAGE),
        (lambda: tf.train.Checkpoint(x=tf.Variable(1)).write(f'{tmp_path}/file/x'), 'file', entry.BAD_USAGE),
        (lambda: list(tf.data.TFRecordDataset(f'{tmp_path}/none')), 'none', entry.MISSING_INPUT),
    ):
        with pytest.raises(tf.errors.OpError) as raised:
            call()
        found = entry.as_user_error(raised.value)
        assert found is not None and found.status == status
        assert str(found).startswith(f'{tmp_path / path}: ')
    with pytest.raises(tf.errors.OpError) as raised:
        tf.reshape(tf.zeros([3]), [2])
    assert entry.as_user_error(raised.value) is None


@pytest.mark.parametrize('flag', ['--help', '--seed=1'])
def test_output_that_finds_no_room_is_one_line(flag):
    code = 'from absl import flags\nfrom launch import entry\nflags.DEFINE_integer("seed", 0, "")\n'
    code += 'entry.run(lambda: print("a line"))'
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            [sys.executable, '-c', code, flag],
            cwd=tiny.ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == entry.NO_STORAGE and len(done.stderr.splitlines()) == 1, done.stderr
    assert 'No space left on device' in done.stderr


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_a_closed_stream_is_no_place_for_the_next_file(tmp_path, closed):
    code = f"""
from launch import entry, host
def main():
    file = open("{tmp_path}/file", "w")
    host.ignore_broken_pipes()
    print("a line", flush=True)
    with host.quiet_import():
        entry.log_error("another")
    file.close()
entry.run(main)
"""
    done = subprocess.run(['bash', '-c', f'"$0" -c "$1" {closed}', sys.executable, code], cwd=tiny.ROOT, timeout=60)
    assert done.returncode == entry.OK
    assert (tmp_path / 'file').read_text() == ''


@pytest.mark.parametrize('encoding, shown', [('ascii', r'\u8def \xe9'), ('latin-1', '\\u8def é'), ('utf-8', '路 é')])
def test_what_a_terminal_cannot_show_is_escaped(encoding, shown):
    code = (
        'from launch import entry\ndef main():\n  print("路 é")\n  raise entry.UserError(65, "路 é")\nentry.run(main)'
    )
    environ = os.environ | {'PYTHONIOENCODING': encoding}
    done = subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, env=environ, capture_output=True, timeout=60)
    assert done.returncode == 65
    assert shown in done.stdout.decode(encoding) and shown in done.stderr.decode(encoding)


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
