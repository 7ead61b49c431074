"""The generator against servers with known answers, and against Triton by every protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from loadtest import prepared
from loadtest.closed_loop import Target, Turn, ask_all, turn
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from serving.launcher import Server
from tests import tiny_models
from tests.loadtest.conftest import CHUNK

X: Arrays = {"x": np.arange(4, dtype=np.float32)[None]}
TWICE = np.array([[0, 2, 4, 6]], np.float32)
SPEC = tiny_models.double().spec
Answer = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


async def _with_server(answer: Answer, use: Callable[[Target], Awaitable[object]]) -> object:
    """Run ``use`` beside a server that reads whole requests and leaves the rest to ``answer``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await answer(writer, await reader.readexactly(int(head.lower().split(b"content-length: ")[1])))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            done.set()

    done = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        return await use(Target("127.0.0.1", server.sockets[0].getsockname()[1], "/"))


async def _echo_in_pieces(writer: asyncio.StreamWriter, body: bytes) -> None:
    for piece in (
        b"HTTP/1.1 200 OK\r\nX-Content-Length: 1\r\nContent-",
        b"Length: %d\r\n\r" % len(body),
        b"\n" + body[:2],
        body[2:],
    ):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.002)


def test_answers_in_any_pieces_belong_to_their_requests() -> None:
    bodies = [bytes([number]) * (3 + number) for number in range(5)]
    assert (
        asyncio.run(_with_server(_echo_in_pieces, lambda target: ask_all(target, list(map(target.message, bodies)))))
        == bodies
    )


def test_a_closed_loop_of_slow_answers() -> None:
    """Answers after 20 ms: 3 callers have at most 3 requests under way, and no latency below that."""
    under_way, most = 0, 0

    async def slow(writer: asyncio.StreamWriter, body: bytes) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n" + body)

    done = asyncio.run(
        _with_server(slow, lambda target: turn(target, [target.message(b"a"), target.message(b"b")], 3, 0.05, 0.3))
    )
    assert isinstance(done, Turn)
    assert most == 3
    assert min(done.latencies_s) >= 0.0199
    assert 3 <= len(done.latencies_s) <= 48
    assert done.wall_s >= 0.3


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n", "answered 'HTTP/1.1 500 Broken'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "not 200 with a length"),
        (b"", "closed the connection"),
    ],
)
def test_a_server_that_fails_is_named(reply: bytes, words: str) -> None:
    async def fail(writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(reply)
        if not reply:
            writer.close()

    with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+/") as raised:
        asyncio.run(_with_server(fail, lambda target: turn(target, [target.message(b"a")], 2, 0.0, 0.1)))
    assert words in str(raised.value)


def test_a_model_without_states_by_both_protocols(streaming: Server) -> None:
    for target in (prepared.by_grpc(streaming.grpc), prepared.by_http(streaming.http, SPEC.name)):
        (answer,) = asyncio.run(ask_all(target, [prepared.request(target, SPEC, X)]))
        np.testing.assert_array_equal(prepared.answer(target, SPEC, answer)["y"], TWICE)


def chunk(level: int) -> Arrays:
    return {"pcm": np.full((1, CHUNK), level, np.int16), "lengths": np.array([[CHUNK]], np.int32)}


def test_each_caller_s_chunks_are_one_stream(streaming: Server) -> None:
    """The sum over all samples of a stream decides on its tokens: another stream's would change them."""
    target, spec = prepared.by_grpc(streaming.grpc, stream=True), tiny_models.listen("speech", time=CHUNK).spec
    messages = [prepared.request(target, spec, chunk(level)) for level in (1, 2, 3)]

    async def together() -> list[list[bytes]]:
        return await asyncio.gather(*(ask_all(target, messages) for _ in range(4)))

    alone = [prepared.answer(target, spec, each) for each in asyncio.run(ask_all(target, messages))]
    for received in asyncio.run(together()):
        for one, expected in zip(received, alone, strict=True):
            answered = prepared.answer(target, spec, one)
            for name in ("tokens", "level"):
                np.testing.assert_array_equal(answered[name], expected[name])
    assert not np.array_equal(alone[0]["level"], alone[2]["level"]), "the stream remembers"


def test_streams_under_load_leave_no_place_taken(streaming: Server) -> None:
    """There are 64 places: every turn gives its 30 back."""
    target, spec = prepared.by_grpc(streaming.grpc, stream=True), tiny_models.listen("speech", time=CHUNK).spec
    messages = [prepared.request(target, spec, chunk(1))]
    for _ in range(3):
        assert asyncio.run(turn(target, messages, 30, 0.0, 0.1)).latencies_s


def test_a_refused_chunk_is_told(streaming: Server) -> None:
    target, spec = prepared.by_grpc(streaming.grpc, stream=True), tiny_models.listen("speech", time=CHUNK).spec
    wrong = {**chunk(1), "pcm": np.zeros((1, CHUNK + 1), np.int16)}
    with pytest.raises(UserError, match=r"the server refused a chunk: .*unexpected shape"):
        asyncio.run(ask_all(target, [prepared.request(target, spec, wrong)]))
