"""Callers who each send their next request when the last one is answered, over HTTP or gRPC, alike for every server.

Requests are bytes made beforehand, HTTP's with their heads, and answers are not read while the time runs: what is
measured is the server, and as little as can be of the generator. HTTP is spoken by a few lines on asyncio's streams of
bytes, since the HTTP clients of Python cost more than the servers to be compared.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from secrets import randbelow
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb

from optimize.benchmark import Latency
from optimize.errors import UserError

DEADLINE_S = 30.0
INFER, STREAM = (f"/inference.GRPCInferenceService/{method}" for method in ("ModelInfer", "ModelStreamInfer"))
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)  # and not Inference-Header-Content-Length


@dataclass(frozen=True)
class Target:
    """Where requests go. path, headers: of HTTP; no path: gRPC. stream: each caller has a stream of its own there."""

    host: str
    port: int
    path: str = ""
    headers: tuple[str, ...] = ()
    stream: bool = False

    def message(self, body: bytes, *headers: str) -> bytes:
        """All that is sent for one request."""
        if not self.path:
            return body
        lines = (f"POST {self.path} HTTP/1.1", f"Host: {self.host}:{self.port}", *self.headers, *headers)
        return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


@dataclass(frozen=True)
class Turn:
    """What one server did in one turn: seconds of every answered request, and of the turn."""

    latencies_s: list[float]
    wall_s: float


@dataclass(frozen=True)
class Load:
    """What one server did for so many callers in all turns. slowest, fastest: requests per second of a turn."""

    requests_per_s: float
    slowest: float
    fastest: float
    latency_ms: Latency

    @classmethod
    def of(cls, turns: list[Turn]) -> Load:
        rates = [len(turn.latencies_s) / turn.wall_s for turn in turns]
        together = sum(len(turn.latencies_s) for turn in turns) / sum(turn.wall_s for turn in turns)
        latencies = [seconds for turn in turns for seconds in turn.latencies_s]
        return cls(together, min(rates), max(rates), Latency.of(latencies))


class Caller(Protocol):
    """One connection with at most one request under way."""

    async def ask(self, message: bytes) -> bytes: ...

    async def close(self) -> None: ...


class HttpCaller(asyncio.Protocol):
    """One kept HTTP/1.1 connection. An answer needs a Content-Length and the status 200; else UserError."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._received, self._needed = bytearray(), 0
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()

    @classmethod
    async def connect(cls, target: Target) -> HttpCaller:
        made = cls(target)
        await asyncio.get_running_loop().create_connection(lambda: made, target.host, target.port)
        return made

    async def ask(self, message: bytes) -> bytes:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(message)
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
    """One gRPC channel; requests are serialized ModelInferRequests."""

    def __init__(self, target: Target) -> None:
        self._channel = _channel(target)
        self._call = self._channel.unary_unary(INFER)

    async def ask(self, message: bytes) -> bytes:
        try:
            answer: bytes = await self._call(message)
        except grpc.aio.AioRpcError as error:
            raise UserError(f"the server refused a request by gRPC: {error.details()}") from None
        return answer

    async def close(self) -> None:
        await self._channel.close()


class StreamCaller:
    """One stream of a model with states: the same requests as of ``GrpcCaller``, as its chunks.

    What makes a request part of this stream is put behind it: protobuf reads messages joined so as one.
    """

    def __init__(self, target: Target) -> None:
        self._channel = _channel(target)
        self._call = self._channel.stream_stream(STREAM)()
        self._last = b""
        self._flags, sequence = {}, 1 + randbelow(1 << 62)
        for name, start, end in (("first", True, False), ("next", False, False), ("last", False, True)):
            request = pb.ModelInferRequest()
            request.parameters["sequence_id"].int64_param = sequence
            request.parameters["sequence_start"].bool_param = start
            request.parameters["sequence_end"].bool_param = end
            self._flags[name] = request.SerializeToString()

    async def ask(self, message: bytes) -> bytes:
        flags, self._last = self._flags["next" if self._last else "first"], message
        return await self._exchange(message + flags)

    async def close(self) -> None:
        if self._last:
            await self._exchange(self._last + self._flags["last"])
        self._call.cancel()
        await self._channel.close()

    async def _exchange(self, message: bytes) -> bytes:
        try:
            await self._call.write(message)
            answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise UserError(f"the server ended a stream: {error.details()}") from None
        if answer is grpc.aio.EOF:
            raise UserError("the server ended a stream; see its log")
        if answer[:1] == b"\n":  # the first field, which is the error's message
            raise UserError(
                f"the server refused a chunk: {pb.ModelStreamInferResponse.FromString(answer).error_message}"
            )
        return bytes(answer)


def _channel(target: Target) -> Any:
    return grpc.aio.insecure_channel(f"{target.host}:{target.port}", [("grpc.use_local_subchannel_pool", 1)])


async def connect(target: Target) -> Caller:
    """A caller by the target's protocol. Raises OSError where nobody listens, at the latest with the first request."""
    if target.path:
        return await HttpCaller.connect(target)
    return StreamCaller(target) if target.stream else GrpcCaller(target)


async def ask_all(target: Target, messages: Sequence[bytes]) -> list[bytes]:
    """Every request alone, one after the other."""
    caller = await connect(target)
    try:
        return [await asyncio.wait_for(caller.ask(message), DEADLINE_S) for message in messages]
    finally:
        await caller.close()


async def turn(target: Target, messages: Sequence[bytes], callers: int, warm_up_s: float, seconds: float) -> Turn:
    """``callers`` at a time for so long, and until each had an answer; requests begun in the warm-up do not count."""
    connected = await asyncio.gather(*(connect(target) for _ in range(callers)))
    latencies_s: list[float] = []
    from_s = time.perf_counter() + warm_up_s
    until_s = from_s + seconds

    async def loop(number: int, ask: Callable[[bytes], Awaitable[bytes]]) -> None:
        counted = False
        while (begin_s := time.perf_counter()) < until_s or not counted:
            await ask(messages[number % len(messages)])
            if begin_s >= from_s:
                latencies_s.append(time.perf_counter() - begin_s)
                counted = True
            number += callers

    loops = [asyncio.create_task(loop(number, caller.ask)) for number, caller in enumerate(connected)]
    try:
        await asyncio.wait_for(asyncio.gather(*loops), warm_up_s + seconds + DEADLINE_S)
    except TimeoutError:
        raise UserError(f"the server at {target.host}:{target.port} left a request unanswered; see its log") from None
    finally:
        for task in loops:  # one that failed leaves the others under way
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await asyncio.gather(*(caller.close() for caller in connected))
    return Turn(latencies_s, time.perf_counter() - from_s)
