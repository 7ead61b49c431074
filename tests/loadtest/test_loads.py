"""What one process does of a load, on simulated time: streams and their sessions, requests and their arrivals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from clients.errors import ServerError, ServerUnavailable, SessionLost
from clients.session import AsyncSession
from clients.signature import Array, Signature, Tensor
from loadtest.chunks import ChunkShape, Speaker
from loadtest.load import Seat
from loadtest.pacing import Dropped, Missed, Outcome, even
from loadtest.request_load import RequestRun
from loadtest.stream_load import Stream
from loadtest.workloads import requests_for
from optimize.errors import UserError

SHAPE = ChunkShape("pcm", 1600, "int32")


class Clock:
    """Time that passes only while somebody sleeps; one sleeper at a time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


class Server:
    """Makes sessions and notes what each is sent: a chunk's length, with E for END. trouble: by chunk, in order."""

    def __init__(self, clock: Clock, service_s: Callable[[int], float], trouble: dict[int, Exception] | None = None):
        self.clock, self.service_s, self.trouble = clock, service_s, trouble or {}
        self.sessions: list[Session] = []
        self.refusals = 0
        self.answered = 0

    def stream(self) -> AsyncSession:
        return cast(AsyncSession, Session(self))


class Session:
    def __init__(self, server: Server) -> None:
        self._server = server
        self.sent: list[str] = []
        self.closed = False

    async def __aenter__(self) -> Session:
        if self._server.refusals:
            self._server.refusals -= 1
            raise ServerUnavailable("nobody there")
        self._server.sessions.append(self)
        return self

    async def send(self, inputs: dict[str, Array], end: str = "") -> None:
        number = self._server.answered
        self._server.answered += 1
        await self._server.clock.sleep(self._server.service_s(number))
        if number in self._server.trouble:
            raise self._server.trouble[number]
        self.sent.append(f"{inputs['lengths'].item()}{end}")

    async def finish(self, inputs: dict[str, Array]) -> None:
        await self.send(inputs, "E")

    async def close(self) -> None:
        self.closed = True


def speak(server: Server, clock: Clock, utterance_s: float = 0.0, seconds: float = 2.0) -> tuple[list[Outcome], bool]:
    """One stream, run and closed; its outcomes, and whether it could be ended."""

    async def all_of_it() -> tuple[list[Outcome], bool]:
        speaker = Speaker(SHAPE, np.ones(16_000, np.int16), utterance_s, seed=2)
        stream = Stream(server.stream, speaker, SHAPE, 0.05, clock, clock.sleep)
        await stream.open()
        return await stream.run(1.0, 1.0 + seconds), await stream.close()

    return asyncio.run(all_of_it())


def test_a_stream_sends_every_chunk_when_it_is_due_and_ends() -> None:
    clock = Clock()
    server = Server(clock, lambda number: 0.02)
    outcomes, ended = speak(server, clock)
    assert [outcome.due_s for outcome in outcomes] == pytest.approx([1.05 + turn / 10 for turn in range(20)])
    assert [outcome.latency_ms for outcome in outcomes] == pytest.approx([20] * 20)
    assert all(outcome.error is None for outcome in outcomes)
    (session,) = server.sessions
    assert session.sent == ["1600"] * 20 + ["1600E"]  # the last one gives the slot back, uncounted
    assert session.closed
    assert ended


def test_utterances_end_with_end_and_begin_on_a_new_session() -> None:
    clock = Clock()
    server = Server(clock, lambda number: 0.02)
    outcomes, _ = speak(server, clock, utterance_s=0.5, seconds=5.0)
    assert len(outcomes) == 50
    assert all(outcome.error is None for outcome in outcomes)
    assert len(server.sessions) > 5
    for session in server.sessions:
        assert [sent.endswith("E") for sent in session.sent] == [False] * (len(session.sent) - 1) + [True] * bool(
            session.sent
        )
        assert session.closed


def test_a_server_that_cannot_keep_up_misses_and_is_given_up_at_the_end() -> None:
    """0.15 s for a chunk of 0.1 s: 13 chunks are answered until the end, ever later; the rest count as missed."""
    clock = Clock()
    server = Server(clock, lambda number: 0.15)
    outcomes, _ = speak(server, clock)
    assert len(outcomes) == 20
    assert sum(isinstance(outcome.error, Missed) for outcome in outcomes) >= 19
    assert outcomes[12].latency_ms == pytest.approx(13 * 150 - 12 * 100)
    assert len(server.sessions[0].sent) == 15  # 14, and the END
    assert max(outcome.late_ms for outcome in outcomes) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("error", [SessionLost("gone", 3), ServerError("broken")])
def test_a_stream_that_fails_begins_again_and_the_pace_goes_on(error: Exception) -> None:
    clock = Clock()
    server = Server(clock, lambda number: 0.02, {3: error})
    outcomes, ended = speak(server, clock)
    assert [place for place, outcome in enumerate(outcomes) if outcome.error] == [3]
    assert outcomes[3].error is error
    assert [len(session.sent) for session in server.sessions] == [3, 17]
    assert len(outcomes) == 20
    assert ended


def test_a_server_that_takes_no_new_streams_fails_every_chunk_meanwhile() -> None:
    clock = Clock()
    server = Server(clock, lambda number: 0.02, {0: SessionLost("gone")})

    async def refuse() -> tuple[list[Outcome], bool]:
        speaker = Speaker(SHAPE, np.ones(16_000, np.int16), 0, seed=2)
        stream = Stream(server.stream, speaker, SHAPE, 0.0, clock, clock.sleep)
        await stream.open()
        server.refusals = 3
        return await stream.run(0.0, 1.0), await stream.close()

    outcomes, _ = asyncio.run(refuse())
    assert [outcome.error is not None for outcome in outcomes] == [True] * 4 + [False] * 6


def test_a_stream_that_cannot_be_ended_says_so() -> None:
    clock = Clock()
    _, ended = speak(Server(clock, lambda number: 0.02, {20: ServerError("broken")}), clock)
    assert not ended


def test_a_stream_that_was_never_spoken_on_is_just_closed() -> None:
    clock = Clock()
    server = Server(clock, lambda number: 0.02)
    outcomes, ended = speak(server, clock, seconds=0.01)
    assert (outcomes, ended, server.sessions[0].sent) == ([], True, [])


def requests(
    send: Callable[[], Awaitable[None]], clock: Clock, rate: float, seconds: float, in_flight: int = 100
) -> list[Outcome]:
    run = RequestRun(send, lambda start_s: even(rate, start_s), in_flight, clock, clock.sleep)
    return asyncio.run(run.run(1.0, 1.0 + seconds))


def test_requests_start_when_they_are_due_though_none_is_answered() -> None:
    clock, arrived = Clock(), []

    async def held() -> None:
        arrived.append(clock())
        while len(arrived) < 20:  # answered when the last one is there: a closed loop would wait for ever
            await asyncio.sleep(0)

    outcomes = requests(held, clock, rate=10, seconds=2)
    assert arrived == pytest.approx([1 + turn / 10 for turn in range(20)], abs=0.11)
    assert sorted(outcome.due_s for outcome in outcomes) == pytest.approx([1 + turn / 10 for turn in range(20)])
    assert all(outcome.error is None for outcome in outcomes)


def test_beyond_the_cap_requests_are_dropped() -> None:
    clock = Clock()

    async def hang() -> None:
        while clock() < 2.85:  # all arrivals but the last, at 2.9, come before
            await asyncio.sleep(0)

    outcomes = requests(hang, clock, rate=10, seconds=2, in_flight=5)
    assert len(outcomes) == 20
    assert sum(isinstance(outcome.error, Dropped) for outcome in outcomes) in (14, 15)
    assert sum(outcome.error is None for outcome in outcomes) in (5, 6)


def test_failed_requests_are_outcomes() -> None:
    error = ServerError("broken")

    async def fail() -> None:
        raise error

    assert [outcome.error for outcome in requests(fail, Clock(), rate=10, seconds=1)] == [error] * 10


def test_seats_share_all_streams() -> None:
    for seats in (1, 2, 3, 7):
        shares = [list(Seat(seat, seats).share(10)) for seat in range(seats)]
        assert sorted(stream for share in shares for stream in share) == list(range(10))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


MODEL = Signature("any", "1", (Tensor("x", "FP32", (-1, 4)), Tensor("y", "FP64", (-1, 2, 3))), (), 8)


def test_requests_that_are_made_up() -> None:
    made = list(islice(requests_for(MODEL, 3), 5))
    for request, again in zip(made, requests_for(MODEL, 3), strict=False):
        MODEL.checked(request)
        np.testing.assert_array_equal(request["x"], again["x"])
    assert len({request["x"].tobytes() for request in made}) == 5


def test_requests_that_cannot_be_made_up() -> None:
    with pytest.raises(UserError, match="'text' is BYTES, which cannot be made up; give a file of requests"):
        next(requests_for(Signature("any", "1", (Tensor("text", "BYTES", (-1, 1)),), (), 8), 0))


def test_requests_from_a_file(tmp_path: Path) -> None:
    rows: dict[str, Any] = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "y": np.ones((3, 2, 3))}
    np.savez(tmp_path / "rows.npz", **rows)
    sent = list(islice(requests_for(MODEL, 1, tmp_path / "rows.npz"), 30))
    assert {request["x"].tobytes() for request in sent} == {row.tobytes() for row in rows["x"]}
    MODEL.checked(sent[0])


def test_files_that_hold_no_requests(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "uneven.npz", x=np.ones(3), y=np.ones(2))
    np.savez(tmp_path / "none.npz", x=np.ones((0, 3)))
    for name, words in (
        ("text", "cannot be read"),
        ("missing", "cannot be read"),
        ("uneven", "same"),
        ("none", "same"),
    ):
        with pytest.raises(UserError, match=words):
            requests_for(MODEL, 1, tmp_path / f"{name}.npz")
