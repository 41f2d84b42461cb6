"""What ends a run from outside its loop: a request to stop, a run that stands still, an end without delay.

    with shutdown.StopRequest(grace_seconds=25) as stop, shutdown.Stall(stall_seconds=1800) as stall:
        while not stop:
            ...
            stall.progress()

Python runs a signal's handler only between bytecodes, and a thread that waits in TensorFlow cannot be interrupted at
all. So a second thread is told of signals through a file descriptor, and where the loop does not come round in time it
ends the process itself.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from launch import entry

_END_WITHIN = 5  # seconds in which a process that is to end may say so and clean up

_cleanups: list[Callable[[], None]] = []


@contextlib.contextmanager
def cleaned(cleanup: Callable[[], None]) -> Iterator[None]:
    """Calls `cleanup` at the end of the block, or when `end_process` ends the process within it."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)
        cleanup()


def end_process(status: int, message: str, *, with_stacks: bool = False) -> NoReturn:
    """Ends this process at once, from any thread, with a line and an exit status.

    It ends within 5 s even if the line blocks, since nobody reads a full pipe, or the cleaning up, since a filesystem
    hangs.

    Args:
      status: exit status.
      message: the line.
      with_stacks: before the line, show where each thread is.
    """
    limit = threading.Timer(_END_WITHIN, os._exit, [status])
    limit.daemon = True
    with contextlib.suppress(RuntimeError):  # no further thread can be had: without a limit, then
        limit.start()
    with contextlib.suppress(OSError):
        if with_stacks:
            print(_stacks(), file=sys.stderr, flush=True)
        entry.log_error(message)
    for cleanup in reversed(_cleanups):
        with contextlib.suppress(OSError):
            cleanup()
    os._exit(status)


def _stacks() -> str:
    """Where each thread is. Not by faulthandler: it writes with Python's lock held, so that a pipe that blocks it would
    block every other thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return '\n'.join(
        f'{names.get(number, number)}:\n' + ''.join(traceback.format_stack(frame))
        for number, frame in sys._current_frames().items()
    )


class StopRequest:
    """True once SIGTERM or Ctrl-C has asked the run to stop; asked a second time, Ctrl-C ends it at once.

    If the process is still there `grace_seconds` after the first request, it ends with status 75: whoever asked would
    kill it before long, and the last checkpoint is whole.
    """

    def __init__(self, grace_seconds: float):
        self._grace_seconds = grace_seconds
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def __enter__(self) -> 'StopRequest':
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._left = threading.Event()
        self._descriptor_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.listen()
        threading.Thread(target=self._limit, daemon=True).start()
        return self

    def listen(self) -> None:
        """Installs the handlers, anew where a library has replaced them (MultiWorkerMirroredStrategy does)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def check(self) -> None:
        """Raises UserError STOPPED if the run has been asked to stop before it has begun."""
        if self:
            raise entry.UserError(entry.STOPPED, 'stopped on request before the first step')

    def __exit__(self, *_) -> None:
        self._left.set()
        signal.set_wakeup_fd(self._descriptor_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._writer.close()

    def _ask(self, number, frame) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def _limit(self) -> None:
        with self._reader:
            if self._reader.recv(1) and not self._left.wait(self._grace_seconds):
                end_process(
                    entry.STOPPED,
                    f'asked to stop, the step under way took longer than config.runtime.grace_seconds='
                    f'{self._grace_seconds:g}: ended without it. The same command goes on from the last checkpoint.',
                )


class Stall:
    """Ends the process with status 76 and the stacks of all threads if `progress` is not called for a while."""

    def __init__(self, stall_seconds: float):
        self._stall_seconds = stall_seconds
        self._left = threading.Event()

    def progress(self) -> None:
        self._latest = time.monotonic()

    def __enter__(self) -> 'Stall':
        self.progress()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()

    def _watch(self) -> None:
        while not self._left.wait(min(1.0, self._stall_seconds / 4)):
            if time.monotonic() - self._latest > self._stall_seconds:
                end_process(
                    entry.PEER_LOST,
                    f'no step completed for config.runtime.stall_seconds={self._stall_seconds:g}; the stacks above '
                    'show where. The same command goes on from the last checkpoint.',
                    with_stacks=True,
                )
