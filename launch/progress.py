"""How far long work has come: a bar on a terminal, plain lines in a log.

    from launch import progress

    with progress.show(3, 'image') as advance:
        for number in range(3):
            advance(1)

    with progress.Bar(200, 'step', done=100, log_seconds=None) as bar:
        bar.advance(100)
        bar.set_status('loss 0.41')
        bar.log('step 200: mIoU 61.3 %')

Most programs need `show` alone; `Bar` is for training, which has more to say.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Self, TextIO

from tqdm import tqdm


class Bar:
    """A bar with the time left if `stream` is a terminal; else a line every few seconds."""

    def __init__(
        self, total: int, unit: str, *, done: int = 0, stream: TextIO | None = None, log_seconds: float | None = 10.0
    ):
        """Shows the bar.

        Args:
          total: units of the whole work.
          unit: what they are called, in the singular.
          done: units that were done before.
          stream: where the bar goes; default stderr.
          log_seconds: without a terminal, seconds between two lines on stdout that say how many units are done; None
            for no such lines.
        """
        stream = stream or sys.stderr
        self._total, self._unit, self._done = total, unit, done
        self._log_seconds, self._logged_at = log_seconds, time.monotonic()
        self.is_shown = stream.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit=unit, file=stream, disable=not self.is_shown, dynamic_ncols=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Counts units that have just been done."""
        self._done += count
        self._bar.update(count)
        if self.is_shown or self._log_seconds is None:
            return
        if time.monotonic() - self._logged_at >= self._log_seconds:
            self._logged_at = time.monotonic()
            print(f'{self._done:,} of {self._total:,} {self._unit}s', flush=True)

    def set_status(self, text: str) -> None:
        """Shows a text that passes beside the bar; without a terminal it is not shown."""
        self._bar.set_postfix_str(text)

    def log(self, text: str) -> None:
        """Prints a line that stays to stdout, above the bar."""
        if self.is_shown:
            self._bar.write(text)
        else:
            print(text, flush=True)


@contextlib.contextmanager
def show(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows a bar around some work, and gives the function to call with the number of units just done."""
    with Bar(total, unit) as bar:
        yield bar.advance
