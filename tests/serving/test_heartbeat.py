"""A worker's sign of life: what the backend writes is what the launcher reads."""

from __future__ import annotations

import os
import time
from pathlib import Path

import heartbeat as backend
import pytest

from serving import heartbeats
from serving.heartbeats import Heartbeats
from tests.serving.test_launcher import eventually


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heartbeats:
    monkeypatch.setattr(heartbeats, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv(backend.ENVIRONMENT, f"{tmp_path}/server-1_")
    return Heartbeats("server-1")


def test_both_sides_speak_of_the_same_variable() -> None:
    assert backend.ENVIRONMENT == heartbeats.ENVIRONMENT


def test_what_is_written_is_read(read: Heartbeats) -> None:
    worker = backend.Heartbeat.of_worker("speech", "speech_0_1")
    worker.begin()
    worker.end(streams=2)
    worker.begin()
    (seen,) = read.read()
    assert (seen.pid, seen.model, seen.instance) == (os.getpid(), "speech", "speech_0_1")
    assert (seen.begun, seen.ended, seen.streams, seen.busy) == (2, 1, 2, True)
    worker.end(streams=1)
    assert (read.read()[0].streams, read.read()[0].busy) == (1, False)
    worker.close()
    worker.close()
    assert read.read() == []


def test_it_beats_by_itself(read: Heartbeats) -> None:
    worker = backend.Heartbeat.of_worker("speech", "speech_0_0")
    eventually(lambda: read.read()[0].beats >= 2)
    worker.close()


def test_without_a_launcher_there_is_no_file(read: Heartbeats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.ENVIRONMENT)
    worker = backend.Heartbeat.of_worker("speech", "speech_0_0")
    worker.begin()
    worker.end(streams=1)
    worker.close()
    assert read.read() == []


def test_what_is_no_heartbeat_is_passed_over_and_the_dead_are_forgotten(read: Heartbeats, tmp_path: Path) -> None:
    for name, content in (("77", b"short"), ("78", bytes(32) + b"{"), ("none", bytes(32) + b"{}")):
        (tmp_path / f"server-1_beat_{name}").write_bytes(content)
    assert read.read() == []
    read.forget(77)
    read.forget(77)
    assert not (tmp_path / "server-1_beat_77").exists()


def test_a_heartbeat_costs_microseconds(read: Heartbeats) -> None:
    worker = backend.Heartbeat.of_worker("speech", "speech_0_0")
    begin = time.perf_counter()
    for _ in range(10_000):
        worker.begin()
        worker.end(streams=1)
    assert time.perf_counter() - begin < 1.0  # 100 microseconds each, on any machine
    worker.close()
