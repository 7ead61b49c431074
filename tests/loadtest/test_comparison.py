"""Statistics with known answers, and the rules of the recommendation one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from loadtest import comparison
from loadtest.arms import Arm, Given
from loadtest.comparison import Comparison, Estimate, Limits, Summary, compare, recommend
from loadtest.pacing import Dropped, Outcome
from optimize.data.dataset import Split
from optimize.recipes import Metric

SECONDS = 60.0
MAE = Metric(
    "MAE",
    False,
    lambda outputs, split: np.stack(
        [np.abs(outputs["y"].astype(float) - split.targets["y"].astype(float)).sum(axis=1), np.ones(len(split))], axis=1
    ),
    lambda sums: float(sums[0] / sums[1]),
)
ITEMS = Split({"x": np.zeros((1, 1))}, {"y": np.zeros((1, 1))}, np.arange(1))
LIMITS = Limits(metric_loss=0.05, slowdown=0.1)


def arm(errors: np.ndarray, latencies_ms: np.ndarray, version: str = "1", per_user: int = 1) -> Arm:  # type: ignore[type-arg]
    """An arm that answered so: evenly spread over the run; ``per_user`` answers a user."""
    due_s = 100 + np.arange(len(errors)) * SECONDS / len(errors)
    outcomes = [Outcome(due, due, due + ms / 1e3) for due, ms in zip(due_s, latencies_ms, strict=True)]
    given = [Given(number // per_user, 0, {"y": np.array([[error]])}, version) for number, error in enumerate(errors)]
    return Arm([], 100.0, outcomes, given)


def errors(mean: float, count: int = 1000, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    """Positive, with exactly this mean and a standard deviation of a tenth of it."""
    values = np.random.default_rng(seed).normal(0, 1, count)
    return np.asarray(mean * (1 + 0.1 * (values - values.mean()) / values.std()))


def latencies(p95: float, count: int = 1000) -> np.ndarray:  # type: ignore[type-arg]
    """Evenly from 0 to p95 / 0.95, in an order that has nothing to do with time."""
    return np.random.default_rng(1).permutation(np.arange(1, count + 1)) / count * p95 / 0.95


def judged(control: Arm, candidate: Arm) -> Comparison:
    return compare({"control": control, "candidate": candidate}, ITEMS, MAE, LIMITS, SECONDS)


def test_the_metric_and_its_interval() -> None:
    """The bootstrap of a mean agrees with its normal interval, +- 1.96 s / sqrt(n)."""
    found = judged(arm(errors(1.0), latencies(20)), arm(errors(1.02, seed=1), latencies(20)))
    half = 1.96 * 0.1 / math.sqrt(1000)
    assert found.control.metric.value == pytest.approx(1.0)
    assert found.control.metric.high - found.control.metric.low == pytest.approx(2 * half, rel=0.1)
    assert found.loss.value == pytest.approx(0.02)
    assert found.loss.high - found.loss.low == pytest.approx(2 * half * math.sqrt(2) * 1.02, rel=0.1)
    assert (found.control.users, found.control.requests, found.control.versions) == (1000, 1000, {"1": 1000})


def test_a_users_answers_stay_together() -> None:
    """Four equal answers of a user are one piece of evidence: the interval is that of a quarter as many."""
    single, repeated = errors(1.0, 250), np.repeat(errors(1.0, 250), 4)
    found = judged(arm(single, latencies(20, 250)), arm(repeated, latencies(20, 1000), per_user=4))
    widths = [each.metric.high - each.metric.low for each in (found.control, found.candidate)]
    assert found.candidate.users == 250
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_percentiles_and_the_interval_of_the_p95() -> None:
    """Of n even values the p95 scatters by sqrt(.95 * .05 / n) of their range."""
    found = judged(arm(errors(1.0), latencies(19)), arm(errors(1.0, seed=1), latencies(38)))
    assert {percent: each.value for percent, each in found.control.latency_ms.items()} == pytest.approx(
        {50: 10, 95: 19, 99: 19.8}
    )
    assert [found.slowdown[percent].value for percent in (50, 95, 99)] == pytest.approx([1, 1, 1])
    p95 = found.control.latency_ms[95]
    assert p95.high - p95.low == pytest.approx(2 * 1.96 * 20 * math.sqrt(0.95 * 0.05 / 1000), rel=0.4)


def test_slow_times_widen_the_interval_but_cancel_between_arms() -> None:
    """Every tenth of the run is ten times as slow, in both arms: p95 is unsure, that they are equal is not."""
    slow = np.where(np.arange(1000) // 33 % 10 == 0, 10, 1) * latencies(20)
    found = judged(arm(errors(1.0), slow), arm(errors(1.0, seed=1), slow))
    p95 = found.control.latency_ms[95]
    assert (p95.high - p95.low) / p95.value > 0.3
    assert (found.slowdown[95].low, found.slowdown[95].high) == (0, 0)


def test_equal_arms_are_promoted() -> None:
    found = judged(arm(errors(1.0, 4000), latencies(20, 4000)), arm(errors(1.0, 4000, 1), latencies(20, 4000), "2"))
    assert (found.recommendation, found.more_requests) == ("promote", 0)
    assert len(found.reasons) == 2


def test_a_worse_metric_or_a_slower_candidate_is_not() -> None:
    worse = judged(arm(errors(1.0), latencies(20)), arm(errors(1.1, seed=1), latencies(20), "2"))
    assert worse.recommendation == "keep"
    assert worse.reasons[0].startswith("the metric's loss is +8.")
    slower = judged(arm(errors(1.0), latencies(20)), arm(errors(1.0, seed=1), latencies(30), "2"))
    assert slower.recommendation == "keep"
    assert slower.reasons[0].startswith("the growth of the p95 latency is +50.00 %")


def test_too_few_are_asked_to_go_on() -> None:
    found = judged(arm(errors(1.0, 20), latencies(20, 20)), arm(errors(1.0, 20, 1), latencies(20, 20), "2"))
    assert found.recommendation == "go on"
    assert "only 20 users in one of the arms, at least 30 are needed in each" in found.reasons
    assert found.more_requests is not None
    assert found.more_requests >= 20, "half as many again as the 40 that there were"


def test_an_arm_without_an_answer() -> None:
    nothing = Arm([], 100.0, [Outcome(101.0, 101.0, 101.1, ConnectionError("gone"))], [])
    found = judged(arm(errors(1.0), latencies(20)), nothing)
    assert found.recommendation == "keep", "one failure of one against none of a thousand is more than chance"
    assert math.isnan(found.candidate.metric.value)
    found = judged(nothing, nothing)
    assert (found.recommendation, found.more_requests) == ("go on", None)


def summary(**changes: object) -> Summary:
    normal = Summary(
        versions={"1": 1000},
        users=1000,
        requests=1000,
        failed=0,
        first_failure="",
        metric=Estimate(1, 0.9, 1.1),
        latency_ms={95: Estimate(20, 19, 21)},
        late_p99_ms=1.0,
    )
    return replace(normal, **changes)  # type: ignore[arg-type]


GOOD = Estimate(0.0, -0.04, 0.04)


@pytest.mark.parametrize(
    ("loss", "slowdown", "expected", "more"),
    [
        (GOOD, GOOD, "promote", 0),
        (Estimate(-0.5, -0.6, -0.4), Estimate(-0.5, -0.6, -0.4), "promote", 0),
        (Estimate(0.04, 0.03, 0.05), GOOD, "promote", 0),  # worse for certain, and tolerated
        (Estimate(0.2, 0.051, 0.4), GOOD, "keep", 0),
        (GOOD, Estimate(0.2, 0.11, 0.3), "keep", 0),
        (Estimate(0.0, -0.1, 0.1), GOOD, "go on", 6000),  # half as wide: four times as many
        (Estimate(0.1, 0.0, 0.2), GOOD, "go on", 6000),
        (GOOD, Estimate(0.0, -0.3, 0.3), "go on", 16000),
        (Estimate(0.0, -0.1, 0.1), Estimate(0.0, -0.3, 0.3), "go on", 16000),
        (Estimate(0.05, 0.0, 0.1), GOOD, "go on", None),  # on the limit: never
        (Estimate(0.0, -9.0, 9.0), GOOD, "go on", None),
        (Estimate(math.nan, math.nan, math.nan), GOOD, "go on", None),
    ],
)
def test_the_rules_of_the_intervals(loss: Estimate, slowdown: Estimate, expected: str, more: int | None) -> None:
    recommendation, reasons, requests = recommend(summary(), summary(), loss, slowdown, LIMITS)
    assert (recommendation, requests) == (expected, more)
    assert reasons


@pytest.mark.parametrize(
    ("control", "candidate", "expected", "reason"),
    [
        ({}, {"failed": 1, "first_failure": "late"}, "go on", "failed 1 of 1000 requests, the control 0 of 1000; the "),
        ({}, {"failed": 6, "first_failure": "late"}, "keep", "failed 6 of 1000"),  # Fisher: 1.5 %
        ({"failed": 6}, {"failed": 6, "first_failure": "late"}, "go on", "failed 6 of 1000"),
        ({"failed": 6}, {}, "promote", ""),
        ({}, {"versions": {"2": 500, "3": 500}}, "go on", "the candidate was several versions: 2, 3"),
        ({"versions": {"1": 1, "2": 9}}, {}, "go on", "the control was several versions: 1, 2"),
        ({"late_p99_ms": 5.1}, {}, "go on", "the load generator was 5.1 ms late itself"),
        ({"users": 29}, {}, "go on", "only 29 users in one of the arms"),
    ],
)
def test_the_rules_of_the_counts(
    control: dict[str, object], candidate: dict[str, object], expected: str, reason: str
) -> None:
    recommendation, reasons, _ = recommend(summary(**control), summary(**candidate), GOOD, GOOD, LIMITS)
    assert recommendation == expected
    assert reason in reasons[0]


def test_what_was_dropped_has_failed() -> None:
    busy = arm(errors(1.0), latencies(20))
    busy.outcomes.append(Outcome(110.0, 110.0, 110.0, Dropped("1000 requests were under way")))
    found = judged(arm(errors(1.0), latencies(20)), busy)
    assert (found.candidate.requests, found.candidate.failed) == (1001, 1)
    assert found.candidate.first_failure == "1000 requests were under way"


def test_points_are_called_so() -> None:
    _, reasons, _ = recommend(summary(), summary(), Estimate(0.02, 0.01, 0.03), GOOD, LIMITS, points=True)
    assert reasons[0] == "the metric's loss is +1.00 points to +3.00 points, allowed 5.00 points"


def test_how_often_the_rules_err(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates exactly on the metric's limit: each way, at most 2.5 % are told something (and 3 sigma by chance)."""
    monkeypatch.setattr(comparison, "RESAMPLES", 200)
    random, tests = np.random.default_rng(3), 100
    said = []
    for _ in range(tests):
        both = [np.abs(random.normal(mean, 0.3 * mean, 200)) for mean in (1.0, 1.05)]
        said.append(judged(*(arm(each, latencies(20, 200)) for each in both)).recommendation)
    for word in ("promote", "keep"):
        assert said.count(word) <= 0.025 * tests + 3 * math.sqrt(0.025 * tests)
    assert said.count("go on") < tests, "it does say something now and then"
