"""Traces of a real server, switched on and off while it serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import clients
from serving import trace
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models


def traced(folder: Path) -> int:
    """Requests in the files."""
    entries = [entry for file in folder.glob("traces.json*") for entry in json.loads(file.read_text())]
    return len({entry["id"] for entry in entries if "timestamps" in entry or "model_name" in entry})


def test_every_request_while_on_and_none_while_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "models"
    tiny_models.double().write(repository)
    x = {"x": np.ones((1, 4), np.float32)}
    at = ["--model-repository", str(repository)]
    config = ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, trace_file=tmp_path / "traces.json")
    with Server(config) as server, clients.connect(server.grpc, protocol="grpc") as client:
        client.infer("double", x)
        assert trace.main(["--rate", "1", *at]) == 0
        for _ in range(3):
            client.infer("double", x)
        assert trace.main(["--off", *at]) == 0
        client.infer("double", x)
    assert traced(tmp_path) == 3
    said = capsys.readouterr().out
    assert "1 of 1 requests is traced" in said
    assert "traces are off" in said


def test_what_is_switched_for_all_takes_back_what_was_switched_for_one(tmp_path: Path) -> None:
    """In both directions: a model that was left out, too, takes part again."""
    repository = tmp_path / "models"
    tiny_models.double().write(repository)
    tiny_models.slow().write(repository)
    x = {"x": np.ones((1, 4), np.float32)}
    at = ["--model-repository", str(repository)]
    config = ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, trace_file=tmp_path / "traces.json")
    with Server(config) as server, clients.connect(server.grpc, protocol="grpc") as client:
        for one, all_of_them, times in ((["--rate", "1"], ["--off"], 5), (["--off"], ["--rate", "1"], 3)):
            assert trace.main([*one, "--model", "double", *at]) == 0
            client.infer("double", x)
            assert trace.main([*all_of_them, *at]) == 0
            for _ in range(times):
                client.infer("double", x)
    assert traced(tmp_path) == 1 + 3


def test_a_server_without_a_file_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_models.double().write(tmp_path)
    with Server(ServerConfig(tmp_path, http_port=0, grpc_port=0, metrics_port=0)):
        assert trace.main(["--rate", "1", "--model-repository", str(tmp_path)]) == 2
    assert "--trace-file" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["1", "0", "-1"])
def test_nobody_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str) -> None:
    assert trace.main(["--rate", rate, "--model-repository", str(tmp_path)]) == 2
    assert ("no server" if rate == "1" else f"--rate is {rate}; expected 1") in capsys.readouterr().err
