"""A real Triton whose models suit small load tests: streams with chunks of 100 ms, and few slots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from optimize.specs import ServingSpec
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models

CHUNK = 1600  # samples, 100 ms
SLOTS = 16


@pytest.fixture(scope="package")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`speech` has 64 slots; `briefly` forgets silent streams after 0.2 s and has 16; `speech_chunk_160` has chunks
    of an eighth of a millisecond, which nobody answers in time; the others have no streams."""
    repository = tmp_path_factory.mktemp("streaming")
    for model in (
        tiny_models.listen("speech", ServingSpec(max_streams=64, idle_us=1_000_000), time=CHUNK),
        tiny_models.listen("briefly", ServingSpec(max_streams=SLOTS, idle_us=200_000), time=CHUNK),
        tiny_models.listen("speech_chunk_160", time=2),
        tiny_models.double(),
        tiny_models.lookup(),
    ):
        model.write(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server
