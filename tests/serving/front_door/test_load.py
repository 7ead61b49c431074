"""More than the door takes: refused at once, saying when to come again, while those inside are answered."""

from __future__ import annotations

import asyncio
import http.client
import time
from contextlib import AsyncExitStack, ExitStack, closing

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

import clients
from clients.signature import Array
from tests.serving.front_door.conftest import INFER, LIMITS, REQUEST, Visitor

PROTOCOLS: tuple[clients.ProtocolName, ...] = ("grpc", "http")
X = {"x": np.ones((1, 4), np.float32)}
SECOND = np.ones((1, 16_000), np.int16)
CHUNK: dict[str, Array] = {"pcm": np.ones((1, 16), np.int16), "lengths": np.array([[16]], np.int32)}


def eventually_opens(client: clients.Client) -> clients.Session:
    """The place of a stream that has just ended is free a moment later."""
    for attempt in range(100):
        session = client.stream("listen")
        session.__enter__()
        try:
            session.send(CHUNK)
        except clients.ClientError:
            assert attempt < 99
            session.close()
            time.sleep(0.02)
        else:
            break
    return session


def test_streams_of_one_client_and_of_all(visitor: Visitor) -> None:
    other = Visitor(visitor.fleet, f"{visitor.name[:50]}other")
    with ExitStack() as stack:
        mine, theirs = (stack.enter_context(each.connect()) for each in (visitor, other))
        taken = [stack.enter_context(mine.stream("listen")) for _ in range(LIMITS.client_streams)]
        for session in taken:
            session.send(CHUNK)
        started = time.monotonic()
        with pytest.raises(clients.ServerUnavailable, match="ask again later"), mine.stream("listen") as session:
            session.send(CHUNK)
        assert time.monotonic() - started < 1
        for _ in range(LIMITS.streams - LIMITS.client_streams):
            stack.enter_context(theirs.stream("listen")).send(CHUNK)
        with pytest.raises(clients.ServerUnavailable, match="ask again later"), theirs.stream("listen") as session:
            session.send(CHUNK)
        assert [session.send(CHUNK).outputs["rows"].size for session in taken] == [1] * len(taken)
        taken[0].finish(CHUNK)
        taken[0].close()
        eventually_opens(theirs).close()


def test_what_is_refused_says_when_to_come_again(visitor: Visitor) -> None:
    """Over HTTP a request holds its place while its body is awaited."""
    host, _, port = visitor.fleet.door.http.rpartition(":")
    token = f"Bearer {visitor.token()}"
    with ExitStack() as stack:
        for _ in range(LIMITS.client_requests):
            waiting = http.client.HTTPSConnection(host, int(port), context=visitor.tls, timeout=20)
            stack.enter_context(closing(waiting))
            waiting.putrequest("POST", INFER)
            waiting.putheader("Authorization", token)
            waiting.putheader("Content-Length", str(len(REQUEST)))
            waiting.endheaders()
        status, headers, body = visitor.ask()
    assert (status, headers["Retry-After"]) == (503, "1"), body
    with ExitStack() as stack:
        client = stack.enter_context(visitor.connect())
        for _ in range(LIMITS.client_streams):
            stack.enter_context(client.stream("listen")).send(CHUNK)
        tls = grpc.ssl_channel_credentials(visitor.authority.read_bytes())
        channel = stack.enter_context(grpc.secure_channel(visitor.fleet.door.grpc, tls))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest()]), metadata=[("authorization", token)])
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert ("retry-after", "1") in [*call.initial_metadata(), *call.trailing_metadata()]


def test_the_rate_of_one_client(visitor: Visitor) -> None:
    host, _, port = visitor.fleet.door.http.rpartition(":")
    headers, statuses = {"Authorization": f"Bearer {visitor.token()}"}, list[int]()
    with closing(http.client.HTTPSConnection(host, int(port), context=visitor.tls, timeout=20)) as connection:
        while 429 not in statuses:
            assert len(statuses) < 5000
            connection.request("GET", "/v2/models/double/ready", headers=headers)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        assert response.headers["Retry-After"] == "1"
    assert statuses[: LIMITS.client_burst] == [200] * LIMITS.client_burst
    with Visitor(visitor.fleet, f"{visitor.name[:50]}other").connect("http") as another:
        assert another.ready("double")
    for protocol in PROTOCOLS:
        time.sleep(2)  # what came before is forgiven
        with visitor.connect(protocol) as client, pytest.raises(clients.ServerUnavailable, match="too many requests"):
            ask_until_refused(client)


def ask_until_refused(client: clients.Client) -> None:
    for _ in range(5000):
        client.infer("double", X)


def test_200_clients_at_twice_the_capacity(visitor: Visitor) -> None:
    """Each keeps one request under way; 24 places. Every answer is right or an early refusal, none is lost."""
    steps, deadline_s = 3000, 20.0

    async def connected(number: int, stack: AsyncExitStack, some: asyncio.Semaphore) -> clients.aio.AsyncClient:
        token = Visitor(visitor.fleet, f"client{number % 40}").token()
        async with some:  # 200 handshakes at once would be slow clients, and let go
            opened = await clients.aio.connect(
                visitor.fleet.door.grpc, tls=visitor.authority, token=token, connect_deadline_s=30
            )
        return await stack.enter_async_context(opened)

    async def ask(client: clients.aio.AsyncClient, until: float, answers: list[float], refusals: list[float]) -> None:
        while time.monotonic() < until:
            started = time.monotonic()
            try:
                answer = await client.infer("slow", {"steps": np.array([[steps]])}, deadline_s=deadline_s)
            except clients.ServerUnavailable:
                refusals.append(time.monotonic() - started)
                await asyncio.sleep(0.3)
            else:
                assert answer["done"].item() == steps
                answers.append(time.monotonic() - started)

    async def crowd() -> tuple[list[float], list[float]]:
        answers: list[float] = []
        refusals: list[float] = []
        some = asyncio.Semaphore(8)
        async with AsyncExitStack() as stack:
            people = await asyncio.gather(*(connected(number, stack, some) for number in range(200)))
            until = time.monotonic() + 8
            async with asyncio.TaskGroup() as group:
                for person in people:
                    group.create_task(ask(person, until, answers, refusals))
        return answers, refusals

    answers, refusals = asyncio.run(crowd())
    assert len(answers) > 50
    assert len(refusals) > 50
    assert max(answers) < deadline_s / 2  # what is let in is never behind more than the others that are
    assert visitor.alive
    assert visitor.ask(body=REQUEST)[0] == 200


def test_an_hour_of_audio_in_one_stream(visitor: Visitor) -> None:
    """115 MB, of which the door keeps nothing: 55 times what it takes of a unary request."""

    async def speak() -> int:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                await clients.aio.connect(visitor.fleet.door.grpc, tls=visitor.authority, token=visitor.token())
            )
            return await hour(client)

    assert asyncio.run(speak()) == 3600 * SECOND.size


async def hour(client: clients.aio.AsyncClient) -> int:
    """The seconds of an hour, one message each, through one bidirectional call; the sum of all samples."""
    from clients.calls import AsyncStreamTransport, Chunk

    assert isinstance(client._transport, AsyncStreamTransport)
    stream, total = client._transport.stream(), 0
    for second in range(3600):
        stream.put(Chunk("heard", "", {"pcm": SECOND}, str(second), 0, False, False))
        reply = await stream.take(10)
        assert isinstance(reply.said, clients.Answer), reply.said
        total += reply.said["total"].item()
    await stream.close()
    return total
