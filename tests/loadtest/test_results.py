from __future__ import annotations

import json
import math

import pytest

from loadtest.pacing import Dropped, Missed, Outcome
from loadtest.results import ALL, Recorder, Row, table


def outcomes(count: int, rate_per_s: float = 10, latency_s: float = 0.002, late_s: float = 0.001) -> list[Outcome]:
    due = [turn / rate_per_s for turn in range(count)]
    return [Outcome(due_s, due_s + late_s, due_s + latency_s) for due_s in due]


def rows_of(**recorded: list[Outcome]) -> list[Row]:
    recorder = Recorder()
    for name, several in recorded.items():
        for outcome in several:
            recorder.add(name, outcome)
    return recorder.rows()


def test_a_row() -> None:
    (row,) = rows_of(grpc=outcomes(100))
    assert (row.name, row.requests, row.failed, row.dropped, row.failure_rate) == ("grpc", 100, 0, 0, 0)
    assert row.offered_per_s == pytest.approx(10)
    assert row.answered_per_s == pytest.approx(10)
    assert (row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms) == pytest.approx((2, 2, 2, 2))
    assert row.service_p50_ms == pytest.approx(1)
    assert row.late_p99_ms == pytest.approx(1)


def test_failures_and_drops_have_no_latency_but_count() -> None:
    lost = [Outcome(10.0, 10.0, 15.0, ConnectionError()), Outcome(10.1, 10.1, 10.1, Dropped())]
    (row,) = rows_of(grpc=outcomes(98) + lost)
    assert (row.requests, row.failed, row.dropped) == (100, 1, 1)
    assert row.failure_rate == pytest.approx(0.02)
    assert row.max_ms == pytest.approx(2)


def test_missed_chunks_are_failures_and_count_in_the_latency() -> None:
    (row,) = rows_of(stream=[*outcomes(9), Outcome(0.9, 0.9, 1.4, Missed())])
    assert (row.requests, row.failed, row.failure_rate) == (10, 1, 0.1)
    assert row.max_ms == pytest.approx(500)


def test_a_backlog_worked_off_later_is_no_throughput() -> None:
    (row,) = rows_of(grpc=[*outcomes(99), Outcome(9.9, 9.9, 19.9)])
    assert row.offered_per_s == pytest.approx(10)
    assert row.answered_per_s == pytest.approx(100 / 19.9)


def test_several_kinds_have_a_row_together() -> None:
    rows = rows_of(http=outcomes(10, latency_s=0.004), grpc=outcomes(10))
    assert [row.name for row in rows] == ["grpc", "http", ALL]
    assert rows[2].requests == 20
    assert (rows[2].p50_ms, rows[2].max_ms) == pytest.approx((2, 4))


def test_nothing_answered() -> None:
    (row,) = rows_of(grpc=[Outcome(0.0, 0.0, 1.0, ConnectionError())])
    assert math.isnan(row.p50_ms)
    assert row.failure_rate == 1
    assert rows_of() == []


def test_workers_results_merge_to_the_same_rows() -> None:
    several = [*outcomes(50), Outcome(5.0, 5.0, 5.0, Dropped()), *outcomes(20, latency_s=0.01)]
    master, worker = Recorder(), Recorder()
    for index, outcome in enumerate(several):
        (master if index % 3 else worker).add("grpc", outcome)
        if index % 10 == 0:  # sent over the network now and then
            master.merge(json.loads(json.dumps(worker.drain())))
    master.merge(worker.drain())
    assert master.rows() == rows_of(grpc=several)
    assert worker.rows() == []


def test_table() -> None:
    lines = table(rows_of(grpc=outcomes(10), http=outcomes(10))).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["grpc", "http", ALL]
    assert len({len(line) for line in lines[:4]}) == 1
