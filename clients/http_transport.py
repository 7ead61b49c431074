"""Calls over HTTP, on tritonclient's sync client (gevent underneath) and its asyncio client (aiohttp underneath).

Tensors travel as bytes behind a JSON header (Triton's binary extension), not as JSON numbers. A connection carries
one request at a time, so requests that overlap need several connections. The sync transport belongs to the thread
that made it.
"""

from __future__ import annotations

import asyncio
import ssl
from http.client import HTTPException
from typing import Any

import gevent
import numpy as np
import tritonclient.http as triton
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from clients.access import PLAIN, Access
from clients.calls import Call, Config, Infer, Live, Metadata, Ready, Statistics, subject
from clients.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
)
from clients.signature import DATATYPES, Array
from clients.transport import answer, late, lost, one_line, refused, unreachable

_KINDS: dict[str, type[ClientError]] = {
    "400": InvalidRequest,
    "401": InvalidRequest,
    "404": ModelNotFound,
    "413": InvalidRequest,
    "429": ServerUnavailable,
    "502": ServerUnavailable,
    "503": ServerUnavailable,
    "504": DeadlineExceeded,
}

_WAS_SENT = "ended in the middle"  # a proxy's words (serving/front_door/nginx_config.py) for a server that died
_CUT_SHORT = ("connection closed", "Incomplete response")  # geventhttpclient's words; the type is any parse error's
_BROKEN = (HTTPConnectionClosed, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class HttpTransport:
    """Sync. connections: how many requests may be under way at once, from greenlets of one thread."""

    def __init__(self, address: str, connect_deadline_s: float, connections: int, access: Access = PLAIN) -> None:
        self.address = address
        self._headers = access.headers
        self._client = triton.InferenceServerClient(
            address,
            concurrency=connections,
            connection_timeout=connect_deadline_s,
            network_timeout=None,
            ssl=bool(access.tls),
            ssl_options={"ca_certs": str(access.authorities)} if access.authorities else None,
        )

    def send(self, call: Call, deadline_s: float) -> Any:
        method, arguments = _invocation(call)  # tritonclient writes into the headers that it is given: a copy, then
        timeout = gevent.Timeout(deadline_s)  # of the whole exchange; a socket's timeout starts anew with every read
        try:
            with timeout:
                result = getattr(self._client, method)(**arguments, headers=dict(self._headers))
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            raise late(call, self.address, deadline_s) from None
        except (InferenceServerException, HTTPException, OSError, ValueError, LookupError) as error:
            raise _failure(error, call, self.address, deadline_s, _BROKEN) from None
        return _reply(result, call, self.address)

    def close(self) -> None:
        self._client.close()


class AsyncHttpTransport:
    """The same on asyncio. Belongs to the event loop that is running when it is made."""

    def __init__(self, address: str, connections: int, access: Access = PLAIN) -> None:
        import aiohttp  # not at the top: sync programs need no aiohttp
        import tritonclient.http.aio as triton_aio

        self.address = address
        self._failures = (aiohttp.ClientError, InferenceServerException, OSError, ValueError, LookupError)
        self._unconnected = aiohttp.ClientConnectorError
        self._broken = (aiohttp.ServerConnectionError, aiohttp.ClientPayloadError, aiohttp.ClientOSError, *_BROKEN)
        self._headers = access.headers
        self._client = triton_aio.InferenceServerClient(
            address,
            conn_limit=connections,
            conn_timeout=None,
            ssl=bool(access.tls),
            ssl_context=ssl.create_default_context(cafile=access.authorities) if access.tls else None,
        )

    async def send(self, call: Call, deadline_s: float) -> Any:
        method, arguments = _invocation(call)
        try:
            async with asyncio.timeout(deadline_s):
                result = await getattr(self._client, method)(**arguments, headers=dict(self._headers))
        except TimeoutError:
            raise late(call, self.address, deadline_s) from None
        except self._unconnected as error:
            raise unreachable(self.address, error.strerror or str(error)) from None
        except self._failures as error:
            raise _failure(error, call, self.address, deadline_s, self._broken) from None
        return _reply(result, call, self.address)

    async def close(self) -> None:
        await self._client.close()


def _invocation(call: Call) -> tuple[str, dict[str, Any]]:
    """The method of a call, on both of tritonclient's clients, and its arguments."""
    match call:
        case Live():
            return "is_server_live", {}
        case Ready(model=""):
            return "is_server_ready", {}
        case Ready(model, version):
            return "is_model_ready", _named(model, version)
        case Metadata(model, version):
            return "get_model_metadata", _named(model, version)
        case Config(model, version):
            return "get_model_config", _named(model, version)
        case Statistics():
            return "get_inference_statistics", {}
        case Infer(model, version, inputs):
            tensors = [_tensor(name, array) for name, array in inputs.items()]
            return "infer", {**_named(model, version), "inputs": tensors}


def _named(model: str, version: str) -> dict[str, Any]:
    return {"model_name": model, "model_version": version}


def _tensor(name: str, array: Array) -> Any:
    tensor = triton.InferInput(name, list(array.shape), DATATYPES[np.dtype(array.dtype)])
    tensor.set_data_from_numpy(array)
    return tensor


def _reply(result: Any, call: Call, address: str) -> Any:
    match call:
        case Infer():
            response = result.get_response()
            names = [output["name"] for output in response.get("outputs", [])]
            return answer(call.model, response["model_version"], result, names, address)
        case Statistics():
            return result["model_stats"]
    return result


def _failure(
    error: Exception, call: Call, address: str, deadline_s: float, broken: tuple[type[Exception], ...]
) -> ClientError:
    if isinstance(error, InferenceServerException):
        kind, said = _KINDS.get(str(error.status()), ServerError), error.message() or "no reason given"
        if _WAS_SENT in said:
            return lost(call, address, said)
        return late(call, address, deadline_s) if kind is DeadlineExceeded else refused(call, address, kind, said)
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, broken) or (isinstance(error, HTTPException) and why.startswith(_CUT_SHORT)):
        return lost(call, address, why)
    if "Expected HTTP/" in why:
        return unreachable(address, "what answers is not HTTP; is this the HTTP port, 8000 unless told otherwise?")
    if isinstance(error, OSError):
        return unreachable(address, why)
    return ServerError(f"{address}, asked for {subject(call)}: the answer cannot be read ({one_line(why)})")
