"""The canary: what it asks, and that any answer of the model's is a sign of life."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from optimize.errors import UserError
from optimize.specs import ServingSpec
from serving import canary
from serving.config import ServerConfig
from serving.heartbeats import Heartbeats
from serving.launcher import Server
from serving.probes import Probes
from tests import tiny_models
from tests.tiny_models import TinyModel

CACHED = ServingSpec(response_cache=True)


def asked(model: TinyModel) -> dict[str, Any]:
    return canary.request(json_format.MessageToDict(model.config, preserving_proto_field_name=True))


def test_a_small_request() -> None:
    body = asked(tiny_models.sums())
    (x,) = body["inputs"]
    assert (x["name"], x["datatype"], x["shape"], len(x["data"])) == ("x", "FP32", [1, 8, 2], 16)
    assert all(-1 <= value <= 1 for value in x["data"])
    assert body["outputs"] == [{"name": "total"}]


@pytest.mark.parametrize("model", [tiny_models.double(), tiny_models.lookup()], ids=lambda model: model.spec.name)
def test_requests_are_not_alike(model: TinyModel) -> None:
    """Whole numbers are drawn from few, so several rows of them are asked for: 256 requests in all, of 8 rows."""
    assert len({json.dumps(asked(model)) for _ in range(60)}) > 30


def test_the_response_cache_does_not_answer_for_a_dead_worker(tmp_path: Path) -> None:
    for model in (tiny_models.double(serving=CACHED), tiny_models.lookup(serving=CACHED)):
        model.write(tmp_path)
    with Server(ServerConfig(tmp_path, http_port=0, grpc_port=0, metrics_port=0)) as server:
        assert server.watchman is not None
        for name in ("double", "lookup"):
            assert [canary.refusal(server.http, name) for _ in range(5)] == [None] * 5
        server.watchman.stop()  # it would replace them
        for beat in Heartbeats(server.log.parent.name).read():
            os.kill(beat.pid, signal.SIGKILL)
        for name in ("double", "lookup"):
            refusals = [canary.refusal(server.http, name) for _ in range(5)]
            assert sum("not healthy" in (why or "") for why in refusals) >= 4, refusals


def test_a_stream_is_begun_and_ended_at_once() -> None:
    body = asked(tiny_models.listen())
    assert body["parameters"] == {"sequence_id": canary.STREAM, "sequence_start": True, "sequence_end": True}
    assert [(entry["datatype"], entry["shape"]) for entry in body["inputs"]] == [("INT16", [1, 16]), ("INT32", [1, 1])]
    assert all(value in (1, 2) for entry in body["inputs"] for value in entry["data"])


def test_every_model_answers(triton: Server) -> None:
    """One of them dislikes the values; one waits for company, which the canary is not."""
    for model in triton.models:
        assert canary.refusal(triton.http, model.name) is None, model.name


def test_who_does_not_answer(triton: Server) -> None:
    assert canary.refusal(triton.http, "nobody") == "it is not loaded"
    assert canary.refusal("127.0.0.1:9", "double") == "no answer within 5 s"
    assert canary.refusal(triton.http, "double_of_four", timeout_s=0.05) == "no answer within 0.05 s"


def test_the_limit_is_of_both_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's configuration comes after 0.3 s, its answer never."""
    config = json.dumps(json_format.MessageToDict(tiny_models.double().config, preserving_proto_field_name=True))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_once() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                time.sleep(0.3)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(config)}\r\n\r\n{config}".encode())

        answering = threading.Thread(target=answer_once)
        answering.start()
        begin = time.monotonic()
        assert canary.refusal(f"127.0.0.1:{server.getsockname()[1]}", "double", timeout_s=1.0) == "no answer within 1 s"
        assert time.monotonic() - begin < 1.2
        answering.join()


def get(address: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as page:
            return page.status, json.load(page)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_probes(triton: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again at once they do not ask the models again."""
    count = list[str]()

    def refusal(http: str, model: str) -> str | None:
        count.append(model)
        return "no" if model == "b" else None

    monkeypatch.setattr(canary, "refusal", refusal)
    served = ["a"]
    answering = Probes(0, triton.http, lambda: served, None)
    try:
        for _ in range(3):
            assert get(answering.address, "/ready") == (200, {"ready": True, "models": {"a": "ready"}, "losses": {}})
        assert count == ["a"]
        served.append("b")
        time.sleep(1.1)
        assert get(answering.address, "/ready") == (
            503,
            {"ready": False, "models": {"a": "ready", "b": "no"}, "losses": {}},
        )
        assert get(answering.address, "/live") == (200, {"live": True})
        with pytest.raises(UserError, match=r"\(--health-port\) on 127.0.0.1: Address already in use; choose another"):
            Probes(int(answering.address.rpartition(":")[2]), triton.http, lambda: served, None)
    finally:
        answering.close()


def test_nobody_is_alive_where_nobody_listens() -> None:
    answering = Probes(0, "127.0.0.1:9", lambda: [], None)
    try:
        assert get(answering.address, "/live") == (503, {"live": False})
        assert get(answering.address, "/ready")[0] == 503
    finally:
        answering.close()
