"""Calls over gRPC, on tritonclient's sync and asyncio clients.

One channel carries any number of requests at once; the sync transport may be shared between threads.
"""

from __future__ import annotations

import json
from typing import Any

import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToJson
from tritonclient.utils import InferenceServerException

from clients.calls import Call, Config, Infer, Statistics
from clients.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
)
from clients.transport import answer, invocation, late, lost, refused, unreachable

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Channels share connections, and their back-off, within a process unless told otherwise: a client opened after a
    # server's restart would inherit another client's wait.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 2000),
]

_KINDS: dict[str, type[ClientError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": ModelNotFound,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAVAILABLE": ServerUnavailable,
}

# gRPC has one status, UNAVAILABLE, for three things; only its words tell them apart.
_NEVER_CONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed", "name resolution")
_BROKEN = ("Socket closed", "Stream removed", "reset by peer", "Broken pipe", "GOAWAY", "End of TCP stream")


class GrpcTransport:
    """Sync, over one channel."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = triton.InferenceServerClient(address, channel_args=_CHANNEL_OPTIONS)

    def send(self, call: Call, deadline_s: float) -> Any:
        method, arguments = invocation(call, triton.InferInput)
        try:
            result = getattr(self._client, method)(**arguments, client_timeout=deadline_s)
        except InferenceServerException as error:
            raise _failure(error, call, self.address, deadline_s) from None
        return _reply(result, call, self.address)

    def close(self) -> None:
        self._client.close()
        del self._client  # whose end closes the channel once more: at the interpreter's exit that can wait for ever


class AsyncGrpcTransport:
    """The same on asyncio. Belongs to the event loop that is running when it is made."""

    def __init__(self, address: str) -> None:
        import tritonclient.grpc.aio as triton_aio  # not at the top: it must stay out of gevent programs

        self.address = address
        self._client = triton_aio.InferenceServerClient(address, channel_args=_CHANNEL_OPTIONS)

    async def send(self, call: Call, deadline_s: float) -> Any:
        method, arguments = invocation(call, triton.InferInput)
        try:
            result = await getattr(self._client, method)(**arguments, client_timeout=deadline_s)
        except InferenceServerException as error:
            raise _failure(error, call, self.address, deadline_s) from None
        return _reply(result, call, self.address)

    async def close(self) -> None:
        await self._client.close()


def _reply(result: Any, call: Call, address: str) -> Any:
    if isinstance(result, bool):
        return result
    if isinstance(call, Infer):
        response = result.get_response()
        names = [output.name for output in response.outputs]
        return answer(call.model, response.model_version, result, names, address)
    message = json.loads(MessageToJson(result, preserving_proto_field_name=True))
    match call:
        case Config():
            return message["config"]
        case Statistics():
            return message.get("model_stats", [])
    return message


def _failure(error: InferenceServerException, call: Call, address: str, deadline_s: float) -> ClientError:
    status, said = str(error.status()).removeprefix("StatusCode."), error.message() or "no reason given"
    kind = _KINDS.get(status, ServerError)
    if kind is DeadlineExceeded:
        return late(call, address, deadline_s)
    if kind is ServerUnavailable and any(phrase in said for phrase in _NEVER_CONNECTED):
        why = said.rpartition(": ")[2]
        if "Socket closed" in why:
            why = "the connection was closed at once; is this the gRPC port, 8001 unless told otherwise?"
        return unreachable(address, why)
    if kind is ServerUnavailable and any(phrase in said for phrase in _BROKEN):
        return lost(call, address, said)
    return refused(call, address, kind, said)
