"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads spin for each other on a busy machine

import pytest

from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Triton that serves the tiny models, on ports that the system chose; shared by the whole run."""
    repository = tmp_path_factory.mktemp("model_repository")
    tiny_models.write_repository(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server
