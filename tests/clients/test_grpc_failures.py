"""What a failed gRPC call means, by its status and the words of the server."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]
import pytest

from clients import ClientError, ConnectionLost, InvalidRequest, NotRun, ServerUnavailable, TooManyStreams
from clients.calls import Infer
from clients.grpc_failures import failure


@pytest.mark.parametrize(
    ("said", "kind", "advice"),
    [
        ("failed to connect to all addresses", ServerUnavailable, "start one with"),
        ("Socket closed", ConnectionLost, "may have run or not"),
        ("maximum queue size exceeded", ServerUnavailable, "ask again later"),
        ("no room for another stream: 2 are open; try again later", TooManyStreams, "try again later"),
        ("the deadline of 0.2 s has passed: the request was not run", NotRun, "was not run"),
    ],
)
def test_unavailable(said: str, kind: type[ClientError], advice: str) -> None:
    error = failure(grpc.StatusCode.UNAVAILABLE, said, Infer("m", "", {}), "host:8001", 1.0)
    assert type(error) is kind
    assert advice in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("status", ["UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"])
def test_what_a_proxy_refuses_is_the_callers_mistake(status: str) -> None:
    error = failure(grpc.StatusCode[status], "the token has expired", Infer("m", "", {}), "a:1", 1.0)
    assert type(error) is InvalidRequest
    assert "the token has expired" in str(error)
