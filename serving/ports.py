"""Ports that are free right now, or an error that says which option to change."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields

from optimize.errors import UserError
from serving.config import PORT_OPTIONS, ServerConfig


@dataclass(frozen=True)
class Ports:
    """Where the three endpoints listen; never 0."""

    http_port: int
    grpc_port: int
    metrics_port: int


def choose(config: ServerConfig) -> Ports:
    """The configured ports, checked to be free, with a free one in place of each 0.

    Nothing reserves them until Triton binds them, so a start can still lose the race; Triton then says so.
    """
    with ExitStack() as held:  # all at once, so that no two zeros become the same port
        chosen = {}
        for field in fields(Ports):
            probe = held.enter_context(socket.socket(_family(config.host)))
            # As Triton binds: a port whose last connections are in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = getattr(config, field.name)
            try:
                probe.bind((config.host, port))
                probe.listen()
            except OSError as error:
                raise UserError(_explain(error, config.host, port, PORT_OPTIONS[field.name])) from None
            chosen[field.name] = probe.getsockname()[1]
    return Ports(**chosen)


def reachable(host: str, port: int) -> str:
    """The 'host:port' by which this machine reaches a server that listens on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise UserError(f"--host '{host}' is not an address of this machine: {error.strerror}") from None


def _explain(error: OSError, host: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} ({option}) is already in use on {host}; stop what listens there or choose another, 0 for any"
        )
    if error.errno == errno.EACCES:
        return f"port {port} ({option}) needs privileges; choose one from 1024 up, or 0 for any"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host '{host}' is not an address of this machine"
    return f"port {port} ({option}) on {host}: {error.strerror}"
