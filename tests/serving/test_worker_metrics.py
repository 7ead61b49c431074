"""The page of a real server, through a worker's death; and of planted files."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

import clients
from clients.errors import ClientError
from optimize.specs import ServingSpec
from serving import canary, worker_metrics
from serving.config import ServerConfig
from serving.launcher import Server
from serving.probes import Probes
from serving.worker_metrics import NUMBERS, WorkerMetrics
from tests import tiny_models

CHUNK = np.ones(16, np.int16)


def value(page: str, metric: str, **labels: str) -> float:
    """The one value of the metric with these labels."""
    found = re.findall(rf"^{metric}{{(.*)}} (\d+)$", page, re.MULTILINE)
    wanted = {f'{name}="{text}"' for name, text in labels.items()}
    (number,) = [float(number) for given, number in found if wanted <= set(given.split(","))]
    return number


def logged(server: Server) -> list[str]:
    """The events in Triton's log."""
    lines = [line for line in server.log.read_text().splitlines() if "stream_metrics.py" in line]
    return [json.loads(json.loads(line.partition("] ")[2]))["event"] for line in lines]


def test_a_server_tells_of_its_streams_and_of_a_lost_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQSERVE_STREAM_LOG", "1")
    tiny_models.listen(serving=ServingSpec(max_streams=2, idle_us=5_000_000)).write(tmp_path)
    with Server(ServerConfig(tmp_path, http_port=0, grpc_port=0, metrics_port=0, health_port=0)) as server:
        assert server.probes is not None
        address = server.probes.address

        def page() -> str:
            with urlopen(f"http://{address}/metrics", timeout=10) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                return str(answer.read().decode())

        def told(metric: str, **labels: str) -> float:
            return value(page(), metric, model="listen", **labels)

        with clients.connect(server.grpc, protocol="grpc") as client:
            with client.stream("listen") as session:
                session.send(CHUNK)
                session.finish(CHUNK)
            before = told("seqserve_stream_events_total", event="ended")
            with client.stream("listen") as one, client.stream("listen") as two:
                one.send(CHUNK)
                two.send(CHUNK)
                assert told("seqserve_streams_open") == 2
                assert told("seqserve_streams_free") == 0
                assert told("seqserve_state_bytes") == 2 * (8 + 16 * 4)
                with pytest.raises(ClientError), client.stream("listen") as third:
                    third.send(CHUNK)
                refused = told("seqserve_stream_events_total", event="refused")
                assert refused >= 1
                assert canary.refusal(server.http, "listen") is None, "a full model answers"
                assert told("seqserve_stream_events_total", event="refused") == refused
                runs = told("seqserve_run_rows_count")
                (pid,) = [
                    int(path.name.rpartition("_")[2])
                    for path in Path("/dev/shm").glob(f"{server.log.parent.name}_count_*")
                ]
                os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + 30
                while told("seqserve_model_reloads_total") < 1 or told("seqserve_workers") < 1:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                with pytest.raises(ClientError):
                    one.send(CHUNK)
                with pytest.raises(ClientError):
                    two.send(CHUNK)
        assert logged(server)[:5] == ["started", "ended", "started", "started", "refused"]
        assert told("seqserve_sessions_lost_total") == 2
        assert told("seqserve_workers_lost_total") == 1
        assert told("seqserve_streams_open") == 0
        assert told("seqserve_stream_events_total", event="ended") >= before, "counts do not go back"
        assert told("seqserve_run_rows_count") >= runs


def planted(prefix: str, pid: int, **counts: int) -> Path:
    path = Path(f"/dev/shm/{prefix}_count_{pid}")
    numbers = [counts.get(name, 0) for name in NUMBERS]
    about = {"model": "m", "version": "2", "worker": "m_0_0"}
    path.write_bytes(struct.pack(f"<{len(numbers)}Q", *numbers) + json.dumps(about).encode())
    return path


def test_workers_add_up_and_those_that_ended_stay() -> None:
    prefix = f"seqserve-test-{os.getpid()}"
    metrics = WorkerMetrics(prefix, {})
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    files = [
        planted(prefix, os.getpid(), streams=3, room=8, started=5, rows_4=2, rows_sum=7),
        planted(prefix, other.pid, streams=2, room=8, started=4, rows_1=1, rows_sum=1),
    ]
    try:
        page = metrics.page()
        assert value(page, "seqserve_streams_open", model="m") == 5
        assert value(page, "seqserve_streams_free", model="m") == 11
        assert value(page, "seqserve_run_rows_bucket", le="2") == 1
        assert value(page, "seqserve_run_rows_bucket", le="4") == 3
        assert value(page, "seqserve_run_rows_sum", model="m") == 8
        other.communicate(b"\n")
        for _ in range(2):  # what is gone is counted once
            page = metrics.page()
            assert value(page, "seqserve_workers", model="m") == 1
            assert value(page, "seqserve_streams_open", model="m") == 3
            assert value(page, "seqserve_stream_events_total", event="started") == 9
            assert value(page, "seqserve_sessions_lost_total", model="m") == 2
        assert not files[1].exists()
        files[0].unlink()  # an orderly end loses nobody
        page = metrics.page()
        assert "seqserve_workers{" not in page
        assert value(page, "seqserve_sessions_lost_total", model="m") == 2
        assert value(page, "seqserve_stream_events_total", event="started") == 9
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_an_orderly_end_at_the_moment_of_a_look_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file goes after it was read, and the worker before somebody looks whether it lives."""
    prefix = f"seqserve-test-{os.getpid()}"
    metrics = WorkerMetrics(prefix, {})
    file = planted(prefix, os.getpid(), streams=3, started=5)
    try:
        metrics.page()

        def gone(pid: int) -> None:
            file.unlink()

        monkeypatch.setattr(worker_metrics, "start_time", gone)
        page = metrics.page()
        assert value(page, "seqserve_sessions_lost_total", model="m") == 0
        assert value(page, "seqserve_stream_events_total", event="started") == 5
    finally:
        file.unlink(missing_ok=True)


def test_files_that_are_not_complete_are_passed_over() -> None:
    prefix = f"seqserve-test-{os.getpid()}"
    file = Path(f"/dev/shm/{prefix}_count_{os.getpid()}")
    file.write_bytes(b"\0" * 24)
    try:
        assert "seqserve_workers{" not in WorkerMetrics(prefix, {}).page()
    finally:
        file.unlink()


def test_without_workers_there_is_no_page() -> None:
    probes = Probes(0, "127.0.0.1:1", list, None)
    try:
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://{probes.address}/metrics", timeout=10)
    finally:
        probes.close()
