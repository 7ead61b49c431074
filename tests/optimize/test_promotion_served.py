"""What promotions and rollbacks are to callers of a real Triton: under load, without a lost request."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import clients
from clients.router import Router
from optimize import version_folder
from optimize.promotion import PromotionError, promote, roll_back, standing, withdraw
from serving import running
from serving.config import ServerConfig
from serving.launcher import Server
from tests.optimize.test_promotion import ROOT, mended, roles
from tests.optimize.test_repository import SERVING, _snapshot


@contextmanager
def serving_from(root: Path) -> Iterator[Server]:
    with Server(ServerConfig(root, http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what Triton does after it has answered: it lets a model go in its own time."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def ask(client: clients.Client, model: str = "scaled") -> tuple[str, float]:
    """The version that answers and its factor."""
    answer = client.infer(model, {"x": np.ones((1, 4), np.float32)})
    return answer.version, float(answer["y"][0, 0])


def test_promote_and_roll_back_under_load_lose_no_request(root: Path, put: Callable[..., int]) -> None:
    """Callers who name no version, and callers of the router, all through publication, promotion and rollback."""
    put(1.0)
    answers: Counter[tuple[str, str, float]] = Counter()
    failures: list[Exception] = []
    done = threading.Event()
    stage = ["alone"]

    def keep_asking(routed: bool, number: int) -> None:
        with clients.connect(server.grpc) as client:
            router = Router(client, "scaled", split=0.5, salt="test")
            turn = number
            while not done.is_set():
                turn += 1
                try:
                    if routed:
                        answer = router.infer(f"user {turn}", {"x": np.ones((1, 4), np.float32)}).answer
                        found = answer.version, float(answer["y"][0, 0])
                    else:
                        found = ask(client)
                    answers[stage[0] if not routed else "routed", *found] += 1
                except Exception as error:
                    failures.append(error)

    with serving_from(root) as server, clients.connect(server.grpc) as client:
        askers = [threading.Thread(target=keep_asking, args=(routed, 1000 * routed)) for routed in (False, True)]
        for asker in askers:
            asker.start()
        try:
            put(2.0, candidate=True)
            stage[0] = "candidate"
            assert (ask(client), ask(client, "scaled.candidate")) == (("1", 1.0), ("2", 2.0))
            for _ in range(200):
                ask(client)
            stage[0] = "promoting"
            assert promote(root, "scaled").servers == (server.http,)
            assert ask(client) == ("2", 2.0)
            eventually(lambda: not client.ready("scaled.candidate"))
            assert standing(root, "scaled").served == {server.http: (2,)}
            roll_back(root, "scaled")
            assert ask(client) == ("1", 1.0)
            put(3.0, candidate=True)
            withdraw(root, "scaled")
            assert ask(client) == ("1", 1.0)
        finally:
            done.set()
            for asker in askers:
                asker.join()
        assert failures == []
        assert {key[1:] for key in answers if key[0] == "candidate"} == {("1", 1.0)}, (
            "who names no version is not tested"
        )
        assert {key[1:] for key in answers if key[0] == "routed"} >= {("1", 1.0), ("2", 2.0)}
        assert {key[1:] for key in answers} <= {("1", 1.0), ("2", 2.0), ("3", 3.0)}
        assert server.log.read_text().count('"loading: scaled:1"') == 2, "at the start and to go back to, not otherwise"


def test_a_restart_keeps_what_was_decided(root: Path, put: Callable[..., int]) -> None:
    put(1.0)
    put(2.0)
    put(3.0, candidate=True)
    roll_back(root, "scaled")
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        assert (ask(client), ask(client, "scaled.candidate")) == (("1", 1.0), ("3", 3.0))
    promote(root, "scaled")
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        assert ask(client) == ("3", 3.0)
        assert standing(root, "scaled").served == {server.http: (3,)}


def test_a_server_that_refuses_keeps_what_it_served(
    root: Path, put: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1.0)
    put(2.0, replace(SERVING, queue_delay_us=100))
    put(3.0, candidate=True)
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        before = _snapshot(root)
        model = root / "scaled.candidate/3/model.onnx"
        whole = model.read_bytes()
        model.write_bytes(whole[:60])
        with monkeypatch.context() as patch:
            patch.setattr(version_folder, "check", lambda config, path: None)  # the validator would have found it
            with pytest.raises(PromotionError, match="was not promoted, what was live"):
                promote(root, "scaled")
        model.write_bytes(whole)
        assert (_snapshot(root), ask(client)) == (before, ("2", 2.0))
        model = root / "scaled/1/model.onnx"
        whole = model.read_bytes()
        model.write_bytes(whole[:60])
        with pytest.raises(PromotionError, match=f"was not rolled back, what was live still is: .*{server.http}"):
            roll_back(root, "scaled")
        model.write_bytes(whole)
        (root / "scaled/.withdrawn").rmdir()
        assert (_snapshot(root), ask(client)) == (before, ("2", 2.0))
        [good] = running.find(root)
        with monkeypatch.context() as patch:
            patch.setattr(running, "find", lambda repository: [good, replace(good, http="127.0.0.1:9")])
            with pytest.raises(PromotionError, match="does not answer"):
                promote(root, "scaled")
        assert (_snapshot(root), ask(client)) == (before, ("2", 2.0))
        assert roll_back(root, "scaled").now == 1
        assert ask(client) == ("1", 1.0)


def killed(root: Path, command: str, at: str) -> None:
    """Run a command in a process that ends, without a word, where it would call a function."""
    code = (
        "import os, pathlib; from optimize import promotion; "
        f"promotion.{at} = lambda *_: os._exit(9); promotion.{command}(pathlib.Path({str(root)!r}), 'scaled')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert result.returncode == 9


def test_a_server_that_was_left_behind_follows(root: Path, put: Callable[..., int]) -> None:
    """The folders were changed when the process was killed, and the server did not know of it yet."""
    put(1.0)
    put(2.0)
    with serving_from(root) as server, clients.connect(server.grpc) as client:
        killed(root, "roll_back", at="rollout.load")
        assert standing(root, "scaled").unfinished
        assert ask(client) == ("2", 2.0)
        mended(root)
        assert (roles(root), ask(client)) == ((1, (), None, (2,)), ("1", 1.0))
        put(3.0, candidate=True)
        killed(root, "promote", at="version_folder.prune")
        assert (ask(client), ask(client, "scaled.candidate")) == (("3", 3.0), ("3", 3.0))
        mended(root)
        assert roles(root) == (3, (1,), None, (2,))
        eventually(lambda: not client.ready("scaled.candidate"))
