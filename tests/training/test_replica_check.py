"""A bit that flips in one replica's weight ends the run, with the replica's name and before a checkpoint holds it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from launch import entry
from tests import tiny
from unet.training import checkpoint, replica_check


def test_a_digest_depends_on_every_bit_and_its_place():
    values = np.random.default_rng(0).standard_normal([3, 5]).astype(np.float32)
    counts = np.arange(4, dtype=np.int64)

    def digest(values, counts=counts):
        return int(replica_check.digest([tf.Variable(values), tf.Variable(counts)]).numpy())

    found = {digest(values), digest(values.T.copy()), digest(-values), digest(values, counts + 2**40)}
    for place in range(values.size):
        for bit in (0, 23, 31):
            changed = values.copy()
            changed.reshape(-1).view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
            found.add(digest(changed))
    assert len(found) == 4 + 3 * values.size
    assert digest(values) == digest(values.copy())
    assert digest(np.zeros([2], np.float64)) != digest(np.array([0.0, -0.0]))


def test_the_replica_that_most_others_differ_from_is_named():
    assert replica_check.differing_replicas(np.array([5, 5, 5])) == []
    assert replica_check.differing_replicas(np.array([7, 5, 5])) == [0]
    assert replica_check.differing_replicas(np.array([5, 7])) == [1]
    assert replica_check.differing_replicas(np.array([5, 7, 5, 8, 5])) == [1, 3]


@pytest.mark.parametrize('workers', [1, 2])
def test_a_flipped_bit_ends_the_run_before_the_next_checkpoint(tmp_path, workers):
    data_dir = tiny.write_folder(tmp_path / 'records', train=tiny.scenes(6), validation=tiny.scenes(2, seed=1))
    fields = {'runtime.virtual_devices': 2} if workers == 1 else {}
    _, _, _, *arguments = tiny.train_command(tmp_path / 'run', data_dir, eval__every_steps=12, **fields)
    command = [sys.executable, '-m', 'tests.faulty_replica', *arguments]
    if workers == 2:
        launcher = [sys.executable, '-m', 'launch.local', '--workers=2', '--module=tests.faulty_replica', '--']
        command = [*launcher, *arguments]
    environ = os.environ | {'FLIP_AFTER': '4', 'FLIP_RANK': str(workers - 1)}
    done = subprocess.run(command, cwd=tiny.ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == entry.PEER_LOST, done.stdout + done.stderr
    name = 'replica 1 (CPU:1)' if workers == 1 else 'replica 1 (rank 1 ('
    assert f'after step 6 the weights of {name}' in done.stdout + done.stderr, done.stdout + done.stderr
    assert checkpoint.list_newest_first(tmp_path / 'run/checkpoints') == [3]
