"""A Triton of its own, with a stateful and a cached model, its probes and its page of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.request import urlopen

import pytest

from optimize.specs import ServingSpec
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("model_repository")
    tiny_models.listen(serving=ServingSpec(max_streams=4, idle_us=5_000_000)).write(repository)
    tiny_models.double("double_cached", ServingSpec(response_cache=True)).write(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, health_port=0)) as server:
        yield server


def pages(server: Server) -> str:
    """Triton's metrics, and those of the launcher."""
    assert server.probes is not None
    text = ""
    for address in (server.metrics, server.probes.address):
        with urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text += answer.read().decode()
    return text
