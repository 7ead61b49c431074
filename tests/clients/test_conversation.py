"""What the client asks, in what order, and what it remembers, against a scripted transport; sync and async alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clients import Answer, Client, ClientError, DeadlineExceeded, InvalidRequest, ModelNotFound, ServerUnavailable
from clients.aio import AsyncClient
from clients.calls import Call, Config, Infer, Live, Metadata, Ready, Statistics
from clients.client import Countdown, checked_address
from clients.conversation import ModelVersion

ONE = {"x": np.ones((1, 2), np.float32)}


class FakeServer:
    """Serves one model 'double'; what it serves may change between calls."""

    address = "fake:1"

    def __init__(self) -> None:
        self.version = "1"
        self.size = 2
        self.asked: list[Call] = []
        self.deadlines: list[float] = []
        self.refuse: ClientError | None = None

    def send(self, call: Call, deadline_s: float) -> Any:
        self.asked.append(call)
        self.deadlines.append(deadline_s)
        match call:
            case Live():
                return True
            case Ready(model):
                return model in ("", "double")
            case Statistics():
                return [{"name": "double", "version": v, "inference_count": "3"} for v in ("10", "9")]
            case Metadata(model, version):
                if model != "double" or version not in ("", self.version):
                    raise ModelNotFound("no such model")
                tensor = {"datatype": "FP32", "shape": [-1, self.size]}
                return {
                    "name": "double",
                    "versions": [self.version],
                    "inputs": [{"name": "x", **tensor}],
                    "outputs": [{"name": "y", **tensor}],
                }
            case Config():
                return {"max_batch_size": 4}
            case Infer(model, _, inputs):
                if self.refuse:
                    raise self.refuse
                return Answer({"y": inputs["x"] * 2}, model, self.version)

    def close(self) -> None:
        pass

    def kinds(self) -> list[str]:
        kinds = [type(call).__name__ for call in self.asked]
        self.asked.clear()
        return kinds


class AsyncFake:
    def __init__(self, server: FakeServer) -> None:
        self.address = server.address
        self._server = server

    async def send(self, call: Call, deadline_s: float) -> Any:
        await asyncio.sleep(0)
        return self._server.send(call, deadline_s)

    async def close(self) -> None:
        self._server.close()


Infers = Callable[..., Answer]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture(params=["sync", "async"])
def infer(request: pytest.FixtureRequest, server: FakeServer) -> Infers:
    """``infer`` of a client of either style."""
    if request.param == "sync":
        return Client(server).infer
    client = AsyncClient(AsyncFake(server))
    return lambda *arguments, **options: asyncio.run(client.infer(*arguments, **options))


def test_the_description_is_asked_for_once(server: FakeServer, infer: Infers) -> None:
    answer = infer("double", ONE)
    np.testing.assert_array_equal(answer["y"], [[2, 2]])
    assert (answer.model, answer.version) == ("double", "1")
    infer("double", ONE)
    assert server.kinds() == ["Metadata", "Config", "Infer", "Infer"]


def test_a_bad_request_is_not_sent(server: FakeServer, infer: Infers) -> None:
    with pytest.raises(InvalidRequest):
        infer("double", {"x": np.ones((1, 3), np.float32)})
    assert server.kinds() == ["Metadata", "Config"]


def test_an_answer_of_another_version_renews_the_description(server: FakeServer, infer: Infers) -> None:
    infer("double", ONE)
    server.version = "2"
    assert infer("double", ONE).version == "2"
    assert server.kinds()[-3:] == ["Infer", "Metadata", "Config"]  # to check the answer by
    infer("double", ONE)
    assert server.kinds() == ["Metadata", "Config", "Infer"]


def test_an_answer_of_a_version_that_is_gone_again_is_an_answer(server: FakeServer, infer: Infers) -> None:
    infer("double", ONE)
    original = server.send

    def replaced_meanwhile(call: Call, deadline_s: float) -> Any:
        reply = original(call, deadline_s)
        return Answer(reply.outputs, reply.model, "7") if isinstance(call, Infer) else reply

    server.send = replaced_meanwhile  # type: ignore[method-assign]
    assert infer("double", ONE).version == "7"


def test_a_refusal_by_an_old_description_is_checked_against_a_new_one(server: FakeServer, infer: Infers) -> None:
    infer("double", ONE)
    server.size, server.version = 3, "2"
    assert infer("double", {"x": np.ones((1, 3), np.float32)}).version == "2"


@pytest.mark.parametrize("kind", [InvalidRequest, ModelNotFound])
def test_a_refusal_by_the_server_forgets_the_description_and_is_not_retried(
    server: FakeServer, infer: Infers, kind: type[ClientError]
) -> None:
    infer("double", ONE)
    server.refuse = kind("no")
    with pytest.raises(kind):
        infer("double", ONE)
    assert server.kinds() == ["Metadata", "Config", "Infer", "Infer"]
    server.refuse = None
    infer("double", ONE)
    assert server.kinds() == ["Metadata", "Config", "Infer"]


def test_versions_are_described_apart(server: FakeServer, infer: Infers) -> None:
    infer("double", ONE)
    infer("double", ONE, version="1")
    assert server.asked[-1] == Infer("double", "1", server.asked[-1].inputs)  # type: ignore[union-attr]
    assert server.kinds().count("Metadata") == 2


def test_calls_share_one_deadline(server: FakeServer, infer: Infers) -> None:
    infer("double", ONE, deadline_s=60)
    assert 60 > server.deadlines[0] > server.deadlines[1] > server.deadlines[2] > 0


def test_unknown_models(infer: Infers) -> None:
    with pytest.raises(ModelNotFound):
        infer("triple", ONE)


def test_ready_models_and_signature(server: FakeServer) -> None:
    client = Client(server)
    assert client.ready()
    assert client.ready("double")
    assert not client.ready("triple")
    assert client.models() == [ModelVersion("double", "9", 3), ModelVersion("double", "10", 3)]
    assert client.signature("double").max_batch == 4


def test_no_deadline_at_all_is_refused(infer: Infers) -> None:
    with pytest.raises(ClientError, match="expected more than 0"):
        infer("double", ONE, deadline_s=0)


def test_a_deadline_that_passed_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.5, 101.5])
    monkeypatch.setattr("clients.client.time.monotonic", lambda: next(times))
    clock = Countdown(1.0)
    assert clock.left_s() == 0.5
    with pytest.raises(DeadlineExceeded):
        clock.left_s()


@pytest.mark.parametrize(
    ("reply", "words"), [(DeadlineExceeded("late"), "within 3 s"), (False, "not answer as a live Triton")]
)
def test_a_silent_or_dying_server_is_unavailable(server: FakeServer, reply: Any, words: str) -> None:
    def send(call: Call, deadline_s: float) -> Any:
        if isinstance(reply, Exception):
            raise reply
        return reply

    server.send = send  # type: ignore[method-assign]
    client = Client(server)
    with pytest.raises(ServerUnavailable, match=words):
        client._run(client._conversations.hello("fake:1", 3), 3)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "localhost", "host:port", ":8000", "host:0", "h:70000"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ClientError, match="expected HOST:PORT"):
        checked_address(address, "http")


def test_addresses() -> None:
    assert checked_address("", "grpc") == "127.0.0.1:8001"
    assert checked_address("[::1]:8001", "grpc") == "[::1]:8001"
    with pytest.raises(ClientError, match="use 'grpc' or 'http'"):
        checked_address("", "rest")  # type: ignore[arg-type]
