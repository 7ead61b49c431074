"""The files of deploy/, read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = sorted([*DEPLOY.glob("kubernetes/*.yaml"), DEPLOY / "prometheus" / "adapter.yaml"])
KSERVE = sorted(DEPLOY.glob("kserve/*.yaml"))
COMPOSE = DEPLOY / "compose.yaml"

Object = dict[str, Any]


def objects(*paths: Path) -> list[Object]:
    """Every object of the files."""
    return [each for path in paths for each in yaml.safe_load_all(path.read_text())]


def kind(name: str, *paths: Path) -> Object:
    """The one object of that kind."""
    (found,) = [each for each in objects(*paths) if each["kind"] == name]
    return found


def containers() -> dict[str, Object]:
    """All of Kubernetes and KServe, by name."""
    pods = [kind("Deployment", *KUBERNETES)["spec"]["template"]["spec"], kind("ServingRuntime", *KSERVE)["spec"]]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


def strings(value: Any) -> Iterator[str]:
    """Every string in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)
