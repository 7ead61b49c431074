"""Free ports, and which option to change when one is not."""

from __future__ import annotations

import socket

import pytest

from optimize.errors import UserError
from serving import ports
from serving.config import ServerConfig


def any_ports(**given: object) -> ServerConfig:
    return ServerConfig(**{"http_port": 0, "grpc_port": 0, "metrics_port": 0, **given})  # type: ignore[arg-type]


def test_zeros_become_three_different_ports() -> None:
    chosen = ports.choose(any_ports())
    assert len(set(vars(chosen).values())) == 3
    assert all(vars(chosen).values())


@pytest.mark.parametrize(
    ("field", "option"),
    [("http_port", "--http-port"), ("grpc_port", "--grpc-port"), ("metrics_port", "--metrics-port")],
)
def test_a_busy_port_is_named_with_its_option(field: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} \({option}\) is already in use on 127\.0\.0\.1"):
            ports.choose(any_ports(**{field: port}))


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_foreign_host_is_refused(host: str) -> None:
    with pytest.raises(UserError, match=f"--host '{host}' is not an address of this machine"):
        ports.choose(any_ports(host=host))


def test_the_address_to_reach_a_server_that_listens_everywhere() -> None:
    assert ports.reachable("0.0.0.0", 8000) == "127.0.0.1:8000"
    assert ports.reachable("::1", 8000) == "[::1]:8000"


def test_equal_ports_and_impossible_ones_are_refused() -> None:
    with pytest.raises(UserError, match="must differ"):
        ServerConfig(http_port=9000, grpc_port=9000)
    with pytest.raises(UserError, match="--health-port must differ, got 8000, 8001, 8002, 8002"):
        ServerConfig(health_port=8002)
    with pytest.raises(UserError, match="--grpc-port is 70000"):
        ServerConfig(grpc_port=70000)
