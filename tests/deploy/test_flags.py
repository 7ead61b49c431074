"""Every manifest starts Triton as `python -m serving` would start an installed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optimize.target_runtime import IMAGE
from serving import pod
from serving.config import ServerConfig
from serving.flags import command_line
from serving.installation import Installation
from serving.ports import Ports
from tests.deploy import manifests

ROOT = Path("/opt/tritonserver")
DEFAULT = ServerConfig()
BEHIND_A_DOOR = Ports(pod.TRITON_HTTP_PORT, pod.TRITON_GRPC_PORT, DEFAULT.metrics_port)
ALONE = Ports(DEFAULT.http_port, DEFAULT.grpc_port, DEFAULT.metrics_port)


def kubernetes(container: str) -> tuple[str, list[str]]:
    given = manifests.containers()[container]
    return given["image"], given["command"] + given["args"]


def compose() -> tuple[str, list[str]]:
    given = yaml.safe_load(manifests.COMPOSE.read_text())["services"]["triton"]
    return given["image"], given["entrypoint"] + given["command"]


def expected(repository: str, host: str, ports: Ports, key: str, models: list[str]) -> list[str]:
    config = ServerConfig(Path(repository), host, health_port=0)  # somebody watches
    installed = Installation(ROOT / "bin" / "tritonserver", ROOT / "backends", ROOT / "caches")
    line = command_line(config, installed, ports, models, "id", key)
    # Prometheus is on another machine than Triton, whatever the host.
    return ["--metrics-address=0.0.0.0" if "--metrics-address" in flag else flag for flag in line if "--id" not in flag]


@pytest.mark.parametrize(
    ("given", "repository", "host", "ports", "key"),
    [
        (kubernetes("triton"), "/models", "127.0.0.1", BEHIND_A_DOOR, "$(SEQSERVE_KEY)"),
        (kubernetes("kserve-container"), "/mnt/models", "0.0.0.0", ALONE, "$(SEQSERVE_KEY)"),
        (compose(), "/models", "127.0.0.1", BEHIND_A_DOOR, "${SEQSERVE_KEY:?a secret}"),
    ],
    ids=["kubernetes", "kserve", "compose"],
)
def test_the_flags_are_those_of_serving(
    given: tuple[str, list[str]], repository: str, host: str, ports: Ports, key: str
) -> None:
    image, line = given
    models = [flag.partition("=")[2] for flag in line if flag.startswith("--load-model=")]
    assert image == IMAGE
    assert line == expected(repository, host, ports, key, models)


def test_the_models_that_are_loaded_are_those_that_are_probed() -> None:
    for container in ("triton", "kserve-container"):
        given = manifests.containers()[container]
        loaded = [flag.partition("=")[2] for flag in given["args"] if flag.startswith("--load-model=")]
        for probe in ("readinessProbe", "startupProbe"):
            assert given[probe]["exec"]["command"][4:] == loaded
    given = yaml.safe_load(manifests.COMPOSE.read_text())["services"]["triton"]
    assert given["healthcheck"]["test"][5:] == loaded
    assert all((manifests.DEPLOY.parent / "model_repository" / model / "config.pbtxt").is_file() for model in loaded)
