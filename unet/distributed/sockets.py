"""Connections between the processes of a run."""

import socket


def listen(port: int, backlog: int) -> socket.socket:
    """A socket that takes connections at a port of this host, by IPv6 and IPv4 alike; raises OSError."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=backlog)


def connect(address: str, timeout: float) -> socket.socket:
    """Connects to host:port within `timeout` seconds, which is then the connection's; raises OSError."""
    host, _, port = address.rpartition(':')
    return socket.create_connection((host.strip('[]'), int(port)), timeout)
