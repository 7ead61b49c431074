"""The options by which every command reaches its server."""

from __future__ import annotations

import argparse

from clients import access
from clients.client import CONNECT_DEADLINE_S, REQUEST_DEADLINE_S, Client, connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument(
        "--url", "--address", default="", metavar="HOST:PORT", help="default: 127.0.0.1, the protocol's usual port"
    )
    server.add_argument("--protocol", choices=("grpc", "http"), default="grpc", help="default: %(default)s")
    access.add_arguments(server)
    server.add_argument(
        "--deadline",
        type=float,
        default=REQUEST_DEADLINE_S,
        metavar="SECONDS",
        help="of the request; default: %(default)s",
    )


def connected(options: argparse.Namespace) -> Client:
    """A client of the server that the command line names. Raises ClientError."""
    return connect(
        options.url,
        protocol=options.protocol,
        connect_deadline_s=min(options.deadline, CONNECT_DEADLINE_S),
        request_deadline_s=options.deadline,
        **access.arguments(options),
    )
