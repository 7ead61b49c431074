"""Callers who each send their next request when the last one is answered, over HTTP or gRPC, alike for every server.

Requests are bytes made beforehand, and answers are not read while the time runs: what is measured is the server, and
as little as can be of the generator. HTTP is spoken by a few lines on asyncio's streams of bytes, since the HTTP
clients of Python cost more than the servers to be compared.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc  # type: ignore[import-untyped]

from optimize.errors import UserError

DEADLINE_S = 30.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)  # and not Inference-Header-Content-Length


@dataclass(frozen=True)
class Target:
    """Where requests go. path, headers: of HTTP; no path: gRPC."""

    host: str
    port: int
    path: str = ""
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """What one server did in one turn: seconds of every answered request, and of the turn."""

    latencies_s: list[float]
    wall_s: float


class Caller(Protocol):
    """One connection with at most one request under way."""

    async def ask(self, body: bytes) -> bytes: ...

    async def close(self) -> None: ...


class HttpCaller(asyncio.Protocol):
    """One kept HTTP/1.1 connection. An answer needs a Content-Length and the status 200; else UserError."""

    def __init__(self, target: Target) -> None:
        self._target = target
        lines = (f"POST {target.path} HTTP/1.1", f"Host: {target.host}:{target.port}", *target.headers)
        self._head = "\r\n".join((*lines, "Content-Length: ")).encode()
        self._received, self._needed = bytearray(), 0
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()

    @classmethod
    async def connect(cls, target: Target) -> HttpCaller:
        made = cls(target)
        await asyncio.get_running_loop().create_connection(lambda: made, target.host, target.port)
        return made

    async def ask(self, body: bytes) -> bytes:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        return await self._answer

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end])
        length = _LENGTH.search(head)
        if length is None or not head.startswith(b"HTTP/1.1 200"):
            self._fail(f"answered '{head.splitlines()[0].decode(errors='replace')}', not 200 with a length")
        elif len(self._received) >= end + 4 + int(length[1]):
            body = bytes(self._received[end + 4 : end + 4 + int(length[1])])
            self._received.clear()
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(body)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        self._fail("closed the connection")

    def _fail(self, what: str) -> None:
        if self._answer is not None and not self._answer.done():
            place = f"{self._target.host}:{self._target.port}{self._target.path}"
            self._answer.set_exception(UserError(f"the server at {place} {what}; see its log"))


class GrpcCaller:
    """One gRPC channel; bodies are serialized ModelInferRequests."""

    def __init__(self, target: Target) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(f"{target.host}:{target.port}", options)
        self._call = self._channel.unary_unary(INFER)

    async def ask(self, body: bytes) -> bytes:
        try:
            answer: bytes = await self._call(body)
        except grpc.aio.AioRpcError as error:
            raise UserError(f"the server refused a request by gRPC: {error.details()}") from None
        return answer

    async def close(self) -> None:
        await self._channel.close()


async def connect(target: Target) -> Caller:
    """A caller by the target's protocol. Raises OSError where nobody listens, at the latest with the first request."""
    return await HttpCaller.connect(target) if target.path else GrpcCaller(target)


async def ask_all(target: Target, bodies: Sequence[bytes]) -> list[bytes]:
    """Every request alone, one after the other."""
    caller = await connect(target)
    try:
        return [await asyncio.wait_for(caller.ask(body), DEADLINE_S) for body in bodies]
    finally:
        await caller.close()


async def turn(target: Target, bodies: Sequence[bytes], callers: int, warm_up_s: float, seconds: float) -> Turn:
    """``callers`` at a time for so long; requests begun in the warm-up do not count."""
    connected = await asyncio.gather(*(connect(target) for _ in range(callers)))
    latencies_s: list[float] = []
    from_s = time.perf_counter() + warm_up_s
    until_s = from_s + seconds

    async def loop(number: int, ask: Callable[[bytes], Awaitable[bytes]]) -> None:
        while (begin_s := time.perf_counter()) < until_s:
            await ask(bodies[number % len(bodies)])
            if begin_s >= from_s:
                latencies_s.append(time.perf_counter() - begin_s)
            number += callers

    loops = [asyncio.create_task(loop(number, caller.ask)) for number, caller in enumerate(connected)]
    try:
        await asyncio.wait_for(asyncio.gather(*loops), warm_up_s + seconds + DEADLINE_S)
    except TimeoutError:
        raise UserError(f"the server at {target.host}:{target.port} left a request unanswered; see its log") from None
    finally:
        await asyncio.gather(*(caller.close() for caller in connected))
        await asyncio.gather(*loops, return_exceptions=True)
    return Turn(latencies_s, time.perf_counter() - from_s)
