"""What is measured is what it is said to be: memory of a part alone, and images of an evaluation without end."""

import numpy as np

from data_prep import records
from tests import tiny
from unet.data import input_pipeline
from unet.diagnostics import parts


def test_parts_leave_no_memory_behind(tmp_path):
    """Predicting takes neither the memory of a step's activations nor that of the slots of training, by the count of
    TensorFlow's allocator. What the process itself had in use for a part does not count for the next."""
    data_dir = tiny.write_folder(tmp_path, train=tiny.scenes(6), validation=tiny.scenes(2, seed=1))
    code = """
import sys
from tests import allocator
import numpy as np
from configs import default
from unet.diagnostics import throughput
config = default.get_config()
config.global_batch, config.data.crop, config.model.width, config.model.depth = 8, (64, 64), 32, 4
config.runtime.jit_compile = 'off'
def note(part=None, figures=None):
    print(allocator.peak(), allocator.current())
    allocator.forget_peak()
throughput.measure(config, sys.argv[1], parts=['step', 'predict'], seconds=0.1, on_progress=note)
np.ones(2**26)
before = throughput.peak_memory()
throughput._forget_peak_memory()
print(before - throughput.peak_memory())
"""
    done = tiny.run_code(code, str(data_dir))
    assert done.returncode == 0, done.stderr
    step, predict, process = ([int(number) for number in line.split()] for line in done.stdout.splitlines())
    assert predict[0] < step[0] / 2 and predict[1] < step[1] / 2
    assert process[0] > 2**28  # of the array's 2**29 bytes


def test_an_evaluation_never_runs_out_of_images(tmp_path):
    """Of three images of two sizes: every batch of every replica is full, pass after pass."""
    pairs = [*tiny.scenes(2), *tiny.scenes(1, (24, 32))]
    folder = tiny.write_folder(tmp_path / 'records', train=pairs, validation=pairs)
    split = records.read_split(folder, 'validation')
    rounds = input_pipeline.eval_batches(parts.full_rounds(split, 2 * 4), 2, 4)
    assert rounds.min() == 0 and np.bincount(np.bincount(rounds.ravel())).nonzero()[0].tolist() == [1]
    code = """
from configs import default
from unet.diagnostics import parts, throughput
from unet.evaluation import metrics
import sys
config = default.get_config()
config.model.width, config.model.depth, config.eval.batch = 4, 3, 2
parts._EVALUATED, counted, count = 1, [], metrics.count_pairs
metrics.count_pairs = lambda *pair: counted.append(1) or count(*pair)
throughput.measure(config, sys.argv[1], parts=['evaluate'], seconds=1.0)
print(len(counted))
"""
    done = tiny.run_code(code, str(folder))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 6 and int(done.stdout) % 2 == 0  # a pass has 6: each image twice
