"""The port the API listens on: free, or whose it is."""

from __future__ import annotations

import errno
import ipaddress
import socket

import psutil

from farm.errors import SetupError

_REASONS = {
    errno.EACCES: "this user may not listen there",
    errno.EADDRNOTAVAIL: "no network card of this machine has that address",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(host: str, port: int) -> None:
    """Make sure that a server can listen.

    Raises:
        SetupError: another process does, which it names, offering a free port; or we may not.
    """
    error = _try(host, port)
    if error is None:
        return
    if error.errno != errno.EADDRINUSE:
        raise SetupError(
            f"The API cannot listen on {host}, port {port}: "
            f"{_REASONS.get(error.errno or 0, error.strerror)}.",
            field="host",
            value=host,
            remedy="Choose another --host or --port; 127.0.0.1 and 7900 are the usual ones.",
        )
    free = next_free(host, port)
    raise SetupError(
        f"Port {port} is in use by {holder(port)}.",
        field="port",
        value=port,
        remedy=f"Stop that, or use --port {free}, which is free (or FARM_PORT={free}).",
    )


def holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port:
                if connection.pid:
                    name = psutil.Process(connection.pid).name()
                    return f"{name} (process {connection.pid})"
                break
    except psutil.Error:
        pass
    return "a process of another user"


def next_free(host: str, port: int) -> int:
    """The next port on which one could listen; after the highest comes 1024."""
    candidate = port + 1
    while candidate > 65535 or _try(host, candidate):
        candidate = candidate + 1 if candidate < 65535 else 1024
    return candidate


def _try(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1)
    except UnicodeError:
        return OSError(errno.EINVAL, "that is not the name of a host")
    except OSError as error:
        return error
    return None
