"""Measures the converter beside TFDS's own cityscapes builder and a plain copy, on the same files.

    python -m benchmarks.converter --source=/data/cityscapes --images=240 --rounds=5
    python -m benchmarks.converter --memory=50,500

Copies of a few frames of --source, or of two synthetic ones, become a dataset of --images. Then the programs are run in
turn, so that whatever else the machine does meets all of them: the whole command is timed, its CPU seconds (user and
system, of all its processes) are counted, and the building alone is timed without start and imports. TFDS finds its zip
files extracted already. It checks neither files nor ids, writes no digests and does not wait for the disk; nor does cp.

--memory prints instead the largest sum of the memory of all the converter's processes for so many images.
"""

import ctypes
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

from absl import flags

from benchmarks import frames
from launch import entry, host

_SOURCE = flags.DEFINE_string('source', None, 'Dataset whose first frames are copied; default two synthetic frames.')
_IMAGES = flags.DEFINE_integer('images', 240, 'Images to convert.', lower_bound=12)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Times that each program is run.', lower_bound=1)
_MEMORY = flags.DEFINE_list('memory', [], 'Numbers of images to measure the peak memory for, and nothing else.')
_SCRATCH = flags.DEFINE_string('scratch', None, 'Folder for copies and records; default the temporary folder.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

_SET_CHILD_SUBREAPER = 36  # prctl: processes that outlive their parents become ours
_TFDS = """
import sys, time
import tensorflow_datasets as tfds
records, manual, download = sys.argv[1:]
builder = tfds.builder('cityscapes/semantic_segmentation', data_dir=records)
started = time.monotonic()
config = tfds.download.DownloadConfig(manual_dir=manual)
builder.download_and_prepare(download_dir=download, download_config=config)
print(f'in {time.monotonic() - started:.3f} s')
"""


def main() -> None:
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as scratch:
        scratch = pathlib.Path(scratch)
        if _MEMORY.value:
            figures = {'peak_bytes': {count: peak_memory(scratch, int(count)) for count in _MEMORY.value}}
            for count, peak in figures['peak_bytes'].items():
                print(f'{count:>6} images: {peak / 1e6:,.0f} MB in all processes together')
        else:
            figures = compare(scratch, _IMAGES.value, _ROUNDS.value)
    figures['source'] = _SOURCE.value or 'two synthetic frames of 2048x1024'
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def compare(scratch: pathlib.Path, images: int, rounds: int) -> dict:
    """Program -> its wall, CPU and building seconds, one of each per round; prints them as a table."""
    source = frames.copy(_SOURCE.value, scratch / 'source', images)
    zip_files(source, scratch / 'zips')
    out = scratch / 'out'
    commands = {
        'tfds': [sys.executable, '-c', _TFDS, out, scratch / 'zips', scratch / 'downloads'],
        'ours': build_command(source, out),
        'cp': ['cp', '-r', source, out],
    }
    run(commands['tfds'], out)  # extracts the zip files
    figures = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            figures[name].append(run(command, out))
            wall, cpu, building = figures[name][-1]
            print(
                f'round {number + 1} {name:<5}{wall:8.2f} s wall {cpu:8.2f} s CPU {building:8.2f} s building',
                flush=True,
            )
    return print_ratios(figures, images)


def print_ratios(figures: dict[str, list[tuple[float, float, float]]], images: int) -> dict:
    """Medians of all rounds, and of the rounds' ratios: what else went on is then alike for both."""
    result = {'images': images, 'cores': host.cores()}
    print(f'\n{images} images, {host.cores()} cores, medians of {len(figures["tfds"])} rounds, images/s')
    print(f'{"":<24}{"TFDS":>9}{"ours":>9}{"cp":>9}{"ours / TFDS":>14}{"lowest":>9}{"highest":>9}')
    for column, quantity in enumerate(('wall', 'CPU', 'building')):
        rates = {name: images / statistics.median(row[column] for row in rows) for name, rows in figures.items()}
        ratios = [theirs[column] / ours[column] for theirs, ours in zip(figures['tfds'], figures['ours'], strict=True)]
        result[quantity] = rates | {'ratios': ratios}
        print(
            f'per second of {quantity:<10}'
            + ''.join(f'{rate:9.1f}' for rate in rates.values())
            + f'{statistics.median(ratios):14.1f}{min(ratios):9.1f}{max(ratios):9.1f}'
        )
    return result


def run(command: list, out: pathlib.Path) -> tuple[float, float, float]:
    """Seconds of a program that writes the folder `out`: wall, CPU, and of the building by its own account."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # nobody waits for what the last one wrote
    started = time.monotonic()
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
        log.seek(0)
        output = log.read()
    try:
        while True:
            usage = os.wait4(-1, 0)[2]
            cpu += usage.ru_utime + usage.ru_stime
    except ChildProcessError:
        pass  # no process of it is left
    if status:
        raise entry.UserError(entry.BUG, f'{command[0]} failed: {output[-2000:]}')
    told = re.search(r'in ([\d.]+) s', output)
    return wall, cpu, float(told[1]) if told else wall


def peak_memory(scratch: pathlib.Path, images: int) -> int:
    """Bytes that all processes of a build of so many images held at most at a time; what they share counts once."""
    source = frames.copy(_SOURCE.value, scratch / f'source-{images}', images)
    process = subprocess.Popen(
        build_command(source, scratch / f'out-{images}'), stdout=subprocess.DEVNULL, start_new_session=True
    )
    peak = 0
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set())).start()
    while not ended.wait(0.02):
        peak = max(
            peak, sum(_memory(path) for path in pathlib.Path('/proc').glob('[0-9]*') if _session(path) == process.pid)
        )
    if process.returncode:
        raise entry.UserError(entry.BUG, f'the build of {images} images failed')
    return peak


def _session(path: pathlib.Path) -> int:
    try:
        return int((path / 'stat').read_text().rpartition(')')[2].split()[3])
    except OSError:  # it has ended meanwhile
        return 0


def _memory(path: pathlib.Path) -> int:
    try:
        return 1024 * int(re.search(r'Pss: +(\d+) kB', (path / 'smaps_rollup').read_text())[1])
    except OSError:
        return 0


def build_command(source: pathlib.Path, out: pathlib.Path) -> list:
    program = [sys.executable, '-m', 'data_prep.build_tfrecords']
    return [*program, f'--cityscapes_dir={source}', f'--data_dir={out}']


def zip_files(source: pathlib.Path, folder: pathlib.Path) -> None:
    """The same files as TFDS expects them."""
    folder.mkdir()
    for kind in ('leftImg8bit', 'gtFine'):
        with zipfile.ZipFile(folder / f'{kind}_trainvaltest.zip', 'w') as archive:
            for path in sorted((source / kind).rglob('*.png')):
                archive.write(path, path.relative_to(source))


if __name__ == '__main__':
    entry.run(main)
