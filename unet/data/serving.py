"""Training examples made on other hosts: the line between unet.data_server and trainers with config.data.servers.

    served = serving.serve(listener, make, agreement)                        # a server: answers until the process ends
    servers = serving.meet(['10.0.0.2:5050', '10.0.0.3:5050'], agreement)    # a trainer
    arrays = servers.fetch(position, make, specification)                    # those that make(position) returns

An example is a function of its position in the run, the records and a few settings. So a server keeps nothing of its
trainers: no order, no shard, no place where they are. Any server answers any position to any number of trainers, and a
trainer makes an example itself whenever its server does not answer: the same, to the bit.

The protocol, over TCP; integers are in network byte order. The server begins with a line of JSON: {"examples": what
makes them what they are (see `agree`), "cores": how many it makes at once}. From then on the trainer sends a position
(8 bytes) and gets back the number of bytes that follow (4 bytes) and the example's arrays one after the other, as they
lie in memory. A server that cannot make an example says why in its own log and ends the connection.

An example of 512x1024 pixels is 2.1 MB (4 bytes per pixel), so that a link of 10 Gb/s carries about 560 of them per
second. Nothing is encrypted, and nobody is asked who he is: like the ports of TensorFlow, for a private network only.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from data_prep import records
from launch import entry, host
from unet.distributed import sockets

Make = Callable[[int], tuple[np.ndarray, ...]]  # position -> the arrays of the example there
Specification = list[tuple[np.dtype, tuple[int, ...]]]  # type and shape of each of those arrays

_POSITION, _SIZE = struct.Struct('>Q'), struct.Struct('>I')
_MAKES_EXAMPLES = ('data_prep/records.py', 'unet/input_pipeline.py', 'unet/pixels.py', 'unet/_pixels.c')
_GREETING_SECONDS = 5  # to connect, and again for the server's first line
_EXAMPLE_SECONDS = 30  # for the next bytes of an example
_LONGEST_GREETING = 1 << 16  # bytes


def agreement(split: records.Split, **settings: object) -> dict[str, object]:
    """What an example is a function of besides its position, by name, as JSON holds it.

    Args:
      split: the training split.
      **settings: those of `input_pipeline.example_maker` that show in an example.
    """
    root = pathlib.Path(__file__).parent.parent
    code = hashlib.sha256(b''.join((root / file).read_bytes() for file in _MAKES_EXAMPLES)).hexdigest()
    versions = {'numpy': np.__version__, 'tensorflow': tf.__version__}
    return json.loads(json.dumps({'code': code, **versions, 'records': split.digest(), **settings}))


def serve(listener: socket.socket, make: Make, agreement: dict[str, object]) -> Callable[[], int]:
    """Answers trainers, in threads of its own, with as many examples at once as there are cores.

    What makes an example spends nearly all its time without Python's lock.

    Args:
      listener: where they come.
      make: what they ask for.
      agreement: see `agreement`.

    Returns:
      How many examples have been sent so far, whenever it is called.
    """
    greeting = json.dumps({'examples': agreement, 'cores': host.cores()}).encode() + b'\n'
    core, counting, sent = threading.Semaphore(host.cores()), threading.Lock(), 0

    def answer(link: socket.socket) -> None:
        nonlocal sent
        with link, contextlib.suppress(OSError):  # of a trainer that is gone
            link.sendall(greeting)
            while len(asked := link.recv(_POSITION.size, socket.MSG_WAITALL)) == _POSITION.size:
                try:
                    with core:
                        arrays = make(*_POSITION.unpack(asked))
                except Exception as error:  # the trainer then makes it itself, or fails with a message of its own
                    why = error if isinstance(error, entry.UserError) else repr(error)
                    entry.log_error(f'an example could not be made: {why}')
                    return
                link.sendall(_SIZE.pack(sum(array.nbytes for array in arrays)))
                for array in arrays:
                    link.sendall(memoryview(np.ascontiguousarray(array)).cast('B'))
                with counting:
                    sent += 1

    def accept() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError as error:  # such as no more file descriptors
                entry.log_error(f'a trainer could not be let in: {error.strerror}')
                time.sleep(1)
                continue
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a trainer's host that is down ends it
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(link,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return lambda: sent


class _Mismatch(Exception):
    """A server makes other examples than this trainer's, or is none at all."""


@dataclasses.dataclass
class _Server:
    """One server as a trainer sees it: a connection for each thread that waits for an example.

    Attributes:
      cores: how many examples it makes at once; while it is not there, how many this host makes in its stead.
      asked: how many are being made now.
    """

    address: str
    agreement: dict[str, object]
    retry_seconds: float
    cores: int = dataclasses.field(default_factory=host.cores)
    there: bool = True
    asked: int = 0
    idle: list[socket.socket] = dataclasses.field(default_factory=list)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def connect(self) -> socket.socket:
        """Raises OSError if it does not answer, _Mismatch if what it makes are other examples."""
        link = sockets.connect(self.address, _GREETING_SECONDS)
        try:
            line = link.makefile('rb', buffering=0).readline(_LONGEST_GREETING)
            if not line:
                raise ConnectionError('it ends the connection')
            cores, theirs = _read_greeting(line)
            if theirs != self.agreement:
                raise _Mismatch(f'it makes other examples: {_difference(theirs, self.agreement)}')
            self.cores = cores
            link.settimeout(_EXAMPLE_SECONDS)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return link
        except BaseException:
            link.close()
            raise

    def example(self, position: int, size: int) -> np.ndarray:
        """uint8 [size]: what it answers; raises OSError or _Mismatch if it does not."""
        with contextlib.suppress(IndexError, OSError):  # no link is idle, or it broke when the server was restarted
            return self._ask(self.idle.pop(), position, size)
        return self._ask(self.connect(), position, size)

    def _ask(self, link: socket.socket, position: int, size: int) -> np.ndarray:
        try:
            link.sendall(_POSITION.pack(position))
            (announced,) = _SIZE.unpack(_receive(link, _SIZE.size))
            if announced != size:
                raise _Mismatch(f'it sends {announced:,} bytes where an example has {size:,}')
            received = _receive(link, size)
        except BaseException:
            link.close()
            raise
        self.idle.append(link)
        return received

    def lose(self, error: Exception) -> None:
        """Says so, once, and keeps looking for it in a thread of its own, so that no example waits for that."""
        with self._lock:
            if not self.there:
                return
            self.there, self.cores = False, host.cores()
        while self.idle:
            self.idle.pop().close()
        entry.log_error(
            f'data server {self.address} is gone ({_reason(error)}): its examples are made here meanwhile, '
            f'and it is tried again every {self.retry_seconds:g} s'
        )
        threading.Thread(target=self._find_again, daemon=True).start()

    def _find_again(self) -> None:
        while not self.there:
            time.sleep(self.retry_seconds)
            with contextlib.suppress(OSError, _Mismatch):
                self.idle.append(self.connect())
                self.there = True
        entry.log_error(f'data server {self.address} is back')


@dataclasses.dataclass
class Servers:
    """The servers of a trainer.

    Attributes:
      in_flight: examples to ask for at once, so that all their cores have work: one for each, and one on its way.
    """

    servers: list[_Server]
    in_flight: int
    _choosing: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def fetch(self, position: int, make: Make, specification: Specification) -> tuple[np.ndarray, ...]:
        """What `make(position)` returns, from a server, or made here if that is gone."""
        with self._least_busy() as server:
            if server.there:
                sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in specification]
                try:
                    received = server.example(position, sum(sizes))
                except (OSError, _Mismatch) as error:
                    server.lose(error)
                else:
                    parts = np.split(received, np.cumsum(sizes)[:-1])
                    return tuple(
                        part.view(dtype).reshape(shape)
                        for part, (dtype, shape) in zip(parts, specification, strict=True)
                    )
            return make(position)

    @contextlib.contextmanager
    def _least_busy(self) -> Iterator[_Server]:
        """The server that makes the fewest examples for its cores; so one that is slower is asked for fewer."""
        with self._choosing:
            server = min(self.servers, key=lambda server: server.asked / (1 + server.cores))
            server.asked += 1
        try:
            yield server
        finally:
            with self._choosing:
                server.asked -= 1


def meet(addresses: list[str], agreement: dict[str, object], *, retry_seconds: float = 60.0) -> Servers:
    """Finds the servers; one that is not there is told on stderr and tried again later, as when it is lost later on.

    Args:
      addresses: host:port of each.
      agreement: see `agreement`; the servers must have the same.
      retry_seconds: how long to wait before a server that is gone is tried again.

    Raises:
      UserError: BAD_CONFIG naming a server that makes other examples, and what differs. (One that comes back with
        later on, while the run is under way, counts as gone.)
    """
    servers = [_Server(address, agreement, retry_seconds) for address in addresses]
    for server in servers:
        try:
            server.idle.append(server.connect())
        except _Mismatch as error:
            raise entry.UserError(
                entry.BAD_CONFIG,
                f'config.data.servers: {server.address}: {error}. Start unet.data_server there with the --config, '
                'fields, records and version of this run, or leave it out.',
            ) from error
        except OSError as error:
            server.lose(error)
    return Servers(servers, in_flight=max(host.cores(), sum(1 + server.cores for server in servers)))


def _read_greeting(line: bytes) -> tuple[int, dict[str, object]]:
    try:
        greeting = json.loads(line)
        return int(greeting['cores']), dict(greeting['examples'])
    except (ValueError, KeyError, TypeError) as error:
        raise _Mismatch('what answers there is no unet.data_server') from error


def _receive(link: socket.socket, size: int) -> np.ndarray:
    received = np.empty(size, np.uint8)
    view = memoryview(received)
    while view:
        count = link.recv_into(view)
        if not count:
            raise ConnectionError('it ends the connection')
        view = view[count:]
    return received


def _difference(theirs: dict[str, object], ours: dict[str, object]) -> str:
    def short(value: object) -> str:
        return value[:12] if isinstance(value, str) else str(value)  # of a digest

    return ', '.join(
        f'{name} is {short(theirs.get(name))} there, {short(ours.get(name))} here'
        for name in {**ours, **theirs}
        if theirs.get(name) != ours.get(name)
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return 'it does not answer in time'
    return getattr(error, 'strerror', None) or str(error)
