"""Calls over gRPC, on tritonclient's sync and asyncio clients.

One channel carries any number of requests at once; the sync transport may be shared between threads. The streams of
sessions share a second channel, made for the first of them: tritonclient allows one stream a client.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import grpc  # type: ignore[import-untyped]
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToJson
from tritonclient.utils import InferenceServerException

from clients.access import PLAIN, Access
from clients.calls import Call, Config, Infer, Statistics
from clients.errors import ClientError
from clients.grpc_failures import failure
from clients.grpc_stream import AsyncGrpcStream, GrpcStream
from clients.transport import answer, invocation

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Channels share connections, and their back-off, within a process unless told otherwise: a client opened after a
    # server's restart would inherit another client's wait.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class GrpcTransport:
    """Sync, over one channel."""

    def __init__(self, address: str, access: Access = PLAIN) -> None:
        self.address = address
        self._headers, self._credentials = access.headers, _credentials(access)
        self._client: Any = triton.InferenceServerClient(
            address, creds=self._credentials, channel_args=_CHANNEL_OPTIONS
        )
        self._streams: grpc.Channel | None = None
        self._opening = threading.Lock()

    def send(self, call: Call, deadline_s: float) -> Any:
        self._check_open()
        method, arguments = invocation(call, triton.InferInput)
        try:
            result = getattr(self._client, method)(**arguments, headers=self._headers, client_timeout=deadline_s)
        except InferenceServerException as error:
            raise failure(error, call, self.address, deadline_s) from None
        return _reply(result, call, self.address)

    def stream(self) -> GrpcStream:
        self._check_open()
        with self._opening:
            if self._streams is None:
                self._streams = _channel(grpc, self.address, self._credentials)
        return GrpcStream(self._streams, self.address, self._headers)

    def close(self) -> None:
        if self._streams is not None:
            self._streams.close()
        client, self._client = self._client, None
        if client:
            client.close()
            del client  # whose end closes the channel once more: at the interpreter's exit that can wait for ever

    def _check_open(self) -> None:
        if self._client is None:
            raise ClientError("this client is closed; connect again")


class AsyncGrpcTransport:
    """The same on asyncio. Belongs to the event loop that is running when it is made."""

    def __init__(self, address: str, access: Access = PLAIN) -> None:
        import tritonclient.grpc.aio as triton_aio  # not at the top: it must stay out of gevent programs

        self.address = address
        self._headers, self._credentials = access.headers, _credentials(access)
        self._client = triton_aio.InferenceServerClient(address, creds=self._credentials, channel_args=_CHANNEL_OPTIONS)
        self._streams: grpc.aio.Channel | None = None

    async def send(self, call: Call, deadline_s: float) -> Any:
        method, arguments = invocation(call, triton.InferInput)
        try:
            result = await getattr(self._client, method)(**arguments, headers=self._headers, client_timeout=deadline_s)
        except InferenceServerException as error:
            raise failure(error, call, self.address, deadline_s) from None
        return _reply(result, call, self.address)

    def stream(self) -> AsyncGrpcStream:
        if self._streams is None:
            self._streams = _channel(grpc.aio, self.address, self._credentials)
        return AsyncGrpcStream(self._streams, self.address, self._headers)

    async def close(self) -> None:
        if self._streams is not None:
            await self._streams.close()
        await self._client.close()


def _credentials(access: Access) -> grpc.ChannelCredentials | None:
    if not access.tls:
        return None
    return grpc.ssl_channel_credentials(access.authorities.read_bytes() if access.authorities else None)


def _channel(kind: Any, address: str, credentials: grpc.ChannelCredentials | None) -> Any:
    """kind: the module grpc, or grpc.aio."""
    if credentials is None:
        return kind.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return kind.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)


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
