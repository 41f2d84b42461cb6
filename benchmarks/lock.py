"""Measures how long a training example holds Python's lock, which bounds what the threads of one process can load.

    python -m benchmarks.lock --config=configs/cityscapes_unet.py

What is done without the lock (reading, checksums, decoding, resizing, copying) is left to stand-ins that sleep about as
long. What remains of an example is Python, in which threads take turns: its CPU time is what it holds the lock for, and
what handing it over costs.
"""

import concurrent.futures
import contextlib
import functools
import json
import pathlib
import tempfile
import time
import types
from collections.abc import Callable
from unittest import mock

import numpy as np
from absl import flags

from benchmarks import frames
from data_prep import png, records, tfrecord
from launch import entry, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_SOURCE = flags.DEFINE_string('source', None, 'Dataset whose first frames are copied; default two synthetic frames.')
_THREADS = flags.DEFINE_integer('threads', 16, 'Threads that load at a time.', lower_bound=1)
_EXAMPLES = flags.DEFINE_integer('examples', 2000, 'Examples to load.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

_IMAGES = 24
_WARM = 48  # examples before the measurement: every record is known then
_SCRATCH = np.zeros(1 << 26, np.uint8)  # what stand-ins return lies in it


def main() -> None:
    config = config_flag.checked()
    with host.quiet_import():
        from unet.data import build, input_pipeline

    with tempfile.TemporaryDirectory() as scratch:
        source = frames.copy(_SOURCE.value, pathlib.Path(scratch, 'source'), _IMAGES)
        split = records.read_split(frames.build(source, pathlib.Path(scratch, 'records'), []), 'train')
        make_example = build.make_example_maker(config, input_pipeline.Reader(split))
        with sleeping():
            figures = measure(make_example, _THREADS.value, _EXAMPLES.value)
    print('{examples_per_second:.0f} examples/s, {milliseconds:.2f} ms of Python each'.format(**figures))
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def measure(make_example: Callable[[int], object], threads: int, examples: int) -> dict[str, float]:
    """Examples per second of several threads, and milliseconds of CPU time per example."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(make_example, range(_WARM)))
        started, used = time.perf_counter(), time.process_time()
        list(pool.map(make_example, range(_WARM, _WARM + examples)))
        seconds, used = time.perf_counter() - started, time.process_time() - used
    return {'examples_per_second': examples / seconds, 'milliseconds': 1000 * used / examples}


@contextlib.contextmanager
def sleeping():
    """Puts the stand-ins, with the milliseconds that the real ones take for a crop of 512x1024, in their places."""
    from unet.data import decoding

    with contextlib.ExitStack() as stack:
        for module, name, stand_in in (
            (png, '_png', types.SimpleNamespace(**vars(png._png) | {'read_window': lambda *_: time.sleep(0.008)})),
            (tfrecord, 'read_at', _remembered(tfrecord.read_at, 0.0003)),
            (tfrecord, 'masked_crc', _remembered(tfrecord.masked_crc, 0.0002)),
            (decoding, 'resize', lambda image, size, **_: _sleep(0.001, (*size, image.shape[2]))),
            (decoding, '_add_border', lambda pixels, _, window, __: _sleep(0.0005, (*window[2:], pixels.shape[2]))),
        ):
            stack.enter_context(mock.patch.object(module, name, stand_in))
        yield


def _sleep(seconds: float, shape: tuple[int, ...]) -> np.ndarray:
    time.sleep(seconds)
    return _SCRATCH[: int(np.prod(shape))].reshape(shape)


def _remembered(function: Callable, seconds: float) -> Callable:
    """The function, which after its first call with the same arguments sleeps so long and returns the same."""
    known = functools.lru_cache(None)(function)

    def stand_in(*arguments: object) -> object:
        time.sleep(seconds)
        return known(*arguments)

    return stand_in


if __name__ == '__main__':
    entry.run(main)
