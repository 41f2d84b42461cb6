import sys

from tests import tiny


def test_workers_keep_to_their_cores():
    """In a process of its own, since each program has its own flags."""
    code = """
from launch import local
print(local.core_shares(2, 0), local.core_shares(1, 1))
local.core_shares(4096, 1)
"""
    done = tiny.run([sys.executable, '-c', code])
    assert done.stdout.startswith('[set(), set()] [{') and '4096 workers need 4096 cores' in done.stderr
