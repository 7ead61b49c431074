"""No server, the wrong server, a server that dies: one clear error each, from all four clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import clients
from clients.client import ProtocolName
from serving.launcher import Server
from tests.clients.practice_server import KINDS, ask, ask_at, serve, slow_requests

Kind = tuple[ProtocolName, str]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=[f"{protocol}-{style}" for protocol, style in KINDS])


def connect(kind: Kind, address: str, deadline_s: float = 3.0) -> None:
    protocol, style = kind
    if style == "sync":
        clients.connect(address, protocol=protocol, connect_deadline_s=deadline_s)
    else:
        asyncio.run(clients.aio.connect(address, protocol=protocol, connect_deadline_s=deadline_s))


@contextmanager
def listener(answers: list[bytes], heard: list[bytes] | None = None) -> Iterator[str]:
    """Something that is no Triton: answers each connection's first bytes with the next of ``answers``, then closes.

    Without answers it accepts and stays silent. heard: is given the first bytes.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    said = connection.recv(65536)
                    if heard is not None:
                        heard.append(said)
                    connection.sendall(answer)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


@every_kind
def test_nobody_listens(kind: Kind) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(clients.ServerUnavailable) as caught:
        connect(kind, f"127.0.0.1:{port}")
    message = str(caught.value)
    assert message.startswith(f"no Triton server answers at 127.0.0.1:{port} (")
    assert "refused" in message or "Connect call failed" in message
    assert "python -m serving" in message


@every_kind
def test_a_name_that_is_none(kind: Kind) -> None:
    with pytest.raises(clients.ServerUnavailable, match=r"at no\.such\.host\.invalid:8000 \("):
        connect(kind, "no.such.host.invalid:8000")


@every_kind
def test_a_silent_listener_is_left_at_the_connect_deadline(kind: Kind) -> None:
    with listener([]) as address, pytest.raises(clients.ServerUnavailable, match=r"within 0\.2 s"):
        connect(kind, address, deadline_s=0.2)


@pytest.mark.parametrize("style", ["sync", "async"])
def test_the_wrong_port(practice: Server, style: str) -> None:
    with pytest.raises(clients.ServerUnavailable, match="is this the gRPC port, 8001 unless told otherwise"):
        connect(("grpc", style), practice.http)
    with pytest.raises(clients.ServerUnavailable, match="is this the HTTP port, 8000 unless told otherwise"):
        connect(("http", style), practice.grpc)


METADATA = b'{"name":"m","versions":["1"],"inputs":[],"outputs":[{"name":"y","datatype":"FP32","shape":[1]}]}'
ANSWERS = {
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", clients.ConnectionLost),
    "closed": (b"", clients.ConnectionLost),
    "no JSON": (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnope", clients.ServerError),
    "a proxy without a server": (
        b'HTTP/1.1 503 x\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{"error": "away"}',
        clients.ServerUnavailable,
    ),
    "a proxy that gave up": (
        b'HTTP/1.1 504 x\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{"error": "late"}',
        clients.DeadlineExceeded,
    ),
}


@pytest.mark.parametrize("style", ["sync", "async"])
@pytest.mark.parametrize("name", ANSWERS)
def test_http_answers_that_are_none(name: str, style: str) -> None:
    raw, error = ANSWERS[name]
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    script = [ok % (0, b""), ok % (len(METADATA), METADATA), ok % (2, b"{}"), raw]
    with listener(script) as address, pytest.raises(error) as caught:
        ask_at(address, ("http", style), "infer", "m", {})
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("style", ["sync", "async"])
def test_a_refusal_of_the_connection_keeps_its_words(style: str) -> None:
    refusal = b'HTTP/1.1 429 x\r\nContent-Length: 19\r\nConnection: close\r\n\r\n{"error": "enough"}'
    words = r"does not answer as a live Triton server; .*: enough; it takes no more work now, ask again later"
    with listener([refusal, refusal]) as address, pytest.raises(clients.ServerUnavailable, match=words):
        connect(("http", style), address)


@pytest.mark.parametrize("style", ["sync", "async"])
def test_the_headers_of_a_request_are_its_own(style: str) -> None:
    """tritonclient adds the length of the JSON part to those of an inference."""
    x, y = (b'{"name":"%s","datatype":"FP32","shape":[1]}' % name for name in (b"x", b"y"))
    described = b'{"name":"m","versions":["1"],"inputs":[%s],"outputs":[%s]}' % (x, y)
    answered = b'{"model_name":"m","model_version":"1","outputs":[%s,"data":[1.0]}]}' % y[:-1]
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    script = [ok % (len(body), body) for body in (b"", described, b"{}", answered, b"")]
    inputs, heard = {"x": np.ones(1, np.float32)}, list[bytes]()

    async def on_async(address: str) -> None:
        async with await clients.aio.connect(address, protocol="http") as client:
            await client.infer("m", inputs)
            await client.ready("m")

    with listener(script, heard) as address:
        if style == "async":
            asyncio.run(on_async(address))
        else:
            with clients.connect(address, protocol="http") as client:
                client.infer("m", inputs)
                client.ready("m")
    assert [b"inference-header-content-length" in said.lower() for said in heard] == [False, False, False, True, False]


def test_a_server_killed_in_the_middle_of_a_request(tmp_path: Path) -> None:
    """All four wait for the slow model when the server dies; all four are told that the connection was lost."""
    errors: dict[Kind, Exception] = {}

    def wait(server: Server, kind: Kind) -> None:
        try:
            ask(server, kind, "infer", "slow", {"seconds": np.array([30], np.float32)}, deadline_s=60)
        except Exception as error:
            errors[kind] = error

    with serve(tmp_path / "repository") as server:
        threads = [threading.Thread(target=wait, args=(server, kind)) for kind in KINDS]
        for thread in threads:
            thread.start()
        while slow_requests(server, tmp_path / "repository") < len(KINDS):
            assert all(thread.is_alive() for thread in threads), errors
        server.kill()
        for thread in threads:
            thread.join()

    assert {kind: type(error) for kind, error in errors.items()} == dict.fromkeys(KINDS, clients.ConnectionLost)
    for error in errors.values():
        assert "broke while model 'slow' was answering" in str(error)


def test_a_closed_client_says_so_and_may_be_closed_again(triton: Server) -> None:
    with clients.connect(triton.grpc) as client:
        client.close()
        client.close()
        with pytest.raises(clients.ClientError, match="this client is closed"):
            client.models()
