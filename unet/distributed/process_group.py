"""The processes of one run, connected beside TensorFlow's cluster: who is there, do they agree, who is gone.

    with process_group.rendezvous(addresses, rank, peer_seconds=120) as group:
        steps = group.all_gather(restored_step)     # the same list on all ranks, by rank; also a barrier

TensorFlow builds its cluster only when all are there, and a collective waits for ever for one who hangs. So all ranks
first meet at rank 0's address, within a time limit, and keep that connection: each end sends a sign of life several
times per `peer_seconds`. A rank that says nothing for so long, whose connection breaks, or that ends with a failure is
named by all others, which then end with status 76, or 75 if it was asked to stop.

The protocol is one JSON object per line: {"rank", "addresses"} to meet, {"value"} to rank 0 and {"values"} back to
all-gather, {"bye": status, "why"} before leaving, {"lost", "status"} from rank 0 to tell of a loss, and {} as a
sign of life.
"""

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

from launch import entry
from unet.distributed import shutdown, sockets

_ERRORS_OF_A_LOSS = ('AbortedError', 'CancelledError', 'DeadlineExceededError', 'UnavailableError')  # TensorFlow's
_LEAVE_BY_ITSELF = 10  # seconds that the main thread has to end the run after a loss, before it is ended


class ProcessGroup:
    """The ranks of a run, this one among them. A run of one process has no others, and the same methods."""

    def __init__(self, addresses: list[str], rank: int, links: dict[int, socket.socket], peer_seconds: float):
        self.rank, self.size = rank, len(addresses)
        self._addresses = addresses
        self._links = links  # rank 0 has one to each other rank, the others one to rank 0
        self._inboxes = {other: queue.SimpleQueue() for other in links}
        self._sending = threading.Lock()
        self._silence = peer_seconds
        self._loss = None  # the UserError that this process is to end with
        self._left = set()  # ranks that said good-bye after all was done
        self._closed = threading.Event()

    def __enter__(self) -> 'ProcessGroup':
        for other, link in self._links.items():
            link.settimeout(self._silence)
            threading.Thread(target=self._listen, args=(other, link), daemon=True).start()
        if self._links:
            threading.Thread(target=self._show_life, daemon=True).start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        status, why = entry.OK, ''
        if error is not None:
            ours = entry.as_user_error(error)
            status = ours.status if ours else entry.BUG
            why = (str(ours or error).splitlines() or [kind.__name__])[0]
        for other in self._links:
            self._send(other, {'bye': status, 'why': why})
        self._closed.set()
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)  # what was sent still arrives

    def name(self, rank: int) -> str:
        return f'rank {rank} ({self._addresses[rank]})'

    def all_gather(self, value: object) -> list:
        """Returns every rank's value, by rank, on all ranks, once all of them have called it.

        Args:
          value: anything that JSON holds.

        Raises:
          UserError: PEER_LOST if a rank is lost meanwhile, STOPPED if it was asked to stop.
        """
        if not self._links:
            return [value]
        if self.rank:
            self._send(0, {'value': value})
            return self._receive(0)['values']
        values = [value] + [self._receive(other)['value'] for other in sorted(self._links)]
        for other in self._links:
            self._send(other, {'values': values})
        return values

    def check_equal(self, what: str, value: object, remedy: str) -> None:
        """Raises UserError BAD_CONFIG, on all ranks, unless all ranks pass the same value."""
        values = self.all_gather(value)
        differ = [self.name(rank) for rank, other in enumerate(values) if other != values[0]]
        if differ:
            others = f'{", ".join(differ[:4])}{" and others" if len(differ) > 4 else ""}'
            raise entry.UserError(entry.BAD_CONFIG, f'{what} differs between {self.name(0)} and {others}: {remedy}')

    def raise_if_peer_lost(self, error: Exception) -> None:
        """Raises UserError, as all_gather, if `error`, from TensorFlow, is due to a loss, which may become known only
        now.

        A host that lost its power says nothing, and TensorFlow may give it up long before `peer_seconds` are over.
        """
        of_a_loss = type(error).__name__ in _ERRORS_OF_A_LOSS
        deadline = time.monotonic() + (self._silence if of_a_loss else 0) + _LEAVE_BY_ITSELF / 2
        while self._links and not self._loss and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._loss:
            raise self._loss from error
        if self._links and of_a_loss:
            raise entry.UserError(
                entry.PEER_LOST, f'a worker was lost, {str(error).splitlines()[0][:200]}. Start all of them again.'
            ) from error

    def _receive(self, other: int) -> dict:
        while True:
            loss = self._loss  # asked for first: what arrived before a loss counts
            with contextlib.suppress(queue.Empty):
                return self._inboxes[other].get(timeout=0.1)
            if loss:
                raise loss

    def _send(self, other: int, message: dict) -> None:
        with self._sending, contextlib.suppress(OSError):  # the thread that listens notices a broken link
            self._links[other].sendall(json.dumps(message).encode() + b'\n')

    def _show_life(self) -> None:
        while not self._closed.wait(self._silence / 5):
            for other in self._links:
                self._send(other, {})

    def _listen(self, other: int, link: socket.socket) -> None:
        try:
            for line in link.makefile('rb'):
                message = json.loads(line)
                if 'lost' in message:
                    self._lose(message['lost'], message['status'])
                elif message.get('bye') == entry.OK:
                    self._left.add(other)
                elif 'bye' in message:
                    status = entry.STOPPED if message['bye'] == entry.STOPPED else entry.PEER_LOST
                    self._lose(f'{self.name(other)} ended with status {message["bye"]}: {message["why"]}', status)
                elif message:
                    self._inboxes[other].put(message)
            why = 'is gone without a word: killed, or its host is down'
        except TimeoutError:
            why = f'has not shown a sign of life for config.runtime.peer_seconds={self._silence:g}'
        except OSError as error:
            why = f'is gone: {error.strerror}'
        if other not in self._left:
            self._lose(f'{self.name(other)} {why}', entry.PEER_LOST)

    def _lose(self, loss: str, status: int) -> None:
        """Tells the others, and ends this process unless its main thread does so soon."""
        if self._loss or self._closed.is_set():
            return
        self._loss = entry.UserError(
            status, f'{loss}. The same command, started on all hosts, goes on from the last checkpoint.'
        )
        if self.rank == 0:
            for other in self._links:
                self._send(other, {'lost': loss, 'status': status})
        if not self._closed.wait(_LEAVE_BY_ITSELF):
            shutdown.end_process(status, str(self._loss))


@contextlib.contextmanager
def rendezvous(
    addresses: list[str], rank: int, *, peer_seconds: float, check: Callable[[], None] = lambda: None
) -> Iterator[ProcessGroup]:
    """Waits until all ranks are there and each can reach each other, and keeps in touch until the block ends.

    Args:
      addresses: host:port of each rank; TensorFlow listens there afterwards.
      rank: this process's.
      peer_seconds: how long to wait for the others, now and for each sign of life.
      check: called again and again while waiting; what it raises ends the waiting.

    Raises:
      UserError: PEER_LOST naming the ranks that did not come; BAD_CONFIG if this rank's port is taken, two processes
        claim one rank, or a rank cannot be reached.
    """
    if len(addresses) == 1:
        yield ProcessGroup(addresses, 0, {}, peer_seconds)
        return
    deadline = time.monotonic() + peer_seconds
    with contextlib.ExitStack() as until_met:
        listener = until_met.enter_context(sockets.listener_of(addresses, rank))
        if rank == 0:
            links = sockets.accept_all(listener, addresses, deadline, check)
        else:
            links = {0: sockets.connect_to_rank_0(addresses, rank, deadline, check)}
        with ProcessGroup(addresses, rank, links, peer_seconds) as group:
            group.all_gather(None)  # now all of them listen
            unreachable = [
                f'{group.name(rank)} cannot reach {group.name(other)}: {problem}'
                for other in range(1, len(addresses))
                if other != rank and (problem := sockets.problem_of_reaching(addresses[other], deadline))
            ]
            unreachable = sum(group.all_gather(unreachable), [])
            until_met.close()  # TensorFlow's server takes the port
            if unreachable:
                raise entry.UserError(entry.BAD_CONFIG, f'{"; ".join(unreachable[:4])}. Is a firewall between them?')
            yield group


@contextlib.contextmanager
def silence_other_ranks(group: ProcessGroup) -> Iterator[None]:
    """Lets only rank 0 print to stdout until the block ends: several processes speak once."""
    with contextlib.ExitStack() as stack:
        if group.rank:
            nowhere = stack.enter_context(open(os.devnull, 'w'))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
