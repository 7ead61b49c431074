"""Calls and streams over gRPC, sync and asyncio, on the service that tritonclient generates from Triton's protocol.

One channel carries any number of requests and of sessions' streams; the sync transport may be shared between threads.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2_grpc

from clients.access import PLAIN, Access
from clients.calls import Call
from clients.errors import ClientError
from clients.grpc_failures import failure
from clients.grpc_messages import invocation, reply
from clients.grpc_stream import AsyncGrpcStream, GrpcStream

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
        self._metadata = tuple(access.headers.items())
        self._channel: grpc.Channel | None = _channel(grpc, address, access)
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def send(self, call: Call, deadline_s: float) -> Any:
        _check_open(self._channel)
        method, message = invocation(call)
        try:
            answered = getattr(self._service, method)(message, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error.code(), error.details(), call, self.address, deadline_s) from None
        return reply(answered, call, self.address)

    def stream(self) -> GrpcStream:
        _check_open(self._channel)
        return GrpcStream(self._service, self.address, self._metadata)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None


class AsyncGrpcTransport:
    """The same on asyncio. Belongs to the event loop that is running when it is made."""

    def __init__(self, address: str, access: Access = PLAIN) -> None:
        self.address = address
        self._metadata = tuple(access.headers.items())
        self._channel: grpc.aio.Channel | None = _channel(grpc.aio, address, access)
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def send(self, call: Call, deadline_s: float) -> Any:
        _check_open(self._channel)
        method, message = invocation(call)
        try:
            answered = await getattr(self._service, method)(message, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error.code(), error.details(), call, self.address, deadline_s) from None
        return reply(answered, call, self.address)

    def stream(self) -> AsyncGrpcStream:
        _check_open(self._channel)
        return AsyncGrpcStream(self._service, self.address, self._metadata)

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def _channel(kind: Any, address: str, access: Access) -> Any:
    """kind: the module grpc, or grpc.aio."""
    if not access.tls:
        return kind.insecure_channel(address, options=_CHANNEL_OPTIONS)
    authorities = access.authorities or ssl.get_default_verify_paths().cafile  # gRPC would trust its own by default
    roots = Path(authorities).read_bytes() if authorities else None
    return kind.secure_channel(address, grpc.ssl_channel_credentials(roots), options=_CHANNEL_OPTIONS)


def _check_open(channel: Any) -> None:
    if channel is None:
        raise ClientError("this client is closed; connect again")
