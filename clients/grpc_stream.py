"""The chunks of one session over one bidirectional gRPC stream, on Triton's own protobuf service.

tritonclient's ``start_stream`` is not used: it allows one stream a client, drops the request id of an error, and
leaves a thread behind for every stream that is cancelled.

On a stream Triton reports a request's failure by words alone, without a status, so its words are sorted here.
"""

from __future__ import annotations

import asyncio
import math
import queue
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc  # type: ignore[import-untyped]

from clients.calls import Chunk, Reply
from clients.errors import (
    ClientError,
    ConnectionLost,
    InvalidRequest,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
    SessionLost,
)
from clients.grpc_failures import NOT_RUN, failure
from clients.grpc_messages import outputs, tensors
from clients.transport import late, one_line, refused

CLOSE_S = 0.2  # for a stream that owes no answer to end of itself; then it is cancelled

# In this order. A failure that fits none is taken for the server's, which claims less than "your request is wrong".
_WORDS: list[tuple[re.Pattern[str], type[ClientError]]] = [
    (re.compile(r"no such stream|must specify the START flag|not healthy"), SessionLost),
    (re.compile(r"unknown model|is not found|no available versions|not at ready state|' is not ready"), ModelNotFound),
    *((re.compile(words), kind) for words, kind in NOT_RUN.items()),
    (re.compile(r"maximum queue size"), ServerUnavailable),
    (re.compile(r"Failed to process|the model failed|[Ii]nternal"), ServerError),
    (re.compile(r"\b(inputs?|expected|unexpected|shape|must|batch-size|conflicts)\b"), InvalidRequest),
]

Metadata = Sequence[tuple[str, str]]
_Item = Reply | ClientError  # a reply, or how the stream ended


class GrpcStream:
    """Sync. Costs two threads while open: gRPC's, which sends, and one that reads, so that waiting can end in time."""

    def __init__(self, service: Any, address: str, metadata: Metadata) -> None:
        self._address = address
        self._requests: queue.Queue[Any] = queue.Queue()
        self._received: queue.Queue[Any] = queue.Queue()  # messages, then how the stream ended: code and details
        self._chunk: Chunk | None = None
        self._owed = 0
        requests = iter(self._requests.get, None)
        self._call = service.ModelStreamInfer(requests, metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="clients.GrpcStream", daemon=True)
        self._reader.start()

    def put(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._owed += 1
        self._requests.put(_request(chunk))

    def take(self, deadline_s: float) -> Reply:
        assert self._chunk is not None
        try:
            message = self._received.get(timeout=deadline_s)
        except queue.Empty:
            raise late(self._chunk, self._address, deadline_s) from None
        if isinstance(message, tuple):
            self._received.put(message)  # a stream that has ended stays so
            code, details = message
            raise _end(code, details, self._chunk, self._address)
        self._owed -= 1
        return _reply(message, self._chunk, self._address)

    def close(self) -> None:
        self._requests.put(None)  # the end of what is sent; also ends gRPC's sending thread
        if not self._owed:
            self._reader.join(CLOSE_S)
        self._call.cancel()
        self._reader.join()

    def _read(self) -> None:
        try:
            for message in self._call:
                self._received.put(message)
        except grpc.RpcError as error:
            self._received.put((error.code(), error.details()))
        else:
            self._received.put((grpc.StatusCode.OK, ""))


class AsyncGrpcStream:
    """The same on asyncio: one task for each chunk that is under way."""

    def __init__(self, service: Any, address: str, metadata: Metadata) -> None:
        self._address = address
        self._chunk: Chunk | None = None
        self._exchange: asyncio.Task[_Item] | None = None
        self._call = service.ModelStreamInfer(metadata=metadata)

    def put(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._exchange = asyncio.create_task(self._ask(chunk))

    async def take(self, deadline_s: float) -> Reply:
        assert self._chunk is not None
        assert self._exchange is not None
        # Neither the deadline nor the caller's cancellation may reach the read: that would cancel the stream.
        done, _ = await asyncio.wait({self._exchange}, timeout=deadline_s)
        if not done:
            raise late(self._chunk, self._address, deadline_s)
        if self._exchange.cancelled():
            raise _end(grpc.StatusCode.CANCELLED, "the stream was closed", self._chunk, self._address)
        item = self._exchange.result()
        if isinstance(item, ClientError):
            raise item
        return item

    async def close(self) -> None:
        if self._exchange is None or self._exchange.done():
            with suppress(Exception):  # a stream that never came about fails here in ways of its own
                async with asyncio.timeout(CLOSE_S):
                    await self._call.done_writing()
                    await self._call.code()
        self._call.cancel()
        if self._exchange is not None:
            await asyncio.wait({self._exchange})

    async def _ask(self, chunk: Chunk) -> _Item:
        try:
            await self._call.write(_request(chunk))
            message = await self._call.read()
            if message is not grpc.aio.EOF:
                return _reply(message, chunk, self._address)
        except (grpc.RpcError, asyncio.InvalidStateError):  # broken just now, or ended before
            pass
        return _end(await self._call.code(), await self._call.details(), chunk, self._address)


def _request(chunk: Chunk) -> Any:
    message = tensors(chunk)
    message.id = chunk.request
    message.parameters["sequence_id"].int64_param = chunk.sequence
    message.parameters["sequence_start"].bool_param = chunk.start
    message.parameters["sequence_end"].bool_param = chunk.end
    if chunk.deadline_s is not None:  # by this machine's clock, which the server compares only with itself
        message.parameters["timeout"].int64_param = math.ceil(chunk.deadline_s * 1e6)
        message.parameters["sent_us"].int64_param = time.monotonic_ns() // 1000
    return message


def _reply(message: Any, chunk: Chunk, address: str) -> Reply:
    """chunk: the one last sent, which an error without a request id must concern."""
    response = message.infer_response
    if message.error_message:
        return Reply(response.id or chunk.request, _refusal(message.error_message, chunk, address))
    try:
        said = outputs(response, response.model_name, address)
    except ClientError as error:
        return Reply(response.id, error)
    return Reply(response.id, said)


def _refusal(said: str, chunk: Chunk, address: str) -> ClientError:
    said = re.sub(r"^\[request id: [^\]]*\] ", "", one_line(said))
    kind = next((kind for words, kind in _WORDS if words.search(said)), ServerError)
    return SessionLost(f"the server says: {said}") if kind is SessionLost else refused(chunk, address, kind, said)


def _end(code: Any, details: str | None, chunk: Chunk, address: str) -> ClientError:
    if code is grpc.StatusCode.OK:
        return ConnectionLost("the server closed the stream")
    error = failure(code, details or code.name, chunk, address, CLOSE_S)
    if isinstance(error, ServerUnavailable):
        return error
    return ConnectionLost(f"the stream broke: {one_line(details or code.name).rstrip('.')}")
