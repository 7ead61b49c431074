"""What the gRPC and the HTTP transport share: how an answer's tensors are read, and what failures mean."""

from __future__ import annotations

from typing import Any

from clients.calls import Answer, Call, Chunk, subject
from clients.errors import (
    ClientError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    NotRun,
    ServerError,
    ServerUnavailable,
    TooManyStreams,
)
from clients.signature import Array

# Triton answers "not found", or by gRPC "unavailable"; its words tell a wrong name from a model that is not loaded now.
_NOT_READY = ("has no available versions", "is not at ready state", "is not ready")


def answer(model: str, version: str, result: Any, names: list[str], address: str) -> Answer:
    """The tensors of a tritonclient InferResult. Raises ServerError where bytes and shape disagree."""
    outputs: dict[str, Array] = {}
    for name in names:
        try:
            outputs[name] = result.as_numpy(name)
        except ValueError as error:
            raise ServerError(
                f"model '{model}' version {version} at {address}: the bytes of output '{name}' do not fit its shape "
                f"({error}); the server's worker is broken, see its log"
            ) from None
    return Answer(outputs, model, version)


def refused(call: Call | Chunk, address: str, kind: type[ClientError], said: str) -> ClientError:
    """The server itself declined or failed; its words are kept."""
    said = one_line(said).removeprefix("[request id: <id_unknown>] ")
    if kind in (ModelNotFound, ServerUnavailable) and any(phrase in said for phrase in _NOT_READY):
        kind = ModelNotReady
    advice = {
        InvalidRequest: "",
        ModelNotFound: "; the models it serves are listed by Client.models()",
        ModelNotReady: "; it is not loaded, or the server is shutting down",
        ServerUnavailable: "; it takes no more work now, ask again later",
        TooManyStreams: "",
        NotRun: "",
    }.get(kind, "; see the server's log")
    return kind(f"{address}, asked for {subject(call)}: {said.rstrip('.')}{advice}")


def unreachable(address: str, why: str) -> ServerUnavailable:
    """No connection was made."""
    return ServerUnavailable(
        f"no Triton server answers at {address} ({one_line(why)}); start one with 'python -m serving' or give another "
        "address"
    )


def lost(call: Call | Chunk, address: str, why: str) -> ConnectionLost:
    """The connection broke after the call was sent."""
    return ConnectionLost(
        f"the connection to {address} broke while {subject(call)} was answering ({one_line(why).rstrip('.')}); the "
        "request may have run or not; check that the server is still up before asking again"
    )


def late(call: Call | Chunk, address: str, deadline_s: float) -> DeadlineExceeded:
    """No answer within the deadline."""
    return DeadlineExceeded(
        f"{subject(call)} at {address} did not answer within {deadline_s:.3g} s; allow more time or look at its load"
    )


def one_line(text: str) -> str:
    """A server's words without their line breaks: an error is one line."""
    return " ".join(text.split())
