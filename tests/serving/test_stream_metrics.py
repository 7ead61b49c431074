"""What a worker counts, and what it says in the log."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import stream_metrics
from hypothesis import given
from hypothesis import strategies as st
from onnx_contract import Tensor
from stream_metrics import StreamMetrics
from streams import Streams, TooManyStreams, UnknownStream

from serving import canary, worker_metrics

ABOUT = {"model": "listen", "version": "1", "worker": "listen_0_0"}


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log_info(self, message: str) -> None:
        self.lines.append(message)


def test_both_sides_know_the_same_numbers() -> None:
    for name in ("NUMBERS", "EVENTS", "ROWS"):
        assert getattr(stream_metrics, name) == getattr(worker_metrics, name)
    assert stream_metrics.CANARY == canary.STREAM


ACTIONS = st.tuples(st.sampled_from(["start", "go on", "end", "fail", "wait"]), st.integers(1, 6))


@given(st.lists(ACTIONS, max_size=60))
def test_every_stream_that_started_is_open_or_accounted_for(actions: list[tuple[str, int]]) -> None:
    clock, counts = [0.0], Counter[str]()
    streams = Streams(
        [Tensor("state", np.dtype(np.float32), (2,))],
        3,
        1.0,
        4,
        lambda: clock[0],
        lambda what, _: counts.update([what]),
    )
    unknown = refused = 0
    for what, stream in actions:
        if what == "wait":
            clock[0] += stream
            streams.expire()
        elif what in ("end", "fail"):
            streams.leave(stream, {"end": "ended", "fail": "failed"}[what])
        else:
            try:
                streams.enter(stream, start=what == "start")
            except UnknownStream:
                unknown += 1
            except TooManyStreams:
                refused += 1
        gone = sum(counts[why] for why in ("replaced", "ended", "failed", "expired", "evicted"))
        assert counts["started"] == len(streams) + gone
    assert (counts["unknown"], counts["refused"]) == (unknown, refused)
    assert counts.keys() <= set(stream_metrics.EVENTS)


def test_a_canary_is_no_event() -> None:
    log = Log()
    metrics = StreamMetrics("", ABOUT, log)
    for stream in (canary.STREAM, 7):
        metrics.event("refused", stream)
    assert [json.loads(line)["stream"] for line in log.lines] == [7]
    assert sum(np.frombuffer(bytes(metrics._memory), np.uint64)) == 1


def test_events_are_lines_of_json_once_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, lines in (("1", 1), ("0", 0), ("", 0)):
        monkeypatch.setenv(stream_metrics.LOG_ENVIRONMENT, value)
        log = Log()
        StreamMetrics.of_worker("listen", "1", "listen_0_0", log).event("refused", "call-7")
        assert [json.loads(line) for line in log.lines] == [{"event": "refused", "stream": "call-7"} | ABOUT] * lines


@given(st.lists(st.integers(1, 300), max_size=20))
def test_runs_fall_into_the_bucket_of_their_size(rows: list[int]) -> None:
    metrics = StreamMetrics("", ABOUT)
    for each in rows:
        metrics.ran(each)
    content = bytes(metrics._memory)
    counts = dict(zip(stream_metrics.NUMBERS, np.frombuffer(content, np.uint64).tolist(), strict=True))
    below = 0
    for bound in stream_metrics.ROWS:
        assert counts[f"rows_{bound}"] == sum(below < each <= bound for each in rows)
        below = bound
    assert counts["rows_inf"] == sum(each > below for each in rows)
    assert counts["rows_sum"] == sum(rows)


def test_the_file_is_the_owner_s_alone_and_goes_with_it(tmp_path: Path) -> None:
    metrics = StreamMetrics(str(tmp_path / "counts"), ABOUT)
    assert (tmp_path / "counts").stat().st_mode & 0o077 == 0
    metrics.close()
    assert not list(tmp_path.iterdir())
