"""What the status UNAVAILABLE means, by the server's words."""

from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

from clients import ClientError, ConnectionLost, NotRun, ServerUnavailable, TooManyStreams
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
    error = failure(
        InferenceServerException(said, status="StatusCode.UNAVAILABLE"), Infer("m", "", {}), "host:8001", 1.0
    )
    assert type(error) is kind
    assert advice in str(error)
    assert "\n" not in str(error)
