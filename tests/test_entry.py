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
        ('raise entry.Failure(65, "shard 3 is damaged")', 65, 'shard 3 is damaged'),
        ('raise OSError(errno.ENOSPC, "No space left on device", "/data/x")', entry.NO_STORAGE, '/data/x'),
        ('raise KeyboardInterrupt', entry.STOPPED, 'stopped'),
    ],
)
def test_an_outcome_is_one_line_and_a_status(body, status, text):
    done = outcome(body)
    assert done.returncode == status
    assert text in done.stderr and 'Traceback' not in done.stderr and len(done.stderr.splitlines()) == bool(text)


def test_a_bug_shows_its_traceback():
    done = outcome('1 / 0')
    assert done.returncode == entry.BUG and 'ZeroDivisionError' in done.stderr
