"""One practice server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.launcher import Server
from tests.clients.practice_server import serve


@pytest.fixture(scope="package")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("repository")) as server:
        yield server
