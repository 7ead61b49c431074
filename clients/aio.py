"""The asyncio client: ``clients.Client`` with ``await``, for programs that keep many requests in the air.

    async with await clients.aio.connect("127.0.0.1:8001") as client:
        answers = await asyncio.gather(*(client.infer("load_forecast", inputs) for inputs in requests))

Not for gevent programs (gRPC's asyncio support and gevent exclude each other); there ``clients.connect`` yields to
other greenlets by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from clients.access import Access
from clients.calls import Answer, AsyncStreamTransport, AsyncTransport, check_deadlines
from clients.client import (
    CONNECT_DEADLINE_S,
    REQUEST_DEADLINE_S,
    Countdown,
    ProtocolName,
    checked_address,
)
from clients.conversation import Conversation, Conversations, ModelVersion
from clients.errors import ClientError
from clients.replay import Replay
from clients.session import AsyncSession, needs_grpc
from clients.signature import Array, Signature

T = TypeVar("T")


class AsyncClient:
    """Asks one Triton server from one event loop; any number of calls may be awaited at once. See ``Client``."""

    def __init__(self, transport: AsyncTransport, request_deadline_s: float = REQUEST_DEADLINE_S) -> None:
        self.address = transport.address
        self._transport = transport
        self.request_deadline_s = request_deadline_s
        self._conversations = Conversations()

    async def infer(
        self, model: str, inputs: Mapping[str, Array], *, version: str = "", deadline_s: float | None = None
    ) -> Answer:
        """See ``Client.infer``."""
        return await self._run(self._conversations.infer(model, inputs, version), deadline_s)

    def stream(
        self, model: str, *, version: str = "", deadline_s: float | None = None, replay: bool | Replay = False
    ) -> AsyncSession:
        """See ``Client.stream``: ``async with client.stream("speech") as session``."""
        deadline_s = self.request_deadline_s if deadline_s is None else deadline_s
        check_deadlines(deadline_s)
        if not isinstance(self._transport, AsyncStreamTransport):
            raise needs_grpc(self.address)
        return AsyncSession(
            self.address,
            lambda held: self._run(self._conversations.described(model, held or version), deadline_s),
            self._transport,
            deadline_s,
            Replay.of(replay),
        )

    async def ready(self, model: str = "", *, version: str = "", deadline_s: float | None = None) -> bool:
        """See ``Client.ready``."""
        return await self._run(self._conversations.ready(model, version), deadline_s)

    async def models(self, *, deadline_s: float | None = None) -> list[ModelVersion]:
        """See ``Client.models``."""
        return await self._run(self._conversations.models(), deadline_s)

    async def signature(self, model: str, *, version: str = "", deadline_s: float | None = None) -> Signature:
        """See ``Client.signature``."""
        return await self._run(self._conversations.signature(model, version), deadline_s)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, conversation: Conversation[T], deadline_s: float | None) -> T:
        clock = Countdown(self.request_deadline_s if deadline_s is None else deadline_s)
        try:
            call = next(conversation)
            while True:
                try:
                    reply = await self._transport.send(call, clock.left_s())
                except ClientError as error:
                    call = conversation.throw(error)
                else:
                    call = conversation.send(reply)
        except StopIteration as finished:
            result: T = finished.value
            return result


async def connect(
    address: str = "",
    *,
    protocol: ProtocolName = "grpc",
    connect_deadline_s: float = CONNECT_DEADLINE_S,
    request_deadline_s: float = REQUEST_DEADLINE_S,
    connections: int = 100,
    tls: bool | Path = False,
    token: str = "",
) -> AsyncClient:
    """Connect, or raise ServerUnavailable within ``connect_deadline_s``; see ``clients.connect``."""
    address = checked_address(address, protocol)
    check_deadlines(connect_deadline_s, request_deadline_s)
    access = Access(tls, token)
    transport: AsyncTransport
    if protocol == "grpc":
        from clients.grpc_transport import AsyncGrpcTransport

        transport = AsyncGrpcTransport(address, access)
    else:
        from clients.http_transport import AsyncHttpTransport

        transport = AsyncHttpTransport(address, connections, access)
    client = AsyncClient(transport, request_deadline_s)
    try:
        await client._run(client._conversations.hello(address, connect_deadline_s), connect_deadline_s)
    except BaseException:
        await client.close()
        raise
    return client
