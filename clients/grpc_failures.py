"""What a failed gRPC call means, from its status and, where one status has several meanings, its words."""

from __future__ import annotations

import re

import grpc  # type: ignore[import-untyped]

from clients.calls import Call, Chunk
from clients.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotRun,
    ServerError,
    ServerUnavailable,
    TooManyStreams,
)
from clients.transport import late, lost, refused, unreachable

_KINDS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: InvalidRequest,  # by a proxy: too large
    grpc.StatusCode.UNAUTHENTICATED: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
}

# What the onnxruntime backend says of requests that it turns away, status UNAVAILABLE.
NOT_RUN: dict[str, type[ClientError]] = {
    r"no room for another stream": TooManyStreams,
    r"the deadline of .* has passed": NotRun,
}

# gRPC has one status, UNAVAILABLE, for three things; only its words tell them apart.
_NEVER_CONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed", "name resolution")
_BROKEN = ("Socket closed", "Stream removed", "reset by peer", "Broken pipe", "GOAWAY", "End of TCP stream")


def failure(
    status: grpc.StatusCode, details: str | None, call: Call | Chunk, address: str, deadline_s: float
) -> ClientError:
    """The error for a call that gRPC, or the server by a gRPC status, ended."""
    kind, said = _KINDS.get(status, ServerError), details or "no reason given"
    if kind is DeadlineExceeded:
        return late(call, address, deadline_s)
    if kind is ServerUnavailable and any(phrase in said for phrase in _NEVER_CONNECTED):
        why = said.rpartition(": ")[2]
        if "Socket closed" in why:
            why = "the connection was closed at once; is this the gRPC port, 8001 unless told otherwise?"
        return unreachable(address, why)
    if kind is ServerUnavailable and any(phrase in said for phrase in _BROKEN):
        return lost(call, address, said)
    if kind is ServerUnavailable:
        kind = next((found for words, found in NOT_RUN.items() if re.search(words, said)), kind)
    return refused(call, address, kind, said)
