"""The sync client.

with clients.connect("127.0.0.1:8001") as client:
    answer = client.infer("load_forecast", {"history": history, "calendar": calendar}, deadline_s=0.5)
    answer["forecast"]  # (batch, 24) float32
    answer.version      # "3"

    with client.stream("speech") as session:  # a model that remembers its past: see clients.session
        answer = session.send(chunk)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from clients.access import Access
from clients.calls import Answer, StreamTransport, Transport, check_deadlines
from clients.conversation import Conversation, Conversations, ModelVersion
from clients.errors import ClientError, DeadlineExceeded
from clients.replay import Replay
from clients.session import Session, needs_grpc
from clients.signature import Array, Signature

ProtocolName = Literal["grpc", "http"]
DEFAULT_ADDRESS: dict[ProtocolName, str] = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}
CONNECT_DEADLINE_S, REQUEST_DEADLINE_S = 3.0, 10.0

T = TypeVar("T")


class Client:
    """Asks one Triton server. Thread safety is the transport's: gRPC may be shared, HTTP belongs to one thread.

    request_deadline_s: for calls that name no deadline of their own. A deadline covers the whole call, with what the
    client must first ask about the model. Nothing is ever sent twice (see ``clients.errors`` for what is safe to).
    """

    def __init__(self, transport: Transport, request_deadline_s: float = REQUEST_DEADLINE_S) -> None:
        self.address = transport.address
        self._transport = transport
        self.request_deadline_s = request_deadline_s
        self._conversations = Conversations()

    def infer(
        self, model: str, inputs: Mapping[str, Array], *, version: str = "", deadline_s: float | None = None
    ) -> Answer:
        """Run a model once. inputs: by name, each with its batch axis. version: empty is the server's choice.

        The inputs are checked against the server's description of the model before anything is sent; NaN and
        infinite values are refused. Raises any of ``clients.errors``.
        """
        return self._run(self._conversations.infer(model, inputs, version), deadline_s)

    def stream(
        self, model: str, *, version: str = "", deadline_s: float | None = None, replay: bool | Replay = False
    ) -> Session:
        """A session with a model that keeps state between requests, for use in ``with``. Needs gRPC.

        Entering asks the server for the model as it is now, and holds to that version. deadline_s: for that, and for
        each chunk that names no deadline of its own. replay: keep the chunks and send them again when the stream is
        lost (``clients.replay``). Raises any of ``clients.errors``, InvalidRequest where the model keeps no state.
        """
        deadline_s = self.request_deadline_s if deadline_s is None else deadline_s
        check_deadlines(deadline_s)
        if not isinstance(self._transport, StreamTransport):
            raise needs_grpc(self.address)
        return Session(
            self.address,
            lambda held: self._run(self._conversations.described(model, held or version), deadline_s),
            self._transport,
            deadline_s,
            Replay.of(replay),
        )

    def ready(self, model: str = "", *, version: str = "", deadline_s: float | None = None) -> bool:
        """Whether the server serves the model, or, without a name, every model that it was told to."""
        return self._run(self._conversations.ready(model, version), deadline_s)

    def models(self, *, deadline_s: float | None = None) -> list[ModelVersion]:
        """The versions of the models that are loaded."""
        return self._run(self._conversations.models(), deadline_s)

    def signature(self, model: str, *, version: str = "", deadline_s: float | None = None) -> Signature:
        """What the model takes and gives; asked for once."""
        return self._run(self._conversations.signature(model, version), deadline_s)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, conversation: Conversation[T], deadline_s: float | None) -> T:
        clock = Countdown(self.request_deadline_s if deadline_s is None else deadline_s)
        try:
            call = next(conversation)
            while True:
                try:
                    reply = self._transport.send(call, clock.left_s())
                except ClientError as error:
                    call = conversation.throw(error)
                else:
                    call = conversation.send(reply)
        except StopIteration as finished:
            result: T = finished.value
            return result


def connect(
    address: str = "",
    *,
    protocol: ProtocolName = "grpc",
    connect_deadline_s: float = CONNECT_DEADLINE_S,
    request_deadline_s: float = REQUEST_DEADLINE_S,
    connections: int = 1,
    tls: bool | Path = False,
    token: str = "",
) -> Client:
    """Connect to a running server, or raise ServerUnavailable within ``connect_deadline_s``.

    address: HOST:PORT; empty is this machine with the protocol's usual port. connections: over HTTP, how many
    requests may overlap (from greenlets of one thread); gRPC needs but one. tls: True, or a PEM file of the
    certificates to trust instead of this machine's. token: sent with every request, over TLS only.
    """
    address = checked_address(address, protocol)
    check_deadlines(connect_deadline_s, request_deadline_s)
    access = Access(tls, token)
    transport: Transport
    if protocol == "grpc":
        from clients.grpc_transport import GrpcTransport

        transport = GrpcTransport(address, access)
    else:
        from clients.http_transport import HttpTransport

        transport = HttpTransport(address, connect_deadline_s, connections, access)
    client = Client(transport, request_deadline_s)
    try:
        client._run(client._conversations.hello(address, connect_deadline_s), connect_deadline_s)
    except BaseException:
        client.close()
        raise
    return client


def checked_address(address: str, protocol: ProtocolName) -> str:
    """The address, or the protocol's usual one. Raises ClientError unless it is HOST:PORT."""
    if protocol not in DEFAULT_ADDRESS:
        raise ClientError(f"protocol '{protocol}' is unknown; use 'grpc' or 'http'")
    address = address or DEFAULT_ADDRESS[protocol]
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ClientError(f"address '{address}': expected HOST:PORT, such as {DEFAULT_ADDRESS[protocol]}")
    return address


class Countdown:
    """What is left of a deadline that several calls share."""

    def __init__(self, deadline_s: float) -> None:
        check_deadlines(deadline_s)
        self._deadline_s = deadline_s
        self._end = time.monotonic() + deadline_s

    def left_s(self) -> float:
        """Seconds left. Raises DeadlineExceeded when none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"the deadline of {self._deadline_s:.3g} s passed before everything was asked")
        return left
