"""Sessions that send everything again when their stream is lost, against a server whose faults are planned."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest

import clients
from clients import Replay
from tests.clients.scripted_triton import ScriptedTriton, scripted
from tests.clients.test_session import Open, x

Act = Callable[..., None]


@pytest.fixture
def server() -> Iterator[ScriptedTriton]:
    with scripted() as triton:
        yield triton
        assert triton.all_closed(), "a client left a stream open"


@pytest.fixture(params=["sync", "async"])
def act(request: pytest.FixtureRequest, server: ScriptedTriton) -> Act:
    """Run the test's story on one session of a client of its own."""

    async def on_async(story: Callable[[Open], Awaitable[None]], replay: bool | Replay) -> None:
        async with (
            await clients.aio.connect(server.address) as client,
            client.stream("totals", replay=replay) as session,
        ):
            await story(Open(session))

    async def on_sync(story: Callable[[Open], Awaitable[None]], replay: bool | Replay) -> None:
        with clients.connect(server.address) as client, client.stream("totals", replay=replay) as session:
            await story(Open(session))

    def run(story: Callable[[Open], Awaitable[None]], replay: bool | Replay = True) -> None:
        asyncio.run(on_sync(story, replay) if request.param == "sync" else on_async(story, replay))

    return run


@pytest.mark.parametrize("fault", ["die", "close", "abort", "misname"])
@pytest.mark.parametrize("lost_at", [0, 2, 3])
def test_the_answers_are_those_of_an_undisturbed_stream(
    server: ScriptedTriton, act: Act, fault: str, lost_at: int
) -> None:
    server.faults = {lost_at: fault}

    async def story(s: Open) -> None:
        assert [await s.send(1), await s.send(2), await s.send(4), await s.finish(8)] == [1, 3, 7, 15]
        assert s.session.answered == 4

    act(story)
    again = server.seen[lost_at + 1 :]
    assert [seen["start"] for seen in again] == [True] + [False] * 3
    assert [seen["end"] for seen in again] == [False] * 3 + [True]
    assert len({seen["sequence"] for seen in server.seen}) == 2
    assert len({seen["id"] for seen in server.seen}) == len(server.seen)


def test_it_may_be_lost_again_and_again(server: ScriptedTriton, act: Act) -> None:
    """Any of the chunks, replayed ones included; each answer is what it would have been."""
    draw = random.Random(4)
    server.faults = {place: draw.choice(["die", "forget", "close", "abort", "full"]) for place in range(3, 90, 9)}

    async def story(s: Open) -> None:
        answers = list[float]()
        while len(answers) < 12:
            try:
                answers.append(await s.send(len(answers) + 1))
            except clients.TooManyStreams:  # outside a replay: the chunk was turned away, and the session is open
                continue
        assert answers == [n * (n + 1) / 2 for n in range(1, 13)]

    act(story, Replay(deadline_s=60))
    assert len({seen["sequence"] for seen in server.seen}) > 4


@pytest.mark.parametrize("fault", ["die", "close", "abort", "full", "forget"])
def test_a_first_chunk_may_be_lost_when_it_is_sent_again(server: ScriptedTriton, act: Act, fault: str) -> None:
    server.faults = {0: "die", 1: fault}

    async def story(s: Open) -> None:
        assert [await s.send(1), await s.finish(2)] == [1, 3]

    act(story)


def test_the_caller_may_use_its_array_again(server: ScriptedTriton, act: Act) -> None:
    server.faults = {2: "die"}

    async def story(s: Open) -> None:
        array, sums = np.zeros((1, 1), np.float32), []
        for value in (1, 2, 4):
            array[:] = value
            answer = await s.call("send", {"x": array})
            sums.append(answer["y"].item())
        assert sums == [1, 3, 7]

    act(story)


def test_a_late_answer_that_is_lost_is_received_nevertheless(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "hold"}

    async def story(s: Open) -> None:
        await s.send(1)
        with pytest.raises(clients.DeadlineExceeded):
            await s.send(2, deadline_s=0.05)
        server.totals.clear()
        server.released.set()
        assert await s.receive() == 3

    act(story)


@pytest.mark.parametrize(("chunks", "mended"), [(2, False), (3, True)])
def test_beyond_the_bound_it_says_so(server: ScriptedTriton, act: Act, chunks: int, mended: bool) -> None:
    server.faults = {3: "die"}

    async def story(s: Open) -> None:
        assert [await s.send(1), await s.send(2), await s.send(4)] == [1, 3, 7]
        if mended:
            assert await s.send(8) == 15
            return
        with pytest.raises(clients.SessionLost, match="of its chunks only 2 could be kept for a replay") as caught:
            await s.send(8)
        assert caught.value.answered == 3
        with pytest.raises(clients.ClientError, match="was lost"):
            await s.send(8)

    act(story, Replay(chunks=chunks))


def test_without_replay_it_is_lost(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "die"}

    async def story(s: Open) -> None:
        await s.send(1)
        with pytest.raises(clients.SessionLost, match="'totals_0_0' is not healthy"):
            await s.send(2)

    act(story, False)
    assert len(server.seen) == 2


def test_a_chunk_that_is_refused_after_a_replay_may_be_mended(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "die", 3: "refuse"}

    async def story(s: Open) -> None:
        await s.send(1)
        with pytest.raises(clients.InvalidRequest, match="expected a finite value"):
            await s.send(9)
        assert await s.send(2) == 3

    act(story)


def test_a_chunk_that_is_turned_away_after_a_replay_is_sent_again(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "die", 3: "full"}

    async def story(s: Open) -> None:
        assert [await s.send(1), await s.send(2), await s.finish(4)] == [1, 3, 7]

    act(story)


def test_what_was_answered_once_and_is_refused_now_ends_it(server: ScriptedTriton, act: Act) -> None:
    server.faults = {2: "die", 4: "fail"}

    async def story(s: Open) -> None:
        assert [await s.send(1), await s.send(2)] == [1, 3]
        with pytest.raises(clients.SessionLost, match=r"what was answered once is refused now: .* out of memory"):
            await s.send(4)

    act(story)


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        ("NOT_FOUND", "Request for unknown model: 'totals' version 3 is not found", "version 3 is not found"),
        ("UNAVAILABLE", "failed to connect to all addresses", "no Triton server answers at"),
    ],
)
def test_it_gives_up_in_time(server: ScriptedTriton, act: Act, status: str, said: str, words: str) -> None:
    server.faults = {1: "die"}

    async def story(s: Open) -> None:
        await s.send(1)
        server.undescribed = grpc.StatusCode[status], said
        with pytest.raises(clients.SessionLost, match=f"by sending all chunks again: .*{words}") as caught:
            await s.send(2)
        assert caught.value.answered == 1
        assert "'totals_0_0' is not healthy" in str(caught.value)

    act(story, Replay(deadline_s=0.4))


def test_closing_under_a_replay(server: ScriptedTriton) -> None:
    server.faults = {1: "die", 2: "hold"}
    with clients.connect(server.address) as client, client.stream("totals", replay=True) as session:
        session.send(x(1))
        closing = threading.Timer(0.3, session.close)
        closing.start()
        with pytest.raises(clients.ClientError):
            session.send(x(2))
        closing.join()
        with pytest.raises(clients.ClientError, match="was closed"):
            session.send(x(2))
    server.released.set()


def test_closing_while_the_model_is_described_again(server: ScriptedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults = {1: "die"}
    with clients.connect(server.address) as client, client.stream("totals", replay=True) as session:
        session.send(x(1))
        describe = session._describe

        def closed_meanwhile(version: str) -> clients.Signature:
            monkeypatch.undo()
            session.close()  # as another thread would at this moment
            return describe(version)

        monkeypatch.setattr(session, "_describe", closed_meanwhile)
        with pytest.raises(clients.ClientError):
            session.send(x(2))
        with pytest.raises(clients.ClientError, match="was closed"):
            session.send(x(2))


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_interrupted_replay_loses_the_session(server: ScriptedTriton, act: Act, attempt: int) -> None:
    server.faults = {1: "die", 2: "die"}

    async def story(s: Open) -> None:
        await s.send(1)
        describe, calls = s.session._describe, list[str]()

        def interrupted(version: str) -> Any:
            calls.append(version)
            if len(calls) == attempt:
                raise KeyboardInterrupt
            return describe(version)

        s.session._describe = interrupted
        with pytest.raises(KeyboardInterrupt):
            await s.send(2)
        with pytest.raises(clients.ClientError, match="was lost; open a new one"):
            await s.receive()
        with pytest.raises(clients.ClientError, match="was lost; open a new one"):
            await s.send(2)

    act(story)


def test_a_cancelled_replay_loses_the_session(server: ScriptedTriton) -> None:
    server.faults = {1: "die", 2: "hold"}

    async def story() -> None:
        async with await clients.aio.connect(server.address) as client, client.stream("totals", replay=True) as session:
            await session.send(x(1))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await session.send(x(2))
            server.released.set()
            with pytest.raises(clients.ClientError, match="was lost; open a new one"):
                await session.receive()

    asyncio.run(story())


@pytest.mark.parametrize("bad", [{"chunks": 0}, {"deadline_s": 0.0}])
def test_bounds_that_make_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(clients.ClientError, match="at least 1 chunk and more than 0 s"):
        Replay(**bad)


def test_chunks_carry_their_deadline_and_replayed_ones_none(server: ScriptedTriton, act: Act) -> None:
    server.faults = {1: "die"}

    async def story(s: Open) -> None:
        await s.send(1, deadline_s=0.5)
        await s.send(2, deadline_s=1.5)
        await s.send(3, deadline_s=2.5)

    act(story)
    assert [seen["timeout"] for seen in server.seen] == [500_000, 1_500_000, 0, 0, 2_500_000]
    sent = [seen["sent"] for seen in server.seen]
    assert 0 < sent[0] <= sent[1] <= sent[4]
    assert sent[2:4] == [0, 0]
