"""Measures our loading beside the blog post's and beside a straightforward pipeline, on the same frames.

    python -m benchmarks.loading --source=/data/cityscapes --output=loading.json

Copies of a few frames of --source, or of two synthetic 2048x1024 ones, are the data; they stay in the page cache. No
side has a model: its batches are counted. Each side is a process of its own that may use --cores cores and lives
through all rounds; in each round the sides are run in turn, so that whatever else the machine does meets all of them,
and each makes so many batches from the first request to the last one: nothing is left over and nothing was made before.

    blog       2021 blog post's loading, as in its first epoch: PNG pair decoded, resized to 280x280, crop 256x256
    ours 280   configs/cityscapes_256.py, from records built with --size=280x280
    plain      random-scale crop of 512x1024 as it is commonly written: PNG pair decoded, resized, padded, cropped
    ours png   configs/cityscapes_unet.py, from records of the source's own PNG files
    ours jpeg  the same from records built with --image_format=jpeg

`limit` is the same example's decode alone, in a bare loop on one core: the bytes that the crop needs, and nothing done
with them; `share` compares images per CPU second with it. Then the time to the first batch is taken at the start and at
the end of an epoch of 3000 examples.
"""

import collections
import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from absl import flags

from benchmarks import frames
from launch import entry, host

_SOURCE = flags.DEFINE_string('source', None, 'Dataset whose first frames are copied; default two synthetic frames.')
_ROUNDS = flags.DEFINE_integer('rounds', 4, 'Times that each side is measured.', lower_bound=1)
_SECONDS = flags.DEFINE_float('seconds', 3.0, 'For which a side is run per round, about.', lower_bound=0.1)
_CORES = flags.DEFINE_list('cores', None, 'Numbers of cores to measure on; default one, and all of them.')
_SCRATCH = flags.DEFINE_string('scratch', None, 'Folder for copies and records; default the temporary folder.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

_IMAGES = 24  # copies, ten twelfths of which are training data
_EPOCH = 3000  # examples, of the epoch at whose end a run goes on
# Side -> the flags that its records are built with (None: it reads the files), its config, and whom to compare it with.
_SIDES = {
    'blog': (None, 'cityscapes_256', None),
    'ours 280': (['--size=280x280'], 'cityscapes_256', 'blog'),
    'plain': (None, 'cityscapes', None),
    'ours png': ([], 'cityscapes', 'plain'),
    'ours jpeg': (['--image_format=jpeg'], 'cityscapes', 'plain'),
}


def main() -> None:
    there = sorted(os.sched_getaffinity(0))
    counts = [int(count) for count in _CORES.value] if _CORES.value else sorted({1, len(there)})
    if not all(1 <= count <= len(there) for count in counts):
        raise entry.UserError(entry.BAD_USAGE, f'--cores={",".join(_CORES.value)}: this process may use {len(there)}')
    sides = {side: {'records': flags, 'config': config} for side, (flags, config, _) in _SIDES.items()}
    result = {'source': _SOURCE.value or 'two synthetic frames of 2048x1024', 'sides': sides, 'cores': {}}
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as scratch:
        scratch = pathlib.Path(scratch)
        source = frames.copy(_SOURCE.value, scratch / 'source', _IMAGES)
        folders = {}
        for side, (options, _, _) in _SIDES.items():
            folders[side] = (
                source if options is None else frames.build(source, scratch / side.replace(' ', '-'), options)
            )
        for count in counts:
            result['cores'][count] = measure(folders, set(there[:count]), _ROUNDS.value, _SECONDS.value)
            print_table(result['cores'][count], count)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(result, indent=1) + '\n')


def measure(folders: dict[str, pathlib.Path], cores: set[int], rounds: int, seconds: float) -> dict:
    """Side -> images per second and per CPU second in every round, the limit, seconds to a first batch, peak bytes."""
    spawn = multiprocessing.get_context('spawn')
    children = {}
    for side, folder in folders.items():
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(side, folder, cores, seconds, theirs), daemon=True)
        process.start()
        theirs.close()
        children[side] = (process, ours)

    def ask(side: str, question: str) -> object:
        process, connection = children[side]
        connection.send(question)
        try:
            return connection.recv()
        except EOFError:
            process.join()
            raise entry.UserError(entry.BUG, f'{side}: its process ended with status {process.exitcode}') from None

    rates = collections.defaultdict(list)
    for side in children:
        ask(side, 'warm up')
    for _ in range(rounds):
        for side in children:
            rates[side].append(ask(side, 'run'))
    result = {}
    for side in children:
        wall, cpu = zip(*rates[side], strict=True)
        result[side] = {'images_per_second': wall, 'images_per_cpu_second': cpu}
    for side in children:
        if _SIDES[side][0] is not None:
            result[side]['limit'] = ask(side, 'limit')
            result[side]['first_batch'] = ask(side, 'first batch')
        result[side]['peak_bytes'] = ask(side, 'memory')
    for process, connection in children.values():
        connection.send('end')
        process.join()
    return result


def print_table(sides: dict[str, dict], cores: int) -> None:
    """Medians of all rounds, and of the rounds' ratios: what else went on is then alike for both."""
    print(f'\n{cores} core{"s" if cores > 1 else ""}, images/s, median of the rounds (lowest to highest)')
    print(
        f'{"":<10}{"per second":<23}{"times":<23}{"per CPU second":<23}{"times":<20}{"limit":>6}{"share":>7}{"MB":>6}'
    )
    for side, figures in sides.items():
        line = f'{side:<10}'
        for kind in ('images_per_second', 'images_per_cpu_second'):
            line += f'{_with_spread(figures[kind]):<23}'
            ratios = []
            if other := _SIDES[side][2]:
                ratios = [ours / theirs for ours, theirs in zip(figures[kind], sides[other][kind], strict=True)]
                figures[f'ratios_{kind}'] = ratios
            line += f'{_with_spread(ratios) if ratios else "":<{20 + 3 * (kind == "images_per_second")}}'
        if 'limit' in figures:
            share = statistics.median(figures['images_per_cpu_second']) / figures['limit']
            line += f'{figures["limit"]:6.0f}{share:7.0%}'
        else:
            line += ' ' * 13
        print(f'{line}{figures["peak_bytes"] / 1e6:6.0f}')
    for side, figures in sides.items():
        if 'first_batch' in figures:
            start, end = figures['first_batch']
            print(f'{side:<11}first batch of an epoch of {_EPOCH} after {start:.2f} s, last one after {end:.2f} s')
    sys.stdout.flush()


def _with_spread(values: list[float]) -> str:
    return f'{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})'


def serve(side: str, folder: pathlib.Path, cores: set[int], seconds: float, connection: Connection) -> None:
    """A side's process: answers questions until it is told to end."""
    os.sched_setaffinity(0, cores)  # before TensorFlow counts them
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    with host.quiet_import():
        import tensorflow  # noqa: F401
    batch, dataset_of = pipeline(side, folder)
    batches = 2

    def run(count: int) -> tuple[float, float]:
        dataset = dataset_of(count)
        wall, cpu = time.monotonic(), time.process_time()
        made = sum(1 for _ in dataset)
        if made != count:
            raise ValueError(f'{made} batches instead of {count}')
        return count * batch / (time.monotonic() - wall), count * batch / (time.process_time() - cpu)

    while (question := connection.recv()) != 'end':
        if question == 'warm up':
            run(1)
            answer = run(batches)
            batches = max(batches, round(answer[0] * seconds / batch))
        elif question == 'run':
            answer = run(batches)
        elif question == 'limit':
            answer = decode_rate(folder, side, seconds / 2)
        elif question == 'first batch':
            answer = first_batch_seconds(folder, side)
        else:
            answer = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.send(answer)


def pipeline(side: str, folder: pathlib.Path) -> tuple[int, Callable]:
    """Images per batch, and: number of batches -> the dataset."""
    if side == 'blog':
        return 32, functools.partial(blog_dataset, folder, 32)
    if side == 'plain':
        return 4, functools.partial(plain_dataset, folder, 4)
    return our_batch(side), functools.partial(our_dataset, folder, side)


def our_batch(side: str) -> int:
    return 32 if _SIDES[side][1] == 'cityscapes_256' else 4


def our_config(side: str):
    config = importlib.import_module(f'configs.{_SIDES[side][1]}').get_config()
    config.data.cache = 'none'  # every image is decoded each time
    return config


def our_dataset(folder: pathlib.Path, side: str, last: int, first: int = 0, examples: int | None = None):
    """Batches as one replica of unet.main gets them, decoding each time; a split of `examples` if that is given."""
    import numpy as np

    from data_prep import records
    from unet.data import build as data_build
    from unet.data import input_pipeline

    split = records.read_split(folder, 'train')
    if examples:
        rows = np.arange(examples) % len(split)
        arrays = {
            name: getattr(split, name)[rows] for name in ('shard', 'offset', 'length', 'height', 'width', 'labelled')
        }
        split = dataclasses.replace(split, image_ids=tuple(f'{row}' for row in range(examples)), **arrays)
    batch = our_batch(side)
    return data_build.make_train_batches(
        our_config(side),
        input_pipeline.Reader(split),
        lambda number: input_pipeline.replica_positions(number, batch, 1, 0),
        first=first,
        last=last,
    )


def decode_rate(folder: pathlib.Path, side: str, seconds: float) -> float:
    """Images per second of the bare decode of what crops need, from memory, one after the other."""
    import numpy as np

    from data_prep import records
    from unet.data import build as data_build
    from unet.data import input_pipeline

    reader = input_pipeline.Reader(records.read_split(folder, 'train'))
    sampler = data_build.make_sampler(our_config(side), reader.split)
    encoded = [reader.read(example) for example in range(len(reader.split))]
    random = np.random.default_rng(0)
    ended = time.thread_time() + seconds
    count = 0
    while time.thread_time() < ended:
        example, window = next(sampler.candidates(count, random.random(3)))
        reader.decode_image(example, encoded[example][0], window)
        reader.decode_label(example, encoded[example][1], window)
        count += 1
    return count / seconds


def first_batch_seconds(folder: pathlib.Path, side: str) -> tuple[float, float]:
    """From making the pipeline to its first batch, at the start and in the last step of an epoch; medians of five."""
    last = _EPOCH // our_batch(side) - 1
    seconds = {0: [], last: []}
    for _ in range(5):
        for first, values in seconds.items():
            started = time.monotonic()
            iterator = iter(our_dataset(folder, side, last + 1, first=first, examples=_EPOCH))
            next(iterator)
            values.append(time.monotonic() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[last])


def _paths(folder: pathlib.Path, images: int):
    """A dataset of that many file names of images and of their labels."""
    import tensorflow as tf

    pictures = sorted((folder / 'leftImg8bit/train').rglob('*.png'))
    labels = [str(path).replace('leftImg8bit', 'gtFine', 1) for path in pictures]
    labels = [path.replace('_leftImg8bit', '_gtFine_labelIds') for path in labels]
    pairs = [(str(pictures[number % len(pictures)]), labels[number % len(labels)]) for number in range(images)]
    return tf.data.Dataset.from_tensor_slices([[*pair] for pair in pairs])


def blog_dataset(folder: pathlib.Path, batch: int, batches: int):
    """The post's loading, as its first epoch does it."""
    import tensorflow as tf

    def load(pair):
        image = tf.io.decode_png(tf.io.read_file(pair[0]), channels=3)
        label = tf.io.decode_png(tf.io.read_file(pair[1]), channels=1)
        image = tf.image.resize(image, (280, 280), 'nearest')
        label = tf.image.resize(label, (280, 280), 'nearest')
        both = tf.image.random_crop(tf.concat([image, label], 2), (256, 256, 4))
        both = tf.cond(tf.random.uniform(()) > 0.5, lambda: tf.image.flip_left_right(both), lambda: both)
        return tf.cast(both[..., :3], tf.float32) / 127.5 - 1, tf.cast(both[..., 3:], tf.int32)

    dataset = _paths(folder, batch * batches).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch).prefetch(tf.data.AUTOTUNE)


def plain_dataset(folder: pathlib.Path, batch: int, batches: int):
    """Random-scale crops of 512x1024 in plain TensorFlow."""
    import tensorflow as tf

    crop = (512, 1024)

    def load(pair):
        image = tf.io.decode_png(tf.io.read_file(pair[0]), channels=3)
        label = tf.io.decode_png(tf.io.read_file(pair[1]), channels=1)
        scale = tf.random.uniform((), 0.5, 2.0)
        size = tf.cast(tf.round(tf.cast(tf.shape(image)[:2], tf.float32) * scale), tf.int32)
        image, label = tf.image.resize(image, size), tf.image.resize(label, size, 'nearest')
        more = tf.maximum(tf.constant(crop) - size, 0)
        borders = [[0, more[0]], [0, more[1]], [0, 0]]
        image, label = tf.pad(image, borders, constant_values=127), tf.pad(label, borders, constant_values=255)
        first = [tf.random.uniform((), 0, tf.shape(image)[axis] - crop[axis] + 1, tf.int32) for axis in (0, 1)]
        image, label = (part[first[0] : first[0] + crop[0], first[1] : first[1] + crop[1]] for part in (image, label))
        image, label = tf.cond(
            tf.random.uniform(()) > 0.5, lambda: (image[:, ::-1], label[:, ::-1]), lambda: (image, label)
        )
        return tf.cast(image, tf.uint8), label

    dataset = _paths(folder, batch * batches).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch).prefetch(tf.data.AUTOTUNE)


if __name__ == '__main__':
    entry.run(main)
