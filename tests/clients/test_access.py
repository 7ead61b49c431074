"""TLS and tokens, from the options to what is sent: no proxy needed, a TLS gRPC server of this process answers."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

import clients
from clients import access
from serving.front_door import certificates
from tests.clients.scripted_triton import ScriptedTriton

CHUNK = {"x": np.ones((1, 1), np.float32)}


@dataclass
class SecureServer:
    address: str
    authority: Path
    tokens: list[str] = field(default_factory=list)
    """The authorization of each call."""


class _Doorman(grpc.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self._tokens.append(dict(details.invocation_metadata).get("authorization", ""))
        return continuation(details)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SecureServer]:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "certificate.key"
    certificates.make(certificate, key, "127.0.0.1")
    found = SecureServer("", certificate)
    with ThreadPoolExecutor() as pool:
        serving = grpc.server(pool, interceptors=[_Doorman(found.tokens)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(ScriptedTriton(), serving)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        found.address = f"127.0.0.1:{serving.add_secure_port('127.0.0.1:0', credentials)}"
        serving.start()
        yield found
        serving.stop(None).wait()


def test_every_call_carries_the_token(server: SecureServer) -> None:
    with (
        clients.connect(server.address, tls=server.authority, token="abc") as client,
        client.stream("totals") as session,
    ):
        assert session.send(CHUNK)["y"].item() == 1
    assert len(server.tokens) >= 4  # live, metadata, config, stream
    assert set(server.tokens) == {"Bearer abc"}


def test_every_call_carries_the_token_async(server: SecureServer) -> None:
    async def ask() -> float:
        async with (
            await clients.aio.connect(server.address, tls=server.authority, token="abc") as client,
            client.stream("totals") as session,
        ):
            return float((await session.send(CHUNK))["y"].item())

    assert asyncio.run(ask()) == 1
    assert set(server.tokens) == {"Bearer abc"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_with_another_certificate_is_not_trusted(
    server: SecureServer, tmp_path: Path, protocol: clients.ProtocolName
) -> None:
    certificates.make(tmp_path / "other.pem", tmp_path / "other.key", "127.0.0.1")
    for tls in (True, tmp_path / "other.pem"):
        with pytest.raises(clients.ServerUnavailable):
            clients.connect(server.address, protocol=protocol, tls=tls, token="abc")
    assert server.tokens == []


def test_what_this_machine_trusts(server: SecureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.authority))
    with clients.connect(server.address, tls=True, token="abc") as client:
        assert client.signature("totals").version == "3"


def test_a_file_by_its_name_alone() -> None:
    with pytest.raises(clients.ClientError, match=r"tls='ca\.pem': expected True, or the Path of a PEM file"):
        access.Access("ca.pem")  # type: ignore[arg-type]


def test_a_token_never_travels_in_plain_text() -> None:
    with pytest.raises(clients.ClientError, match="must not travel in plain text"):
        clients.connect("127.0.0.1:1", token="abc")


@pytest.mark.parametrize("token", ["a b", "a\nb", "é"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(clients.ClientError, match="expected one printable word") as caught:
        access.Access(True, token)
    assert token not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(clients.ClientError, match=r"none\.pem': No such file"):
        access.Access(tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(clients.ClientError, match="no PEM certificate"):
        access.Access(tmp_path / "bad.pem")
    with pytest.raises(clients.ClientError, match=r"--token .*none: cannot be read"):
        access.arguments(options("--token", str(tmp_path / "none")))


def test_options(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert access.arguments(options()) == {"tls": False, "token": ""}
    assert access.arguments(options("--tls", "--token", str(tmp_path / "token"))) == {"tls": True, "token": "abc"}
    assert access.arguments(options("--tls-ca", "a.pem")) == {"tls": Path("a.pem"), "token": ""}


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    access.add_arguments(parser)
    return parser.parse_args(given)
