"""One practice server for the tests of this folder, and commands run against the ``server`` of a test file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from clients.__main__ import main
from serving.launcher import Server
from tests.clients.practice_server import serve

Command = Callable[..., str]


@pytest.fixture(scope="package")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("repository")) as server:
        yield server


@pytest.fixture
def ask(server: Server, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command against the server; what it printed."""

    def run(*arguments: str) -> str:
        assert main([arguments[0], "--address", server.grpc, *arguments[1:]]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(server: Server, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must fail with one line on standard error; that line."""

    def run(*arguments: str) -> str:
        assert main([arguments[0], "--address", server.grpc, *arguments[1:]]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run
