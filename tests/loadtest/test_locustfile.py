"""The load test as it is run: locust in a process of its own, against a real server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.choice import chosen
from serving.launcher import Server
from tests.clients.practice_server import serve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("repository")) as server:
        yield server


def locust(grpc: str, http: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"]
    command += ["--loglevel", "WARNING", "--users", "2", "--spawn-rate", "2", "--run-time", "2s"]
    command += ["--grpc-address", grpc, "--http-address", http, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "DATA_DIR"}
    return subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True)


def test_a_good_run(practice: Server, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    limits = ["--max-failure-rate", "0", "--min-throughput", "1", "--max-p99-ms", "60000"]
    run = locust(practice.grpc, practice.http, "--rate", "40", "--summary-json", str(path), *limits)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().endswith("the load test passed")
    summary = json.loads(path.read_text())
    assert summary["passed"]
    assert [row["name"] for row in summary["rows"]] == ["grpc load_forecast", "http load_forecast", "all"]
    assert summary["rows"][-1]["failure_rate"] == 0
    assert summary["rows"][-1]["requests"] > 10
    assert len(summary["thresholds"]) == 5  # two latencies, two failure rates, one throughput


def test_a_broken_threshold(practice: Server) -> None:
    run = locust(practice.grpc, practice.http, "--max-p50-ms", "0.001", "--arrivals", "poisson", "GrpcForecaster")
    assert run.returncode == 1
    assert "FAILED  grpc load_forecast: p50 latency" in run.stdout
    assert run.stdout.rstrip().endswith("the load test FAILED")
    assert "http load_forecast" not in run.stdout


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    run = locust(address, address)
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if "ERROR" in line]
    assert f"no Triton server answers at {address}" in line
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--rate", "0"), ("--rate", "many"), ("--max-in-flight", "0"), ("--summary-json", "/no/such/folder/summary.json")],
)
def test_bad_options(option: str, value: str) -> None:
    run = locust("", "", option, value)
    assert run.returncode == 2
    assert option in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_data_that_cannot_be_used(practice: Server, tmp_path: Path) -> None:
    (tmp_path / "electricity").mkdir()
    (tmp_path / "electricity" / "vic_elec_hourly.csv.gz").write_bytes(b"")
    run = locust(practice.grpc, practice.http, DATA_DIR=str(tmp_path))
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if "ERROR" in line]
    assert "vic_elec_hourly.csv.gz" in line
    assert "Traceback" not in run.stderr


OVERLAP = """
from gevent import monkey
monkey.patch_all()
import grpc.experimental.gevent
grpc.experimental.gevent.init_gevent()
import sys
from itertools import islice
import gevent, gevent.pool
import numpy as np
import clients
from loadtest.pacing import OpenLoop, even
from loadtest.users import clock_s

for protocol, address in zip(("grpc", "http"), sys.argv[1:]):
    client = clients.connect(address, protocol=protocol, connections=4)
    answers, failures, group = [], [], gevent.pool.Group()
    OpenLoop(
        islice(even(1000, clock_s()), 4),
        send=lambda: answers.append(client.infer("double_of_four", {"x": np.ones((1, 4), np.float32)})),
        report=lambda outcome: failures.append(outcome.error) if outcome.error else None,
        max_in_flight=4,
        clock=clock_s,
        sleep=gevent.sleep,
        spawn=group.spawn,
    ).run()
    group.join()
    print(*(answer["rows"].item() for answer in answers), *failures)
"""


def test_requests_overlap_under_gevent(triton: Server) -> None:
    """The model runs when four requests wait for it: each is answered "four ran together" only if they overlap."""
    run = subprocess.run(
        [sys.executable, "-c", OVERLAP, triton.grpc, triton.http], cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout == "4 4 4 4\n4 4 4 4\n", run.stderr


def test_streams_in_real_time(streaming: Server, tmp_path: Path) -> None:
    """The server has no forecaster, so its two streaming models are chosen, a stream of each."""
    path = tmp_path / "summary.json"
    limits = ["--max-p99-ms", "60000", "--max-failure-rate", "1"]
    run = locust(streaming.grpc, streaming.http, "--utterance", "0.3", "--summary-json", str(path), *limits)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["speech chunk", "speech_chunk_160 chunk", "all"]
    assert 2 < rows["speech chunk"]["requests"] <= 22  # ten chunks a second, for at most 2 s
    assert rows["all"]["dropped"] == 0
    errors = [line for line in run.stderr.splitlines() if " chunk: " in line]
    assert all("Missed('not answered" in line for line in errors), errors


def test_missed_chunks_are_failures(streaming: Server, tmp_path: Path) -> None:
    """Chunks of an eighth of a millisecond: no answer comes before the next one is due."""
    path = tmp_path / "summary.json"
    run = locust(streaming.grpc, streaming.http, "--summary-json", str(path), "SpeechChunk160Streamer")
    assert run.returncode == 1, run.stdout + run.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["failed"] == row["requests"] > 0
    assert row["p50_ms"] > 0.125  # what came too late is in the latencies all the same


def test_forecasters_come_first_where_the_server_has_their_model() -> None:
    class Of:
        def __init__(self, model: str, streams: bool) -> None:
            self.model, self.streams = model, streams

    forecaster, speech, other = Of("load_forecast", False), Of("speech", True), Of("speech_chunk_160", True)
    everyone = [forecaster, speech, other]
    assert chosen(everyone, {"load_forecast", "speech"}) == [forecaster]
    assert chosen(everyone, {"speech", "listen"}) == [speech]
    assert chosen(everyone, {"speech", "speech_chunk_160"}) == [speech, other]
    assert chosen(everyone, {"another"}) == [forecaster]
    assert chosen([speech, other], set()) == [speech, other]


def test_a_model_that_is_named_and_not_there(streaming: Server) -> None:
    run = locust(streaming.grpc, streaming.http, "SpeechChunk640Streamer")
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if "ERROR" in line]
    assert "'speech_chunk_640' is not found" in line
