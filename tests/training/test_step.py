import json

import numpy as np
import pytest

from tests import tiny


@pytest.mark.parametrize('jit_compile', ['off', 'on'])
def test_microbatches_take_turns(jit_compile):
    """Eight parts take much less memory than the whole batch, compiled or not, by the count of TensorFlow's
    allocator."""
    code = f"""
from tests import allocator
import tensorflow as tf
from benchmarks import bare
from configs import default
config = default.get_config()
config.global_batch, config.model.width, config.model.depth, config.data.crop = 16, 4, 3, (128, 128)
config.runtime.jit_compile = {jit_compile!r}
for config.runtime.microbatches in (8, 1):
    step, batch = bare.step_and_batch(config)
    step(batch, tf.constant(0.0))
    before = allocator.current()
    allocator.forget_peak()
    step(batch, tf.constant(0.0)).numpy()
    print(allocator.peak() - before)
"""
    done = tiny.run_code(code)
    assert done.returncode == 0, done.stderr
    parts, whole = map(int, done.stdout.split())
    assert parts < 0.25 * whole  # 0.14 and 0.15; parts side by side 0.31 and more


def test_what_xla_compiles_changes_nothing_that_is_learnt():
    """Two devices without sums within forward and backward pass: nothing compiled, the pieces between convolutions as
    on CPUs, and all of it as on GPUs."""
    code = """
import json
from unittest import mock
from configs import default
from data_prep import labels
from unet.diagnostics import selfcheck
from unet.distributed import cluster
from unet.models import build as model_build
strategy, found = cluster.make_strategy(2), {}
for jit in ('off', 'pieces', 'whole'):
    config = default.get_config()
    config.model.depth, config.model.stem, config.model.up, config.model.norm = 3, 2, 'resize', 'group'
    config = selfcheck.small(config, replicas=2)
    config.precision, config.runtime.jit_compile = 'float64', 'off' if jit == 'off' else 'auto'
    with mock.patch.object(model_build, 'jit', return_value=jit):
        training = selfcheck.Training(config, labels.CITYSCAPES, strategy)
        for step in range(2):
            training.take_step(step)
    found[jit] = [v.value.numpy().ravel().tolist() for v in training.contents.model.trainable_variables]
print(json.dumps(found))
"""
    done = tiny.run_code(code)
    assert done.returncode == 0, done.stderr
    off, pieces, whole = (np.concatenate(values) for values in json.loads(done.stdout).values())
    np.testing.assert_allclose(pieces, off, rtol=0, atol=1e-9)
    np.testing.assert_allclose(whole, off, rtol=0, atol=1e-9)


def test_norm_over_each_device():
    """Each device normalises by its own half of the batch, whose running statistics are the mean of both devices'."""
    code = """
import json
import numpy as np
from configs import default
from data_prep import labels
from unet.diagnostics import selfcheck
from unet.distributed import cluster
strategy, found = cluster.make_strategy(2), {}
for over in ('global_batch', 'device'):
    config = default.get_config()
    config.model.depth = 3
    config = selfcheck.small(config, replicas=2)
    config.precision, config.model.norm_over, config.model.norm_momentum = 'float64', over, 0.0
    training = selfcheck.Training(config, labels.CITYSCAPES, strategy)
    training.take_step(0)
    statistics = [v.value.numpy().tolist() for v in training.contents.model.non_trainable_variables]
    found[over] = {'statistics': statistics, 'spread': training.spread()}
print(json.dumps(found))
"""
    done = tiny.run_code(code)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['device']['spread'] == found['global_batch']['spread'] == 0
    (mean, variance, *_, last), (own_mean, own_variance, *_, own_last) = (side['statistics'] for side in found.values())
    np.testing.assert_allclose(own_mean, mean, rtol=1e-9)  # of the first layer, which sees the images
    assert (np.array(own_variance) <= np.array(variance) + 1e-12).all() and not np.allclose(own_variance, variance)
    assert not np.allclose(own_last, last)


def test_launches_and_traffic():
    """What a replica computes between the sums is few launches, and normalisation holds no intermediates."""
    code = """
import json
from benchmarks import launches
from configs import default
config = default.get_config()
config.runtime.virtual_devices, config.global_batch, config.data.crop = 2, 2, (64, 64)
config.model.width, config.model.depth = 4, 3
counts = {}
for config.model.norm_over in ('global_batch', 'device'):
    counts[config.model.norm_over] = sum(launches.launches(config).values())
print(json.dumps([counts, launches.norm_bytes()]))
"""
    done = tiny.run_code(code)
    assert done.returncode == 0, done.stderr
    counts, norm_bytes = json.loads(done.stdout)
    assert counts['global_batch'] <= 300 and counts['device'] <= 60, counts
    assert sum(norm_bytes.values()) <= 20, norm_bytes  # per element in bfloat16
