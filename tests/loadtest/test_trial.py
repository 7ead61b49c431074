"""What a trial's numbers mean: sustained, not, or the generator's own fault; and the server's own count."""

from __future__ import annotations

import pytest

from loadtest.load import Part
from loadtest.pacing import Dropped, Missed, Outcome
from loadtest.search import Finding
from loadtest.server_statistics import RequestTime, ServerWork
from loadtest.trial import Goal, Trial, judge

GOAL = Goal(p99_limit_ms=100, period_s=0.1)
WORK = ServerWork({1: 10, 4: 20}, compute_s=1.8, queue_s=0.1)


def chunks(count: int, latency_s: float = 0.01, late_s: float = 0.0, error: Exception | None = None) -> list[Outcome]:
    return [Outcome(due_s := 5 + turn / 10, due_s + late_s, due_s + late_s + latency_s, error) for turn in range(count)]


def trial(outcomes: list[Outcome], goal: Goal = GOAL, cpu_s: float = 1.0, from_s: float = 0.0) -> Trial:
    half = len(outcomes) // 2
    parts = [Part(outcomes[:half], cpu_s, 10.0), Part(outcomes[half:], 0.1, 10.0)]
    return judge(3, False, goal, parts, from_s, 10.0, WORK, 0.5)


def test_a_sustained_level() -> None:
    seen = trial(chunks(1000))
    assert seen.finding is Finding.SUSTAINED
    assert (seen.requests, seen.missed, seen.failed, seen.dropped, seen.first_failure) == (1000, 0, 0, 0, "")
    assert (seen.p50_ms, seen.p99_ms, seen.max_ms) == pytest.approx((10, 10, 10))
    assert seen.generator_cores == pytest.approx(0.1)
    assert seen.server_cores == 0.5


def test_computing_for_a_second_of_audio() -> None:
    """90 chunks of 0.1 s were answered, in runs that took 1.8 s."""
    seen = trial(chunks(90))
    assert seen.real_time_factor == pytest.approx(0.2)
    assert seen.compute_share == pytest.approx(0.18)
    assert seen.mean_batch == 3
    assert trial(chunks(90), Goal(20.0)).real_time_factor is None


@pytest.mark.parametrize("error", [Missed("late"), ConnectionError("gone"), Dropped("full")])
def test_one_bad_chunk_of_a_thousand_is_too_many(error: Exception) -> None:
    seen = trial(chunks(999) + chunks(1, error=error))
    assert seen.finding is Finding.NOT_SUSTAINED
    assert seen.requests == 1000
    assert seen.missed + seen.failed + seen.dropped == 1
    assert seen.first_failure == ("" if isinstance(error, Missed) else str(error))


def test_missed_chunks_count_in_the_latency() -> None:
    seen = trial(chunks(90) + chunks(10, latency_s=0.4, error=Missed("late")))
    assert seen.p99_ms == pytest.approx(400)


def test_a_limit_shorter_than_the_chunk() -> None:
    assert trial(chunks(100, latency_s=0.05), Goal(40, 0.1)).finding is Finding.NOT_SUSTAINED
    assert trial(chunks(100, latency_s=0.05), Goal(60, 0.1)).finding is Finding.SUSTAINED


def test_a_late_generator_claims_nothing() -> None:
    """Its p99 counts: 1 % may be late."""
    assert trial(chunks(99) + chunks(1, late_s=0.011)).finding is Finding.SUSTAINED
    assert trial(chunks(98) + chunks(2, late_s=0.009)).finding is Finding.SUSTAINED
    for outcomes in (chunks(98) + chunks(2, late_s=0.011), chunks(98) + chunks(2, late_s=0.011, error=Missed("late"))):
        assert trial(outcomes).finding is Finding.GENERATOR


def test_waiting_for_an_answer_is_not_the_generators_delay() -> None:
    held = [Outcome(5.0, 5.05, 5.06, held_s=5.05)] * 100
    assert trial(held).finding is Finding.SUSTAINED


def test_a_busy_generator_takes_the_blame_only_for_what_was_not_sustained() -> None:
    assert trial(chunks(100), cpu_s=9.5).finding is Finding.SUSTAINED
    assert trial(chunks(99) + chunks(1, error=Missed("late")), cpu_s=9.5).finding is Finding.GENERATOR
    assert trial(chunks(99) + chunks(1, error=Missed("late")), cpu_s=8.5).finding is Finding.NOT_SUSTAINED


def test_requests_are_held_against_their_limit() -> None:
    goal = Goal(20.0)
    assert trial(chunks(98, 0.01) + chunks(2, 0.021), goal).finding is Finding.NOT_SUSTAINED
    assert trial(chunks(98, 0.01) + chunks(2, 0.01, late_s=0.004), goal).finding is Finding.SUSTAINED
    assert trial(chunks(98, 0.01) + chunks(2, 0.01, late_s=0.006), goal).finding is Finding.GENERATOR


def test_the_warm_up_is_left_out() -> None:
    seen = trial([*chunks(10, error=Missed("late")), Outcome(7.0, 7.0, 7.01)], from_s=6.5)
    assert (seen.requests, seen.finding) == (1, Finding.SUSTAINED)


def test_nothing_at_all_is_not_sustained() -> None:
    assert trial([]).finding is Finding.NOT_SUSTAINED


def test_the_servers_count() -> None:
    def entry(model: str, batches: dict[int, tuple[int, int]]) -> dict[str, object]:
        return {
            "name": model,
            "inference_stats": {"queue": {"count": "9", "ns": "5000000"}},
            "batch_stats": [
                {"batch_size": str(size), "compute_infer": {"count": str(runs), "ns": str(ns)}}
                for size, (runs, ns) in batches.items()
            ],
        }

    before = ServerWork.of([entry("speech", {1: (5, 10**9)}), entry("other", {8: (99, 1)})], "speech")
    both = [entry("speech", {1: (5, 10**9), 3: (2, 10**9)}), entry("speech", {3: (1, 5 * 10**8)})]
    work = ServerWork.of(both, "speech").since(before)
    assert (work.runs, work.compute_s) == ({3: 3}, 1.5)
    assert work.queue_s == pytest.approx(0.005)
    assert (work.requests, work.mean_batch) == (9, 3)
    assert ServerWork.of([{"name": "speech"}], "speech") == ServerWork()


def test_the_time_of_an_average_request() -> None:
    def entries(count: int, queue_ns: int) -> list[dict[str, object]]:
        spent = {part: {"count": str(count), "ns": str(ns)} for part, ns in
                 (("success", 10**9), ("queue", queue_ns), ("compute_infer", count * 2_000_000),
                  ("compute_input", count * 100_000), ("compute_output", count * 300_000))}  # fmt: skip
        return [{"name": "m", "inference_stats": spent}, {"name": "other", "inference_stats": {"queue": {"ns": "9"}}}]

    spent = RequestTime.of(entries(30, 5_000_000), "m").since(RequestTime.of(entries(10, 1_000_000), "m"))
    assert spent.requests == 20
    assert (spent.queue_s, spent.compute_s, spent.copies_s) == pytest.approx((0.0002, 0.002, 0.0004))
