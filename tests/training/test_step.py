import sys

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
    done = tiny.run([sys.executable, '-c', code])
    assert done.returncode == 0, done.stderr
    parts, whole = map(int, done.stdout.split())
    assert parts < 0.25 * whole  # 0.14 and 0.15; parts side by side 0.31 and more
