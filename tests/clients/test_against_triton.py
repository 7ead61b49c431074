"""The four clients against a real Triton: right answers, and every failure as the right error."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gevent.pool import Group

import clients
from clients.client import ProtocolName
from clients.signature import DTYPES, Array
from serving.launcher import Server
from tests.clients.practice_server import ECHOED, KINDS, MAX_BATCH, ask

Kind = tuple[ProtocolName, str]

pytestmark = pytest.mark.parametrize("kind", KINDS, ids=[f"{protocol}-{style}" for protocol, style in KINDS])


def request(rows: int = 1) -> dict[str, Array]:
    random = np.random.default_rng(7)
    return {
        "history": random.normal(4000, 500, (rows, 72, 16)).astype(np.float32),
        "calendar": random.normal(size=(rows, 24, 14)).astype(np.float32),
    }


def seconds(value: float) -> dict[str, Array]:
    return {"seconds": np.array([value], np.float32)}


@pytest.mark.parametrize("rows", [1, MAX_BATCH])
def test_a_forecast(practice: Server, kind: Kind, rows: int) -> None:
    inputs = request(rows)
    answer = ask(practice, kind, "infer", "load_forecast", inputs)
    np.testing.assert_array_equal(answer["forecast"], inputs["history"][:, -24:, 0])
    assert (answer.model, answer.version) == ("load_forecast", "1")


def test_a_version_by_name(practice: Server, kind: Kind) -> None:
    assert ask(practice, kind, "infer", "load_forecast", request(), version="1").version == "1"
    with pytest.raises(clients.ModelNotFound, match="version 7 is not found"):
        ask(practice, kind, "infer", "load_forecast", request(), version="7")


def test_every_datatype_arrives_and_returns_bit_for_bit(practice: Server, kind: Kind) -> None:
    random = np.random.default_rng(3)
    inputs = {name: random.integers(0, 2, (3, 2)).astype(DTYPES[datatype]) for name, datatype in ECHOED.items()}
    inputs["double"] = random.normal(size=(3, 2))
    answer = ask(practice, kind, "infer", "echo", inputs | {"note": np.array([b"bytes", "text"], object)})
    for name, array in inputs.items():
        assert answer[f"{name}_out"].dtype == array.dtype
        np.testing.assert_array_equal(answer[f"{name}_out"], array)


def test_an_optional_input_may_be_left_out(practice: Server, kind: Kind) -> None:
    inputs = {name: np.zeros((1, 2), DTYPES[datatype]) for name, datatype in ECHOED.items()}
    assert set(ask(practice, kind, "infer", "echo", inputs).outputs) == {f"{name}_out" for name in ECHOED}


def test_signature_models_and_readiness(practice: Server, kind: Kind) -> None:
    signature = ask(practice, kind, "signature", "load_forecast")
    assert signature.inputs[0] == clients.Tensor("history", "FP32", (-1, 72, 16))
    assert signature.max_batch == MAX_BATCH
    assert [(model.model, model.version) for model in ask(practice, kind, "models")] == [
        ("echo", "1"),
        ("load_forecast", "1"),
        ("slow", "1"),
    ]
    assert ask(practice, kind, "ready")
    assert ask(practice, kind, "ready", "load_forecast")
    assert not ask(practice, kind, "ready", "load_forecast", version="9")
    assert not ask(practice, kind, "ready", "nobody")


def test_an_unknown_model(practice: Server, kind: Kind) -> None:
    with pytest.raises(clients.ModelNotFound, match=r"'nobody' is not found; .* Client.models()"):
        ask(practice, kind, "infer", "nobody", request())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"history": np.ones((1, 72, 16))}, "expected float32 (batch, 72, 16), got float64"),
        ({"history": np.ones((72, 16), np.float32)}, "array[None]"),
        ({"history": np.ones((1, 10, 16), np.float32)}, "got float32 (1, 10, 16)"),
        ({"history": np.full((1, 72, 16), np.nan, np.float32)}, "are NaN or infinite"),
        (request(9), f"takes 1 to {MAX_BATCH} rows"),
    ],
    ids=["dtype", "rank", "length", "nan", "rows"],
)
def test_bad_requests(practice: Server, kind: Kind, change: dict[str, Array], words: str) -> None:
    with pytest.raises(clients.InvalidRequest) as caught:
        ask(practice, kind, "infer", "load_forecast", request() | change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_fails(practice: Server, kind: Kind) -> None:
    with pytest.raises(clients.ServerError, match="model 'slow': cannot sleep backwards; see the server's log"):
        ask(practice, kind, "infer", "slow", seconds(-1))


def test_an_answer_too_late(practice: Server, kind: Kind) -> None:
    with pytest.raises(clients.DeadlineExceeded, match=r"model 'slow' at .* did not answer within"):
        ask(practice, kind, "infer", "slow", seconds(0.5), deadline_s=0.3)


def test_requests_overlap(triton: Server, kind: Kind) -> None:
    """The model waits for four requests before it runs: only if all four are under way at once do they run as four."""
    inputs = {"x": np.ones((1, 4), np.float32)}
    protocol, style = kind
    address = triton.grpc if protocol == "grpc" else triton.http

    async def four() -> list[clients.Answer]:
        async with await clients.aio.connect(address, protocol=protocol) as client:
            return await asyncio.gather(*(client.infer("double_of_four", inputs) for _ in range(4)))

    if style == "async":
        answers = asyncio.run(four())
    else:
        with clients.connect(address, protocol=protocol, connections=4) as client:
            client.signature("double_of_four")
            if protocol == "grpc":  # one channel for many threads
                with ThreadPoolExecutor(4) as threads:
                    answers = list(threads.map(lambda _: client.infer("double_of_four", inputs), range(4)))
            else:  # many connections for the greenlets of one thread
                answers = Group().map(lambda _: client.infer("double_of_four", inputs), range(4))
    assert [answer["rows"].item() for answer in answers] == [4] * 4
