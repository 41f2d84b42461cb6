"""Damaged image files are read as other readers read them or refused in a line, and nothing is read beyond its end."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import warnings

import pytest

from data_prep import png
from tests import read_mutations, tiny

_MOST_DEATHS = 5  # of the process that reads, before a campaign is given up


@pytest.fixture(scope='module')
def sanitized(tmp_path_factory) -> dict[str, str]:
    """What an environment needs for it, and the compiled part under AddressSanitizer and UBSan as `reader`."""
    compiler = shutil.which('gcc') or pytest.skip('needs gcc')
    found = subprocess.run([compiler, '-print-file-name=libasan.so'], capture_output=True, text=True).stdout.strip()
    include = sysconfig.get_path('include')
    if not os.path.isabs(found) or not pathlib.Path(include, 'Python.h').exists() or not png.is_compiled():
        pytest.skip("needs gcc's libasan, the headers of Python and ISA-L's functions")
    reader = tmp_path_factory.mktemp('sanitized') / '_png.so'
    flags = ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined', '-fno-omit-frame-pointer', '-g', '-O1']
    flags.append('-DROWS_AT_A_TIME=256')  # small images are read in several goes too
    source = tiny.ROOT / 'data_prep/_png.c'
    subprocess.run([compiler, '-shared', '-fPIC', *flags, f'-I{include}', source, '-o', reader], check=True)
    return {
        'reader': str(reader),
        'LD_PRELOAD': found,
        'ASAN_OPTIONS': 'detect_leaks=0:hard_rss_limit_mb=4096',  # Python leaves what is left to the system
        'UBSAN_OPTIONS': 'print_stacktrace=1',
        'PYTHONMALLOC': 'malloc',  # a file's bytes are a block of their own then, and what lies behind it is watched
    }


def campaign(files: int, folder: pathlib.Path, reader: str = '', **environ: str) -> tuple[collections.Counter, list]:
    """Reads that many files in processes of their own; what each reader did how often, and failures by file."""
    outcomes, failures, first, deaths = collections.Counter(), [], 0, 0
    at = folder / 'at'
    flags = [f'--reader={reader}', '--notensorflow'] if reader else []  # AddressSanitizer stops in TensorFlow itself
    while first < files and deaths < _MOST_DEATHS:
        command = [sys.executable, '-m', 'tests.read_mutations', f'--first={first}', f'--files={files - first}']
        done = subprocess.run(
            [*command, f'--at={at}', *flags], cwd=tiny.ROOT, env=os.environ | environ, capture_output=True, text=True
        )
        if done.returncode == 0:
            found = json.loads(done.stdout)
            return outcomes + collections.Counter(found['outcomes']), failures + found['failures']
        dead = int(at.read_text())
        failures.append(f'file {dead}: status {done.returncode}: {done.stderr[-3000:]}')
        first, deaths = dead + 1, deaths + 1
    return outcomes, failures


@pytest.mark.parametrize('first', range(0, 300, 100))
def test_mutated_files_are_read_right_or_refused(tmp_path, first):
    outcomes = collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's of damaged metadata, as programs do
        for seed in range(first, first + 100):
            outcomes += read_mutations.check(seed, tmp_path, with_tensorflow=True)
    readers = ['converter', 'header', 'labels', 'predict', 'trainer', 'trainer, JPEG']
    assert outcomes.keys() == {f'{reader}: {what}' for reader in readers for what in ('read', 'refused')}


def test_the_compiled_part_stays_within_its_bounds(tmp_path, sanitized):
    outcomes, failures = campaign(300, tmp_path, **sanitized)
    assert not failures, '\n'.join(failures)
    assert min(outcomes['trainer: read'], outcomes['trainer: refused']) > 100


@pytest.mark.soak
@pytest.mark.parametrize('watched', [True, False], ids=['sanitized', 'with TensorFlow'])
def test_soak_mutated_files(tmp_path, sanitized, watched):
    files = 20_000
    outcomes, failures = campaign(files, tmp_path, **(sanitized if watched else {}))
    how = 'compiled part under AddressSanitizer and UBSan' if watched else 'with windows of JPEG files by TensorFlow'
    print(f'\n{files:,} mutated files, {how}: {len(failures)} failures; {dict(sorted(outcomes.items()))}')
    assert not failures, '\n'.join(failures)
