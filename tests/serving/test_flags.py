"""The command line, from values alone."""

from __future__ import annotations

from pathlib import Path

from serving.config import ServerConfig
from serving.flags import command_line
from serving.installation import Installation
from serving.ports import Ports

EMBEDDED = Installation(Path("/w/bin/tritonserver"), Path("/t/backends"), Path("/w/caches"), embedded=True)
OFFICIAL = Installation(Path("/opt/tritonserver/bin/tritonserver"), Path("/opt/tritonserver/backends"))


def command(config: ServerConfig, installation: Installation = EMBEDDED) -> list[str]:
    return command_line(config, installation, Ports(1, 2, 3), ["a", "b"], server_id="me", key="secret")


def test_everything_that_is_asked_for_is_said() -> None:
    line = command(ServerConfig(Path("/models"), host="10.0.0.1", cache_mb=1))
    assert line[0] == "/w/bin/tritonserver"
    for flag in (
        "--id=me",
        "--model-repository=/models",
        "--model-control-mode=explicit",
        "--grpc-infer-allocation-pool-size=65536",
        "--load-model=a",
        "--load-model=b",
        "--disable-auto-complete-config",
        "--http-address=10.0.0.1",
        "--grpc-address=10.0.0.1",
        "--metrics-address=10.0.0.1",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--backend-directory=/t/backends",
        "--cache-directory=/w/caches",
        "--cache-config=local,size=1048576",
        "--backend-config=python,shm-region-prefix-name=me_",
    ):
        assert flag in line


def test_it_listens_on_loopback_unless_told() -> None:
    assert "--http-address=127.0.0.1" in command(ServerConfig(Path("/models")))


def test_the_key_guards_the_same_on_both_protocols() -> None:
    guard = "model-repository,shared-memory,trace,logging:seqserve-key=secret"
    line = command(ServerConfig(Path("/models")))
    assert f"--http-restricted-api={guard}" in line
    assert f"--grpc-restricted-protocol={guard}" in line


def test_no_cache_when_its_size_is_zero() -> None:
    assert not any("cache-config" in flag for flag in command(ServerConfig(Path("/models"), cache_mb=0)))


def test_a_real_installation_keeps_its_own_backends() -> None:
    line = command(ServerConfig(Path("/models")), OFFICIAL)
    assert "--backend-directory=/opt/tritonserver/backends" in line
    assert not any(flag.startswith(("--backend-config", "--cache-directory")) for flag in line)


def test_a_relative_repository_is_made_absolute(tmp_path: Path) -> None:
    line = command(ServerConfig(Path("models")))
    assert f"--model-repository={Path('models').resolve()}" in line
