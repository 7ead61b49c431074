"""The compose file against the published schema (as pydantic models), and against rules of our own."""

from __future__ import annotations

import re

import pytest
import yaml
from compose_pydantic import ComposeSpecification
from pydantic import ValidationError

from serving.config import ServerConfig
from tests.deploy import manifests

GIVEN = yaml.safe_load(manifests.COMPOSE.read_text())
SERVICES = GIVEN["services"]


def test_it_fits_the_schema() -> None:
    known = {name: value for name, value in GIVEN.items() if not name.startswith("x-")}
    assert ComposeSpecification(**known)
    with pytest.raises(ValidationError):
        ComposeSpecification(**known | {"services": {"door": {"imag": "nginx"}}})


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_pinned_bounded_and_without_rights(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d[\w.-]*$", service["image"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert {"mem_limit", "cpus"} <= service.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for mount in SERVICES[name].get("volumes", ()):
        source = mount.partition(":")[0]
        if source.startswith("${"):
            continue  # secrets, which are not committed
        if source.startswith("."):
            assert (manifests.DEPLOY / source).exists(), source
            assert mount.endswith(":ro")
        else:
            assert source in GIVEN["volumes"]


def test_only_the_door_and_grafana_are_reachable_from_outside() -> None:
    default = ServerConfig()
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    ports = [f"{port}:{port}" for port in (default.http_port, default.grpc_port)]
    assert published == {"pod": ports, "grafana": ["127.0.0.1:3000:3000"]}
    assert SERVICES["triton"]["network_mode"] == "service:pod"
    assert GIVEN["networks"]["inside"]["internal"] is True


def test_the_images_are_those_of_kubernetes() -> None:
    pinned = {container["image"] for container in manifests.containers().values()}
    assert {SERVICES[name]["image"] for name in ("door", "triton", "exporter")} == pinned


def test_it_demands_its_secrets() -> None:
    assert all(":?" in line or ":-" in line for line in re.findall(r"\$\{[^}]*\}", manifests.COMPOSE.read_text()))
