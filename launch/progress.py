"""How far long work has come: a bar on a terminal, a line every few seconds in a log.

with progress.show(len(images), 'image') as advance:
    for image in images:
        ...
        advance(1)
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

_LOG_SECONDS = 10  # between two lines in a log


@contextlib.contextmanager
def show(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """What it gives is called with the number of units just done, of `total`."""
    done, last = 0, time.monotonic()
    with tqdm(total=total, unit=unit, disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            bar.update(count)
            if bar.disable and time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                print(f'{done:,} of {total:,} {unit}s', flush=True)

        yield advance
