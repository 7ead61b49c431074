"""A real Triton whose workers are killed, stopped and made to hang, under streams that go on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clients
from clients.signature import Array
from optimize.specs import ServingSpec
from serving import health
from serving.config import ServerConfig
from serving.heartbeats import Heartbeat, Heartbeats
from serving.launcher import Server
from tests import tiny_models
from tests.serving.test_launcher import eventually
from tests.tiny_models import LISTEN_CHUNK

BACK_WITHIN_S = 20.0  # 5 s on a machine that does nothing else
RUN_LIMIT_S = 3.0
LIMIT, IDLE_S = 6, 0.2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    brief = ServingSpec(max_streams=LIMIT, idle_us=int(IDLE_S * 1e6))
    for model in (
        tiny_models.listen(),
        tiny_models.listen("other"),
        tiny_models.listen("brief", brief),
        tiny_models.double(),
        tiny_models.slow(),
    ):
        model.write(repository)
    config = ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, health_port=0, drain_timeout_s=2)
    with Server(replace(config, run_limit_s=RUN_LIMIT_S)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[clients.Client]:
    eventually(lambda: asked(server, "/ready")[0] == 200)  # whatever the test before has broken
    with clients.connect(server.grpc) as client:
        yield client


def heartbeat(server: Server, model: str) -> Heartbeat:
    (found,) = [beat for beat in Heartbeats(server.log.parent.name).read() if beat.model == model]
    return found


def hurt(server: Server, model: str, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(heartbeat(server, model).pid, number)


def reloads(server: Server, model: str) -> int:
    assert server.watchman is not None
    losses = server.watchman.losses.get(model)
    return losses.reloaded if losses else 0


def reloaded(server: Server, model: str, times: int) -> None:
    eventually(lambda: reloads(server, model) == times)


def asked(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    assert server.probes is not None
    try:
        with urllib.request.urlopen(f"http://{server.probes.address}{path}", timeout=30) as page:
            return page.status, json.load(page)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def chunk(value: int) -> Array:
    return np.full(LISTEN_CHUNK, value, np.int16)


def heard(answer: clients.Answer) -> tuple[Any, ...]:
    """Everything that the model says but for how many streams shared the run."""
    return tuple(answer[name].tobytes() for name in ("log_probs", "tokens", "level", "output_lengths"))


def undisturbed(client: clients.Client, values: list[int]) -> list[tuple[Any, ...]]:
    with client.stream("other") as session:
        return [heard(session.send(chunk(value))) for value in values]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_lost_worker_is_replaced_and_others_do_not_notice(
    server: Server, client: clients.Client, number: signal.Signals
) -> None:
    values, before = list(range(1, 40)), reloads(server, "listen")
    expected = undisturbed(client, values)
    with client.stream("listen") as lost, client.stream("other") as other:
        lost.send(chunk(1))
        hurt(server, "listen", number)
        begin, found = time.monotonic(), []
        with pytest.raises(clients.SessionLost) as caught:
            lost.send(chunk(2), deadline_s=BACK_WITHIN_S)
        assert caught.value.answered == 1
        for value in values:
            found.append(heard(other.send(chunk(value))))
            time.sleep(0.05)
        eventually(lambda: reloads(server, "listen") == before + 1)
        with client.stream("listen") as again:
            again.finish(chunk(1))
        assert time.monotonic() - begin < BACK_WITHIN_S
    assert found == expected
    assert reloads(server, "other") == 0


def test_a_request_that_never_ends_is_ended(server: Server, client: clients.Client) -> None:
    steps = {"steps": np.array([[10**10]])}
    begin = time.monotonic()
    with pytest.raises(clients.ServerError, match="is not healthy"):
        client.infer("slow", steps, deadline_s=60)
    assert time.monotonic() - begin > RUN_LIMIT_S
    eventually(lambda: reloads(server, "slow") == 1)
    assert client.infer("slow", {"steps": np.array([[10]])})["done"].item() == 10


def test_a_long_queue_that_moves_is_left_alone(server: Server, client: clients.Client) -> None:
    """Far more work than the limit of one execution, in pieces that are each below it."""
    begin, before = time.monotonic(), reloads(server, "slow")
    with ThreadPoolExecutor(16) as threads:

        def work(_: int) -> int:
            done = 0
            while time.monotonic() - begin < 2.5 * RUN_LIMIT_S:
                client.infer("slow", {"steps": np.array([[5000]])}, deadline_s=60)
                done += 1
            return done

        assert min(threads.map(work, range(16))) >= 1
    assert reloads(server, "slow") == before


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_replayed_streams_are_what_they_would_have_been(server: Server, client: clients.Client, kind: str) -> None:
    """Eight streams, their worker killed twice; and every one without replay is told that it is lost."""
    plans = [[stream * 7 + place * place for place in range(24)] for stream in range(8)]
    expected = [undisturbed(client, plan) for plan in plans]
    before, gates = reloads(server, "listen"), {place: threading.Event() for place in (8, 16)}
    arrived = {place: threading.Semaphore(0) for place in gates}

    def on_sync(plan: list[int]) -> list[tuple[Any, ...]]:
        with client.stream("listen", replay=True) as session:
            answers = []
            for place, value in enumerate(plan):
                if place in gates:
                    arrived[place].release()
                    gates[place].wait(60)
                answers.append(heard(session.send(chunk(value))))
            return answers

    async def on_async() -> list[list[tuple[Any, ...]]]:
        async with await clients.aio.connect(server.grpc) as client:

            async def stream(plan: list[int]) -> list[tuple[Any, ...]]:
                async with client.stream("listen", replay=True) as session:
                    answers = []
                    for place, value in enumerate(plan):
                        if place in gates:
                            arrived[place].release()
                            while not gates[place].is_set():
                                await asyncio.sleep(0.01)
                        answers.append(heard(await session.send(chunk(value))))
                    return answers

            return await asyncio.gather(*map(stream, plans))

    with ThreadPoolExecutor(8) as threads, client.stream("listen") as plain:
        together = threads.submit(asyncio.run, on_async()) if kind == "async" else None
        alone = [threads.submit(on_sync, plan) for plan in plans] if kind == "sync" else []
        try:
            plain.send(chunk(1))
            for kills, place in enumerate(gates, start=1):
                assert all(arrived[place].acquire(timeout=60) for _ in plans)
                hurt(server, "listen")
                gates[place].set()
                reloaded(server, "listen", before + kills)
        finally:
            for gate in gates.values():
                gate.set()
        found = together.result(120) if together else [one.result(120) for one in alone]
        with pytest.raises(clients.SessionLost):
            plain.send(chunk(1))
    assert found == expected


def test_a_start_above_the_limit_is_refused_at_once(server: Server, client: clients.Client) -> None:
    """While those that were admitted go on; a place that becomes free is taken."""
    sessions = [client.stream("brief") for _ in range(LIMIT)]
    done = threading.Event()

    def talk(session: clients.Session) -> int:
        sent = 0
        with session:
            while not done.is_set():
                session.send(chunk(1))
                sent += 1
                started.add(session)
            session.finish(chunk(1))
        return sent

    started: set[clients.Session] = set()
    with ThreadPoolExecutor(LIMIT) as threads:
        talking = [threads.submit(talk, session) for session in sessions]
        try:
            eventually(lambda: len(started) == LIMIT)
            times = []
            for _ in range(3 * LIMIT):
                with client.stream("brief") as session:
                    begin = time.monotonic()
                    with pytest.raises(clients.TooManyStreams, match=f"{LIMIT} are open .* raise the model's"):
                        session.send(chunk(1))
                    times.append(time.monotonic() - begin)
        finally:
            done.set()
        assert min(one.result(60) for one in talking) > 1
    assert sorted(times)[len(times) // 2] < 0.1
    with client.stream("brief") as session:
        session.finish(chunk(1))


def test_streams_that_were_left_free_their_places(server: Server, client: clients.Client) -> None:
    """Cancelled in the middle of a request, closed, or just silent; five times as many as there are places."""
    for _ in range(5):
        silent = [client.stream("brief") for _ in range(LIMIT)]
        for place, session in enumerate(silent):
            session.__enter__()
            if place % 3:
                session.send(chunk(1))
            else:
                assert session._opened is not None
                ledger, stream = session._opened
                stream.put(ledger.sent(chunk(1), False, 10.0))
            if place % 2:
                session.close()
        time.sleep(IDLE_S + 0.3)
        for session in silent:
            session.close()
    with client.stream("brief") as session:
        session.finish(chunk(1))
    assert heartbeat(server, "brief").streams <= LIMIT


def test_a_chunk_whose_deadline_has_passed_is_not_run(server: Server, client: clients.Client) -> None:
    """The worker is stopped for a moment, as if it were busy; what waited too long is dropped, and its state stays."""
    with client.stream("listen") as session:
        first = [heard(session.send(chunk(value))) for value in (1, 2)]
        hurt(server, "listen", signal.SIGSTOP)
        with pytest.raises(clients.DeadlineExceeded):
            session.send(chunk(3), deadline_s=0.1)
        time.sleep(0.3)
        hurt(server, "listen", signal.SIGCONT)
        with pytest.raises(clients.NotRun, match=r"the deadline of 0.1 s has passed: .* was not run"):
            session.receive(deadline_s=30)
        assert [*first, heard(session.send(chunk(3)))] == undisturbed(client, [1, 2, 3])


def test_single_requests_that_nobody_waits_for_are_not_run(server: Server, client: clients.Client) -> None:
    """The end of their gRPC calls takes them out of Triton's queue; a few may have left it by then."""
    begin = time.monotonic()
    client.infer("slow", {"steps": np.array([[5000]])}, deadline_s=60)
    steps = int(0.6 * 5000 / (time.monotonic() - begin))  # for 0.6 s

    def runs() -> int:
        return next(model.inferences for model in client.models() if model.model == "slow")

    before = runs()
    with ThreadPoolExecutor(13) as threads:
        waiting = threads.submit(client.infer, "slow", {"steps": np.array([[steps]])}, deadline_s=60)
        eventually(lambda: heartbeat(server, "slow").busy)
        late = [threads.submit(client.infer, "slow", {"steps": np.array([[1]])}, deadline_s=0.2) for _ in range(12)]
        assert all(isinstance(one.exception(), clients.DeadlineExceeded) for one in late)
        waiting.result()
    client.infer("slow", {"steps": np.array([[1]])}, deadline_s=60)
    assert 2 <= runs() - before < 8


def test_readiness_follows_the_canaries(server: Server, client: clients.Client) -> None:
    status, said = asked(server, "/ready")
    assert (status, said["ready"], set(said["models"].values())) == (200, True, {"ready"})
    hurt(server, "double", signal.SIGSTOP)
    eventually(lambda: asked(server, "/ready")[0] == 503)
    assert asked(server, "/live") == (200, {"live": True})
    eventually(lambda: asked(server, "/ready")[0] == 200)
    assert asked(server, "/ready")[1]["losses"]["double"]["lost"] == 1
    assert asked(server, "/nowhere")[0] == 404


def test_a_server_that_lost_workers_still_ends_soon(tmp_path: Path) -> None:
    """Triton keeps a model for ever that a request found dead; nobody waits for it."""
    tiny_models.double().write(tmp_path)
    x = {"x": np.ones((1, 4), np.float32)}
    with Server(ServerConfig(tmp_path, http_port=0, grpc_port=0, metrics_port=0)) as server:
        with clients.connect(server.grpc) as client:
            hurt(server, "double")
            with pytest.raises(clients.ClientError):
                client.infer("double", x)
            answered(lambda: client.infer("double", x))
        begin = time.monotonic()
    assert time.monotonic() - begin < server.config.drain_timeout_s / 2


def test_a_server_that_does_not_say_what_it_serves_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the lost worker had counted is removed, though nobody asks for the metrics."""
    tiny_models.double().write(tmp_path)
    silences = [2]
    exchange = health.exchange

    def slow_at_first(address: str, method: str, path: str, *more: Any, **named: Any) -> tuple[int, str] | None:
        if path.endswith("/index") and silences[0]:
            silences[0] -= 1
            return None
        return exchange(address, method, path, *more, **named)

    with Server(ServerConfig(tmp_path, http_port=0, grpc_port=0, metrics_port=0)) as server:
        counts = set(Path("/dev/shm").glob(f"{server.log.parent.name}_count_*"))
        assert len(counts) == 1
        monkeypatch.setattr(health, "exchange", slow_at_first)
        hurt(server, "double")
        reloaded(server, "double", 1)
        with clients.connect(server.grpc) as client:
            answered(lambda: client.infer("double", {"x": np.ones((1, 4), np.float32)}))
        assert not counts & set(Path("/dev/shm").glob(f"{server.log.parent.name}_count_*"))


def answered(ask: Callable[[], clients.Answer]) -> None:
    def succeeds() -> bool:
        try:
            ask()
        except clients.ClientError:
            return False
        return True

    eventually(succeeds)
