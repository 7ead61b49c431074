"""The pace of a real-time stream, on clocks that are told what time it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.pacing import Missed, Outcome
from loadtest.realtime import RealTime, any_phase, even_phase

CHUNK_S = 0.25  # exact in binary, as are all sums of it


def stream(services_s: list[float], end_s: float = 1e9, wake_late_s: float = 0.0) -> list[Outcome]:
    """A stream whose answers take so long each, in turn."""
    pace, now_s, outcomes = RealTime(10.0, CHUNK_S, end_s), 0.0, []
    for service_s in services_s:
        if pace.over:
            break
        wait_s = pace.wait_s(now_s)
        now_s += wait_s + (wake_late_s if wait_s else 0.0)
        started_s, now_s = now_s, now_s + service_s
        outcomes.append(pace.answered(started_s, now_s))
    return outcomes


def misses(outcomes: list[Outcome]) -> int:
    return sum(isinstance(outcome.error, Missed) for outcome in outcomes)


@given(st.lists(st.floats(0, 2), max_size=50))
def test_due_times_do_not_depend_on_the_answers(services_s: list[float]) -> None:
    outcomes = stream(services_s)
    assert [outcome.due_s for outcome in outcomes] == [10 + turn * CHUNK_S for turn in range(len(services_s))]
    for outcome in outcomes:
        assert outcome.due_s <= outcome.started_s <= outcome.finished_s
        assert outcome.late_ms == 0  # waiting for an answer is not the generator's delay


def test_a_stream_that_keeps_up() -> None:
    outcomes = stream([0.1] * 20)
    assert misses(outcomes) == 0
    assert [outcome.latency_ms for outcome in outcomes] == pytest.approx([100] * 20)


def test_one_slow_answer_delays_the_chunks_behind_it_and_they_say_so() -> None:
    """A closed loop would report one slow answer of 1 s and four of 10 ms."""
    outcomes = stream([0.01, 1.0, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01])
    expected = [10, 1000, 760, 520, 280, 40, 10, 10]
    assert [outcome.latency_ms for outcome in outcomes] == pytest.approx(expected)
    assert misses(outcomes) == 4
    assert "not answered 1000 ms after it was due; the next one came 250 ms after it" in str(outcomes[1].error)


def test_an_answer_exactly_when_the_next_chunk_is_due_is_in_time() -> None:
    assert misses(stream([CHUNK_S] * 3)) == 0
    assert misses(stream([CHUNK_S + 1e-6])) == 1


def test_a_generator_that_wakes_late_is_told_from_a_slow_server() -> None:
    outcomes = stream([0.01] * 5, wake_late_s=0.03)
    assert [outcome.late_ms for outcome in outcomes] == pytest.approx([30] * 5)
    assert [outcome.latency_ms for outcome in outcomes] == pytest.approx([40] * 5)


def test_what_was_never_answered_counts_with_the_time_it_has_waited() -> None:
    pace = RealTime(10.0, CHUNK_S, end_s=12.0)
    pace.answered(10.0, 10.1)
    outcomes = list(pace.unanswered(10.8))
    assert [outcome.due_s for outcome in outcomes] == [10.25, 10.5]  # the one due at 10.75 may still be answered
    assert [outcome.latency_ms for outcome in outcomes] == pytest.approx([550, 300])
    assert misses(outcomes) == 2
    assert all(outcome.late_ms == 0 for outcome in outcomes)
    assert len(list(pace.unanswered(99.0))) == 5  # up to the end, and nothing after it
    assert pace.over


def test_failures_keep_their_error_and_the_pace() -> None:
    pace, error = RealTime(0.0, CHUNK_S), ConnectionError("gone")
    assert pace.answered(0.0, 9.0, error).error is error
    assert pace.due_s == CHUNK_S


@given(st.integers(1, 500))
def test_phases_are_spread_over_the_chunk(streams: int) -> None:
    even = [even_phase(stream, streams) for stream in range(streams)]
    gaps = [later - earlier for earlier, later in zip(even, [*even[1:], 1.0], strict=True)]
    assert gaps == pytest.approx([1 / streams] * streams)
    golden = sorted(any_phase(stream) for stream in range(streams))
    widest = max(later - earlier for earlier, later in zip(golden, [*golden[1:], 1 + golden[0]], strict=True))
    assert golden[0] >= 0
    assert golden[-1] < 1
    assert widest <= 2 / streams
