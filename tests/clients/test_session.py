"""Sessions, sync and async, against a server in this process whose faults are planned.

Every test is written once: ``act`` runs a coroutine over an ``Open`` session, whose methods are awaitable either way.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import clients
from clients import Answer, AsyncSession, Session
from clients.calls import Reply
from clients.grpc_stream import GrpcStream
from clients.grpc_transport import AsyncGrpcTransport, GrpcTransport
from clients.signature import Array
from tests.clients.scripted_triton import IDLE_LIMIT_S, ScriptedTriton, scripted


def x(value: float, rows: int = 1) -> dict[str, Array]:
    return {"x": np.full((rows, 1), value, np.float32)}


class Open:
    """A session of either kind, awaited."""

    def __init__(self, session: Session | AsyncSession) -> None:
        self.session = session

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        result = getattr(self.session, method)(*arguments, **options)
        return await result if inspect.isawaitable(result) else result

    async def send(self, value: float, **options: Any) -> float:
        return total(await self.call("send", x(value), **options))

    async def finish(self, value: float, **options: Any) -> float:
        return total(await self.call("finish", x(value), **options))

    async def receive(self, **options: Any) -> float:
        return total(await self.call("receive", **options))


def total(answer: Answer) -> float:
    assert (answer.model, answer.version) == ("totals", "3")
    return float(answer["y"].item())


Act = Callable[[Callable[[Open], Awaitable[None]]], None]


@pytest.fixture
def server() -> Iterator[ScriptedTriton]:
    with scripted() as triton:
        yield triton
        assert triton.all_closed(), "a client left its stream open"


@pytest.fixture(params=["sync", "async"])
def act(request: pytest.FixtureRequest, server: ScriptedTriton) -> Act:
    """Run the test's story on one session of a client of its own."""

    async def on_async(story: Callable[[Open], Awaitable[None]]) -> None:
        async with (
            await clients.aio.connect(server.address) as client,
            client.stream("totals") as session,
        ):
            await story(Open(session))

    async def on_sync(story: Callable[[Open], Awaitable[None]]) -> None:
        with clients.connect(server.address) as client, client.stream("totals") as session:
            await story(Open(session))

    return lambda story: asyncio.run(on_sync(story) if request.param == "sync" else on_async(story))


def test_a_session(server: ScriptedTriton, act: Act) -> None:
    async def story(s: Open) -> None:
        assert [await s.send(1), await s.send(2), await s.finish(4)] == [1, 3, 7]
        assert s.session.answered == 3
        assert s.session.signature.idle_limit_s == IDLE_LIMIT_S

    act(story)
    assert [(seen["start"], seen["end"]) for seen in server.seen] == [(True, False), (False, False), (False, True)]
    assert {seen["version"] for seen in server.seen} == {"3"}
    assert len({seen["id"] for seen in server.seen}) == 3
    (sequence,) = {seen["sequence"] for seen in server.seen}
    assert 0 < sequence < 2**63
    assert server.totals == {}


def test_a_session_of_one_chunk(server: ScriptedTriton, act: Act) -> None:
    async def story(s: Open) -> None:
        assert await s.finish(5) == 5

    act(story)
    assert (server.seen[0]["start"], server.seen[0]["end"]) == (True, True)


def test_leaving_early_sends_nothing_more(server: ScriptedTriton, act: Act) -> None:
    async def story(s: Open) -> None:
        await s.send(1)

    act(story)
    assert len(server.seen) == 1
    assert server.all_closed()


def test_nothing_can_be_sent_after_the_end(server: ScriptedTriton, act: Act) -> None:
    async def story(s: Open) -> None:
        await s.finish(1)
        with pytest.raises(clients.ClientError, match=r"^stream \d+ of model 'totals' at .* is finished; open a new"):
            await s.send(1)
        with pytest.raises(clients.ClientError, match="is finished"):
            await s.receive()
        await s.call("close")
        await s.call("close")
        with pytest.raises(clients.ClientError, match=r"was closed; open a new one with stream\('totals'\)"):
            await s.finish(1)

    act(story)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": np.ones((1, 1))}, "expected float32"),
        ({"x": np.ones(1, np.float32)}, "array[None]"),
        ({"x": np.full((1, 1), np.nan, np.float32)}, "are NaN"),
        (x(1) | {"state_sum": np.ones((1, 1), np.float32)}, "has no input 'state_sum'"),
        ({}, "needs the input 'x'"),
        (x(1, rows=2), "is one stream, so every input has 1 row, but 2 came"),
    ],
    ids=["dtype", "rank", "nan", "state", "missing", "rows"],
)
def test_wrong_inputs_are_not_sent(server: ScriptedTriton, act: Act, inputs: dict[str, Array], words: str) -> None:
    async def story(s: Open) -> None:
        assert await s.send(1) == 1
        with pytest.raises(clients.InvalidRequest) as caught:
            await s.call("send", inputs)
        assert words in str(caught.value)
        assert await s.finish(2) == 3

    act(story)
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("refuse", clients.InvalidRequest, r"asked for model 'totals': input 'x': expected a finite value, got 1e30$"),
        ("fail", clients.ServerError, "the model failed: out of memory; see the server's log"),
        ("full", clients.TooManyStreams, "no room for another stream: 2 are open .*; try again later$"),
        ("late", clients.NotRun, "the deadline of 0.1 s has passed: .* was not run; .* send it again$"),
    ],
)
def test_a_refused_chunk_leaves_the_session_open(
    server: ScriptedTriton, act: Act, fault: str, error: type[Exception], words: str
) -> None:
    server.faults = {0: fault, 2: fault}

    async def story(s: Open) -> None:
        with pytest.raises(error, match=words):
            await s.send(1)
        assert await s.send(1) == 1
        with pytest.raises(error, match=words):
            await s.send(2)
        assert [await s.send(2), await s.finish(4)] == [3, 7]

    act(story)
    assert [seen["start"] for seen in server.seen] == [True, True, False, False, False], "START until one is answered"
    assert len({seen["id"] for seen in server.seen}) == 5


def test_a_refused_last_chunk_may_have_ended_the_stream(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "refuse"}

    async def story(s: Open) -> None:
        await s.send(1)
        with pytest.raises(clients.InvalidRequest):
            await s.finish(2)
        with pytest.raises(clients.SessionLost, match="after 1 answered chunks: the server says: no such stream"):
            await s.finish(2)

    act(story)


def test_an_answer_that_breaks_the_description(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "shrink"}

    async def story(s: Open) -> None:
        await s.send(1)
        with pytest.raises(clients.ServerError, match="promises the output 'y'"):
            await s.send(1)

    act(story)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("close", "the server closed the stream"),
        ("abort", "the stream broke: Socket closed"),
        ("forget", "the server says: no such stream"),
        ("misname", "the answer to request 'someone else's' came where"),
        ("no model", "'totals' version 3 is not found"),
    ],
)
def test_a_lost_session(server: ScriptedTriton, act: Act, fault: str, words: str) -> None:
    server.faults = {2: fault}

    async def story(s: Open) -> None:
        assert [await s.send(1), await s.send(2)] == [1, 3]
        with pytest.raises(clients.SessionLost) as caught:
            await s.send(3)
        message = str(caught.value)
        assert message.startswith(f"stream {server.seen[0]['sequence']} of model 'totals' at {server.address} is lost")
        assert "after 2 answered chunks: " in message
        assert words in message
        assert f"keeps a silent stream {IDLE_LIMIT_S} s" in message
        assert "open a new one with stream('totals')" in message
        assert "\n" not in message
        assert caught.value.answered == 2
        assert pickle.loads(pickle.dumps(caught.value)).answered == 2
        with pytest.raises(clients.ClientError, match="was lost; open a new one"):
            await s.send(3)

    act(story)
    assert len(server.seen) == 3


def test_lost_at_the_first_chunk(server: ScriptedTriton, act: Act) -> None:
    server.faults = {0: "close"}

    async def story(s: Open) -> None:
        with pytest.raises(clients.SessionLost, match="after 0 answered chunks"):
            await s.send(3)

    act(story)


def test_a_late_answer_is_received_later(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "hold", 3: "hold"}

    async def story(s: Open) -> None:
        await s.send(1)
        with pytest.raises(clients.DeadlineExceeded, match=r"within 0.05 s; .* receive\(\) waits for chunk 2 anew"):
            await s.send(2, deadline_s=0.05)
        with pytest.raises(clients.DeadlineExceeded):
            await s.receive(deadline_s=0.05)
        with pytest.raises(clients.ClientError, match=r"chunk 2 is still unanswered; take its answer with receive\(\)"):
            await s.send(4)
        server.released.set()
        assert await s.receive() == 3
        with pytest.raises(clients.ClientError, match="every chunk has been answered"):
            await s.receive()
        assert await s.send(4) == 7
        server.released.clear()
        with pytest.raises(clients.DeadlineExceeded):
            await s.finish(8, deadline_s=0.05)
        server.released.set()
        assert await s.receive() == 15
        with pytest.raises(clients.ClientError, match="is finished"):
            await s.send(1)

    act(story)


def test_leaving_while_an_answer_is_owed(server: ScriptedTriton, act: Act) -> None:
    server.faults = {0: "hold"}

    async def story(s: Open) -> None:
        with pytest.raises(clients.DeadlineExceeded):
            await s.send(2, deadline_s=0.05)

    act(story)
    server.released.set()


def test_deadlines_that_no_chunk_could_meet(server: ScriptedTriton, act: Act) -> None:
    async def story(s: Open) -> None:
        with pytest.raises(clients.ClientError, match="expected more than 0"):
            await s.send(1, deadline_s=0)
        assert await s.send(1) == 1

    act(story)


def test_streams_of_one_client_do_not_mix(server: ScriptedTriton) -> None:
    def run(client: clients.Client, step: int) -> list[float]:
        with client.stream("totals") as session:
            return [total(session.send(x(step))) for _ in range(20)]

    with clients.connect(server.address) as client, ThreadPoolExecutor(16) as threads:
        sums = list(threads.map(lambda step: run(client, step), range(1, 17)))
    assert sums == [[step * (n + 1) for n in range(20)] for step in range(1, 17)]
    assert len({seen["sequence"] for seen in server.seen}) == 16

    async def many() -> list[list[float]]:
        async def one(client: clients.aio.AsyncClient, step: int) -> list[float]:
            async with client.stream("totals") as session:
                return [total(await session.send(x(step))) for _ in range(20)]

        async with await clients.aio.connect(server.address) as client:
            return await asyncio.gather(*(one(client, step) for step in range(1, 17)))

    assert asyncio.run(many()) == sums


def test_no_thread_is_left_behind(server: ScriptedTriton) -> None:
    with clients.connect(server.address) as client:
        for _ in range(20):
            with client.stream("totals") as session:
                session.send(x(1))
        assert server.all_closed()
        assert "clients.GrpcStream" not in [thread.name for thread in threading.enumerate()]


def test_two_threads_may_not_share_a_session(server: ScriptedTriton) -> None:
    server.faults = {0: "hold"}
    with (
        clients.connect(server.address) as client,
        client.stream("totals") as session,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(session.send, x(1))
        while not server.seen:
            time.sleep(0.001)
        with pytest.raises(clients.ClientError, match="is in use by another thread or task"):
            session.send(x(1))
        server.released.set()
        assert total(first.result()) == 1


def test_closing_under_a_waiting_thread(server: ScriptedTriton) -> None:
    server.faults = {0: "hold"}
    with (
        clients.connect(server.address) as client,
        client.stream("totals") as session,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(session.send, x(1))
        while not server.seen:
            time.sleep(0.001)
        session.close()
        with pytest.raises(clients.ClientError, match="was closed before chunk 1 was answered"):
            first.result()
    server.released.set()


@pytest.mark.parametrize("method", ["send", "finish"])
def test_closing_while_an_answer_is_taken(server: ScriptedTriton, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    with clients.connect(server.address) as client, client.stream("totals") as session:
        take = GrpcStream.take

        def taken(stream: GrpcStream, deadline_s: float) -> Reply:
            reply = take(stream, deadline_s)
            session.close()  # as another thread would at this moment
            return reply

        monkeypatch.setattr(GrpcStream, "take", taken)
        assert total(getattr(session, method)(x(1))) == 1
        with pytest.raises(clients.ClientError, match="was closed; open a new one"):
            session.send(x(2))
    assert len(server.seen) == 1


def test_a_cancelled_task_leaves_the_answer_to_receive(server: ScriptedTriton) -> None:
    server.faults = {1: "hold"}

    async def story() -> None:
        async with await clients.aio.connect(server.address) as client, client.stream("totals") as session:
            await session.send(x(1))
            waiting = asyncio.create_task(session.send(x(2)))
            while len(server.seen) < 2:
                await asyncio.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            server.released.set()
            assert total(await session.receive()) == 3

    asyncio.run(story())


def entering(kind: str, address: str, model: str = "totals", **options: Any) -> None:
    async def on_async() -> None:
        async with await clients.aio.connect(address, **options) as client, client.stream(model):
            pass

    if kind == "async":
        asyncio.run(on_async())
        return
    with clients.connect(address, **options) as client, client.stream(model):
        pass


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_models_that_cannot_be_streamed(server: ScriptedTriton, kind: str) -> None:
    with pytest.raises(clients.InvalidRequest, match=r"'plain' at .* keeps no state .* ask it with infer\(\)"):
        entering(kind, server.address, "plain")
    with pytest.raises(clients.ModelNotFound, match="unknown model: 'nobody'"):
        entering(kind, server.address, "nobody")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_that_went_away(kind: str) -> None:
    """For good, before the first chunk and after one."""

    async def story() -> None:
        for chunks in (0, 1):
            with scripted() as server:
                if kind == "sync":
                    client: Any = clients.connect(server.address)
                else:
                    client = await clients.aio.connect(server.address)
                session = client.stream("totals")
                opened = Open(session)
                await opened.call("__aenter__" if kind == "async" else "__enter__")
                for _ in range(chunks):
                    await opened.send(1)
            # Before the first answer it depends on who notices first: the server turns the stream away, or it breaks.
            kinds = clients.SessionLost if chunks else (clients.SessionLost, clients.ServerUnavailable)
            with pytest.raises(kinds):
                await opened.send(1)
            with pytest.raises(clients.ServerUnavailable, match="no Triton server answers at"):
                await Open(client.stream("totals")).call("__aenter__" if kind == "async" else "__enter__")
            await opened.call("close")
            await Open(client).call("close")

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_to_nobody(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The description is known, but where the stream should go nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"127.0.0.1:{listener.getsockname()[1]}"

    async def story(session: Any) -> None:
        with pytest.raises(clients.ServerUnavailable, match=f"no Triton server answers at {nobody}"):
            await Open(session).send(1)
        with pytest.raises(clients.ClientError, match="never opened"):
            await Open(session).send(1)

    async def on_async(server: ScriptedTriton) -> None:
        async with await clients.aio.connect(server.address) as client:
            transport = AsyncGrpcTransport(nobody)
            monkeypatch.setattr(client._transport, "stream", transport.stream)
            async with client.stream("totals") as session:
                await story(session)
            await transport.close()

    with scripted() as server:
        if kind == "async":
            asyncio.run(on_async(server))
            return
        with clients.connect(server.address) as client, closing(GrpcTransport(nobody)) as transport:
            monkeypatch.setattr(client._transport, "stream", transport.stream)
            with client.stream("totals") as session:
                asyncio.run(story(session))


def test_a_session_is_used_inside_with_and_once(server: ScriptedTriton) -> None:
    with clients.connect(server.address) as client:
        session = client.stream("totals")
        with pytest.raises(clients.ClientError, match="use it inside 'with"):
            session.send(x(1))
        session.close()
        with session:
            session.send(x(1))
        with pytest.raises(clients.ClientError, match="a session is for one stream"), session:
            pass
    with pytest.raises(clients.ClientError, match="this client is closed"), client.stream("totals"):
        pass


def test_http_has_no_streams() -> None:
    from clients.aio import AsyncClient
    from clients.http_transport import HttpTransport

    client = clients.Client(HttpTransport("127.0.0.1:8000", 1.0, 1))
    with pytest.raises(clients.ClientError, match="streaming sessions need gRPC; connect with protocol='grpc'"):
        client.stream("totals")
    client.close()

    class Unstreamed:
        address = "127.0.0.1:8000"

        async def send(self, call: Any, deadline_s: float) -> Any: ...

        async def close(self) -> None: ...

    with pytest.raises(clients.ClientError, match="need gRPC"):
        AsyncClient(Unstreamed()).stream("totals")
