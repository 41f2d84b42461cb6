"""The connections of a rendezvous: all ranks come to rank 0's address.

    with sockets.listener_of(['10.0.0.1:3333', '10.0.0.2:3333'], rank=0) as listener:
        links = sockets.accept_all(listener, ['10.0.0.1:3333', '10.0.0.2:3333'], deadline=time.monotonic() + 120)

A rank says {"rank", "addresses"} in one line of JSON; one that does not belong here is told {"bye", "why"}.
"""

import json
import socket
import time
from collections.abc import Callable

from launch import entry


def listener_of(addresses: list[str], rank: int) -> socket.socket:
    """Returns a socket that listens at this rank's port. Raises UserError BAD_CONFIG if the port is taken."""
    try:
        return _listen(int(addresses[rank].rpartition(':')[2]), backlog=2 * len(addresses))
    except OSError as error:
        raise entry.UserError(
            entry.BAD_CONFIG,
            f'rank {rank} cannot listen at {addresses[rank]}: {error.strerror}. Does another process use the port?',
        ) from error


def problem_of_reaching(address: str, deadline: float) -> str:
    """Tries to connect to host:port until a time of time.monotonic(); returns why it fails, '' if it does not."""
    while True:
        try:
            _connect(address, max(deadline - time.monotonic(), 1.0)).close()
            return ''
        except OSError as error:  # its name may not be known yet
            if time.monotonic() > deadline:
                return error.strerror or str(error)
            time.sleep(0.2)


def accept_all(
    listener: socket.socket, addresses: list[str], deadline: float, check: Callable[[], None] = lambda: None
) -> dict[int, socket.socket]:
    """Waits on rank 0 for every other rank and returns the connection to each.

    Args:
      listener: from `listener_of`.
      addresses: host:port of each rank.
      deadline: until when to wait, of time.monotonic().
      check: called again and again while waiting; what it raises ends the waiting.

    Raises:
      UserError: PEER_LOST naming the ranks that did not come.
    """
    links = {}
    listener.settimeout(0.2)
    while len(links) < len(addresses) - 1:
        check()
        if time.monotonic() > deadline:
            missing = [f'rank {r} ({addresses[r]})' for r in range(1, len(addresses)) if r not in links]
            raise entry.UserError(
                entry.PEER_LOST,
                f'{", ".join(missing[:8])} did not come within config.runtime.peer_seconds; {len(links) + 1} of '
                f'{len(addresses)} ranks are here. Start the same command again on all hosts.',
            )
        try:
            link, _ = listener.accept()
            link.settimeout(5)
            hello = json.loads(link.makefile('rb', buffering=0).readline())  # and no byte of what follows
        except (TimeoutError, ConnectionError, ValueError):  # nobody, or somebody who does not belong here
            continue
        if not isinstance(hello, dict):
            continue
        if hello.get('addresses') != addresses or hello.get('rank') in links:
            link.sendall(json.dumps({'bye': entry.BAD_CONFIG, 'why': _misfit(hello, addresses)}).encode() + b'\n')
            link.close()
            continue
        links[hello['rank']] = link
    return links


def _misfit(hello: dict, addresses: list[str]) -> str:
    if hello.get('addresses') != addresses:
        return f'this is the cluster of {", ".join(addresses)}'
    return f'another process is rank {hello["rank"]} already'


def connect_to_rank_0(
    addresses: list[str], rank: int, deadline: float, check: Callable[[], None] = lambda: None
) -> socket.socket:
    """Waits on another rank for rank 0 and returns the connection to it; see `accept_all`."""
    while True:
        check()
        try:
            link = _connect(addresses[0], 1.0)
            link.sendall(json.dumps({'rank': rank, 'addresses': addresses}).encode() + b'\n')
            return link
        except OSError as error:  # not there yet, or its name not known yet
            if time.monotonic() > deadline:
                raise entry.UserError(
                    entry.PEER_LOST,
                    f'rank 0 ({addresses[0]}) did not come within config.runtime.peer_seconds '
                    f'({error.strerror or error}). Start the same command again on all hosts.',
                ) from error
            time.sleep(0.2)


def _listen(port: int, backlog: int) -> socket.socket:
    """A socket that takes connections at a port of this host, by IPv6 and IPv4 alike; raises OSError."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=backlog)


def _connect(address: str, timeout: float) -> socket.socket:
    """Connects to host:port within `timeout` seconds, which is then the connection's; raises OSError."""
    host, _, port = address.rpartition(':')
    return socket.create_connection((host.strip('[]'), int(port)), timeout)
