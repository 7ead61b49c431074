"""Which of a locustfile's users run when none was named: those whose model the server has.

    environment.user_classes = chosen(environment.user_classes, served(options))

Apart from the hooks into locust, whose import patches the whole process.
"""

from __future__ import annotations

import argparse
from typing import Protocol, TypeVar

import clients
from clients import access


class Kind(Protocol):
    """A user class. streams: whether a user is a real-time stream, not a sender of requests."""

    model: str
    streams: bool


K = TypeVar("K", bound=Kind)


def served(options: argparse.Namespace) -> set[str]:
    """The models of the server that the options name; none if it does not answer: the users will say why."""
    try:
        with clients.connect(options.grpc_address, **access.arguments(options)) as client:
            return {entry.model for entry in client.models()}
    except clients.ClientError:
        return set()


def chosen(users: list[K], models: set[str]) -> list[K]:
    """The user classes that the server has the models for: those that send requests, or, if it serves nothing to
    them, those that stream (``--rate`` and ``--users`` mean other things to each). If it has none, the former."""
    fitting = [user for user in users if user.model in models] or users
    return [user for user in fitting if not user.streams] or fitting
