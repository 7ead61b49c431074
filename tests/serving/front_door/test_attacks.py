"""What a hostile client may try: each is refused at the door, or does no harm behind it."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import time
from contextlib import ExitStack, suppress

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

import clients
from tests.serving.front_door.conftest import INFER, LIMITS, REQUEST, Visitor

X = {"x": np.ones((1, 4), np.float32)}


def address(visitor: Visitor, port_of: str = "http") -> tuple[str, int]:
    host, _, port = getattr(visitor.fleet.door, port_of).rpartition(":")
    return host, int(port)


def forged(token: str) -> str:
    """With the same subject and another expiry."""
    subject, expiry, signature = token.split(".")
    return f"{subject}.{int(expiry) + 1}.{signature}"


@pytest.mark.parametrize(
    ("given_token", "reason"),
    [
        (lambda visitor: "", "no token"),
        (lambda visitor: visitor.token(-1), "has expired"),
        (lambda visitor: forged(visitor.token()), "not signed by this server"),
        (lambda visitor: visitor.token()[:-1], "cannot be read"),
        (lambda visitor: "x" * 5000, "cannot be read"),
    ],
    ids=["missing", "expired", "forged", "cut short", "nonsense"],
)
def test_only_a_valid_token_opens(visitor: Visitor, given_token: object, reason: str) -> None:
    token = given_token(visitor)  # type: ignore[operator]
    status, _, body = visitor.ask(headers={"Authorization": f"Bearer {token}" if token else ""})
    assert status == 401
    assert reason in json.loads(body)["error"]
    for protocol in ("grpc", "http"):
        with visitor.connect(protocol, token) as client, pytest.raises(clients.ClientError, match=reason):
            client.infer("double", X)
    with visitor.connect("grpc", token) as client, pytest.raises(clients.ClientError, match=reason):
        client.stream("listen").__enter__()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_valid_token_opens(visitor: Visitor, protocol: clients.ProtocolName) -> None:
    with visitor.connect(protocol) as client:
        assert client.infer("double", X)["y"].tolist() == [[2, 2, 2, 2]]
        assert {model.model for model in client.models()} == {"double", "listen", "slow", "heard"}
        assert client.ready()


@pytest.mark.parametrize("port_of", ["http", "grpc"])
def test_plain_text_is_not_answered_with_anything_but_a_refusal(visitor: Visitor, port_of: str) -> None:
    request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {visitor.token()}\r\n"
    with socket.create_connection(address(visitor, port_of), timeout=10) as plain:
        plain.sendall(f"{request}Content-Length: {len(REQUEST)}\r\n\r\n".encode() + REQUEST)
        assert plain.recv(65536).startswith(b"HTTP/1.1 400 ")
    protocol: clients.ProtocolName = "grpc" if port_of == "grpc" else "http"
    with pytest.raises(clients.ServerUnavailable):
        clients.connect(getattr(visitor.fleet.door, port_of), protocol=protocol)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
def test_old_tls_is_refused(visitor: Visitor) -> None:
    old = visitor.tls
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(address(visitor), timeout=10) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol"),
    ):
        old.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2",
        "/v2/repository/index",
        "/v2/repository/models/double/unload",
        "/v2/systemsharedmemory/status",
        "/v2/trace/setting",
        "/v2/logging",
        "/v2/models/../models/double/infer",
        "/v2/models/%2e%2e/models/double/infer",
        "/v2/models/..%2f..%2fetc/infer",
        "/v2/models/double%00/infer",
        "/v2/models/double/infer?a=b",
        "/v2/models//double/infer",
        "/v2/models/double/generate",
        "/v2/models/double/versions/../infer",
        "/v2/models/.hidden/infer",
    ],
)
def test_only_what_is_listed_is_open(visitor: Visitor, path: str) -> None:
    for method in ("GET", "POST"):
        status, _, body = visitor.ask(path, method=method)
        assert status in (400, 404), (method, path)
        assert b"onnx" not in body


def test_methods(visitor: Visitor) -> None:
    assert visitor.ask("/v2/models/double", method="DELETE")[0] == 405
    assert visitor.ask(INFER, method="PUT")[0] == 405
    assert visitor.ask("/v2/models/double/config", b"", method="GET")[0] == 200
    assert visitor.ask("/v2/health/ready", b"", {"Authorization": ""}, "GET")[0] == 200


def test_grpc_services_that_are_not_listed(visitor: Visitor) -> None:
    headers = {"authorization": f"Bearer {visitor.token()}"}
    credentials = grpc.ssl_channel_credentials(visitor.authority.read_bytes())
    with triton_grpc.InferenceServerClient(visitor.fleet.door.grpc, creds=credentials) as client:
        for call in (
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_trace_settings,
            client.get_log_settings,
            client.get_server_metadata,
        ):
            with pytest.raises(Exception, match="only inference, the description of models and health") as caught:
                call(headers=headers)
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"  # type: ignore[attr-defined]


@pytest.mark.parametrize("depth", [33, 100_000])
@pytest.mark.parametrize("shape", ["[{}1{}]", '[{} "[", 1{}]', '[{} 1, "\\"" {}]'])
def test_deeply_nested_json(visitor: Visitor, depth: int, shape: str) -> None:
    """100,000 levels end Triton 2.51 by SIGSEGV, parser and all."""
    deep = REQUEST.replace(b"[1, 2, 3, 4]", shape.format("[" * depth, "]" * depth).encode())
    status, _, body = visitor.ask(body=deep)
    assert (status, "nested deeper than 32" in json.loads(body)["error"]) == (400, True)
    status, _, body = visitor.ask(body=deep, headers={"Inference-Header-Content-Length": str(len(deep))})
    assert status == 400
    assert visitor.ask()[0] == 200
    assert visitor.alive


def test_objects_nested_in_parameters(visitor: Visitor) -> None:
    deep = b'{"parameters":' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"," + REQUEST[1:]
    assert visitor.ask(body=deep)[0] == 400
    assert visitor.alive


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "',
        b'{"a": "\xe2" [[[["}',
        b"[" * 40,
        b'{"a": "\\',
        b'\xff{"a": 1}',
        b"{]",
        b'"' * 1001,
        b"]" * 50_000 + b"[" * 50_000,
    ],
    ids=[
        "open string",
        "broken UTF-8",
        "open lists",
        "open escape",
        "no UTF-8",
        "wrong pair",
        "quotes",
        "closed first",
    ],
)
def test_broken_json(visitor: Visitor, body: bytes) -> None:
    assert visitor.ask(body=body)[0] in (400, 500)  # the door's word, or Triton's
    assert visitor.alive


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    )
)
def test_any_shallow_json_reaches_triton(fleet: object, value: object) -> None:
    """The door counts brackets outside strings only: what json writes is never refused for its depth."""
    visitor = Visitor(fleet, "anyshallowjson")  # type: ignore[arg-type]
    body = json.dumps({"parameters": {"a": value}}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    status, _, answer = visitor.ask(body=body)
    assert status in (400, 429, 500)  # it holds no inputs
    assert b"nested" not in answer


def test_oversized_json_and_body(visitor: Visitor) -> None:
    assert visitor.ask(body=REQUEST + b" " * LIMITS.json_bytes)[0] == 413
    assert visitor.ask(body=REQUEST + b" " * LIMITS.body_bytes)[0] == 413
    with visitor.connect("http") as client:  # as bytes, it is no JSON
        pcm = np.ones((1, LIMITS.body_bytes // 4), np.int16)
        assert client.infer("heard", {"pcm": pcm})["total"].item() == pcm.size
    for protocol in ("grpc", "http"):
        with visitor.connect(protocol) as client, pytest.raises(clients.ClientError, match="too large"):
            client.infer("heard", {"pcm": np.ones((1, LIMITS.body_bytes), np.int16)})


@pytest.mark.parametrize(("count", "status"), [(200_000, b"400"), (1_000_000, b"413"), (4_000_000, b"413")])
def test_many_chunks(visitor: Visitor, count: int, status: bytes) -> None:
    """Two million of one byte end Triton 2.51 by SIGSEGV; the door passes on one body, or none."""
    host, port = address(visitor)
    with (
        socket.create_connection((host, port), timeout=30) as plain,
        visitor.tls.wrap_socket(plain, server_hostname=host) as secure,
    ):
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {visitor.token()}\r\n"
        head += f"Inference-Header-Content-Length: {len(REQUEST)}\r\nTransfer-Encoding: chunked\r\n\r\n"
        secure.sendall(head.encode() + b"%x\r\n%b\r\n" % (len(REQUEST), REQUEST))
        for _ in range(count // 20_000):
            secure.sendall(b"1\r\n \r\n" * 20_000)
        secure.sendall(b"0\r\n\r\n")
        assert secure.recv(65536).startswith(b"HTTP/1.1 " + status)
    assert visitor.ask(body=iter([REQUEST[:10], REQUEST[10:]]))[0] == 200
    assert visitor.alive


@pytest.mark.parametrize("length", ["-1", "999999", "9" * 30, "abc", "+5", "1 2", "0x10"])
def test_a_wrong_header_length(visitor: Visitor, length: str) -> None:
    status, _, body = visitor.ask(headers={"Inference-Header-Content-Length": length})
    assert (status, "expected 0 to" in json.loads(body)["error"]) == (400, True)
    assert visitor.alive


@pytest.mark.parametrize("length", ["0", "3", "40"])
def test_a_header_length_in_the_middle_of_the_json(visitor: Visitor, length: str) -> None:
    assert visitor.ask(headers={"Inference-Header-Content-Length": length})[0] in (400, 500)
    assert visitor.alive


def test_compressed_requests_are_refused(visitor: Visitor) -> None:
    """They could hide what the door looks for, and swell behind it."""
    assert visitor.ask(body=gzip.compress(REQUEST), headers={"Content-Encoding": "gzip"})[0] == 415
    credentials = grpc.ssl_channel_credentials(visitor.authority.read_bytes())
    x = triton_grpc.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(X["x"])
    with triton_grpc.InferenceServerClient(visitor.fleet.door.grpc, creds=credentials) as client:
        headers = {"authorization": f"Bearer {visitor.token()}"}
        with pytest.raises(Exception, match="compressed"):
            client.infer("double", [x], headers=headers, compression_algorithm="gzip")


def test_large_headers(visitor: Visitor) -> None:
    assert visitor.ask(headers={"X": "x" * 9000})[0] in (400, 431, 494)
    many = {f"X-{number}": "x" * 4000 for number in range(20)}
    assert visitor.ask(headers=many)[0] in (400, 431, 494)
    with visitor.connect() as client:
        assert client.ready()


@pytest.mark.parametrize("sent", ["", "head", "body"])
def test_a_slow_client_is_let_go(visitor: Visitor, sent: str) -> None:
    """One that has begun and then sends nothing: in the handshake, in the head, in the body."""
    host, port = address(visitor)
    started = time.monotonic()
    with ExitStack() as stack:
        channel: socket.socket = stack.enter_context(socket.create_connection((host, port), timeout=10))
        if sent:
            channel = stack.enter_context(visitor.tls.wrap_socket(channel, server_hostname=host))
            channel.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode())
        if sent == "body":
            channel.sendall(f"Authorization: Bearer {visitor.token()}\r\nContent-Length: 100\r\n\r\n{{".encode())
        with suppress(OSError):
            while channel.recv(65536):
                pass
    assert LIMITS.client_s * 0.8 < time.monotonic() - started < LIMITS.client_s + 5
