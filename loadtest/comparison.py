"""What an A/B test says: each arm's figures, their differences, 95 % intervals, and what to do.

**Metric.** Users were assigned to arms at random, so they are what is resampled: a user's items stay together, the arms
are resampled apart (unpaired: nobody was in both). The interval says what other users with such items would have given;
whether next year's items are such items, no test of today's can say.

**Latency.** Requests that come together are slow together, so blocks of time are resampled, the same ones for both
arms: they shared the machine.

All intervals are percentile bootstrap (Efron, 1979), 2,000 resamples. The recommendation is for one look at the end of
a run whose length was settled before it; who looks again and again, until it says what is hoped for, will be told so.

- **promote**: the upper ends are within the limits, of the metric's loss and of the growth of the p95 latency, and the
  candidate failed no request. If it is really beyond one of the limits, this is said in at most 1 of 40 tests.
- **keep** the control: a lower end is beyond its limit, or the candidate failed more often than the control did by more
  than chance (Fisher's exact test, one-sided, 2.5 %). Said of a candidate within all limits in at most 3 of 40.
- **go on** otherwise, with roughly how many more requests: intervals shrink with the root of their number.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from clients.router import ArmName
from loadtest.arms import Arm
from loadtest.pacing import percentile
from optimize.data.dataset import Split
from optimize.recipes import Metric

RESAMPLES, BLOCKS, SEED = 2000, 30, 7
PERCENTILES = (50, 95, 99)
LEAST_USERS = 30  # in each arm: with fewer, a bootstrap promises too much
LATE_SHARE = 0.25  # of the control's p95: how late the generator's p99 may be before it hides the servers' difference
HOPELESS = 1000  # times as many requests: nobody waits for them

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Limits:
    """metric_loss: ``Metric.loss`` of the candidate to the control; slowdown: growth of the p95. Both as shares."""

    metric_loss: float
    slowdown: float


@dataclass(frozen=True)
class Summary:
    """One arm. versions: how many answers each gave. latency_ms: by percentile, from when requests were due."""

    versions: dict[str, int]
    users: int
    requests: int
    failed: int
    first_failure: str
    metric: Estimate
    latency_ms: dict[int, Estimate]
    late_p99_ms: float


@dataclass(frozen=True)
class Comparison:
    """loss: of the metric, positive is worse. slowdown: by percentile, of the latency, as a share of the control's.

    more_requests: roughly, after which "go on" would end if the figures stay as they are; None where more alone would
    not do.
    """

    metric: str
    points: bool
    control: Summary
    candidate: Summary
    loss: Estimate
    slowdown: dict[int, Estimate]
    limits: Limits
    recommendation: str
    reasons: tuple[str, ...]
    more_requests: int | None


def compare(arms: dict[ArmName, Arm], items: Split, metric: Metric, limits: Limits, duration_s: float) -> Comparison:
    """Judge a finished run. An arm without any answer has NaN figures, and nothing is recommended but to go on."""
    random = np.random.default_rng(SEED)
    blocks = random.multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), size=RESAMPLES)
    old = _drawn(arms["control"], items, metric, random, blocks, duration_s)
    new = _drawn(arms["candidate"], items, metric, random, blocks, duration_s)
    loss = estimate(
        metric.loss(new.summary.metric.value, old.summary.metric.value),
        np.array([metric.loss(ours, theirs) for ours, theirs in zip(new.metrics, old.metrics, strict=True)]),
    )
    before, after = old.summary.latency_ms, new.summary.latency_ms
    slowdown = {
        percent: estimate(
            after[percent].value / before[percent].value - 1, new.latencies[percent] / old.latencies[percent] - 1
        )
        for percent in PERCENTILES
    }
    recommendation, reasons, more = recommend(
        old.summary, new.summary, loss, slowdown[95], limits, points=metric.points
    )
    return Comparison(
        metric=metric.name,
        points=metric.points,
        control=old.summary,
        candidate=new.summary,
        loss=loss,
        slowdown=slowdown,
        limits=limits,
        recommendation=recommendation,
        reasons=tuple(reasons),
        more_requests=more,
    )


def recommend(
    control: Summary, candidate: Summary, loss: Estimate, slowdown: Estimate, limits: Limits, points: bool = False
) -> tuple[str, list[str], int | None]:
    """The rules of the module: promote, keep or go on; why; and about how many more requests would settle it."""
    unit = " points" if points else " %"
    judged = [
        ("the metric's loss", loss, limits.metric_loss, unit),
        ("the growth of the p95 latency", slowdown, limits.slowdown, " %"),
    ]
    worse = [_words(*each) for each in judged if each[1].low > each[2]]
    answered = [arm.requests - arm.failed for arm in (candidate, control)]
    failed = (
        f"the candidate failed {candidate.failed} of {candidate.requests} requests, the control {control.failed} of "
        f"{control.requests}; the first: {candidate.first_failure}"
    )
    table = [[candidate.failed, answered[0]], [control.failed, answered[1]]]
    if fisher_exact(table, alternative="greater").pvalue < 0.025:
        worse.append(failed)
    doubts = [
        f"the {name} was several versions: {', '.join(arm.versions)}; test one at a time"
        for name, arm in (("control", control), ("candidate", candidate))
        if len(arm.versions) > 1
    ]
    if worse and not doubts:
        return "keep", worse, 0
    if candidate.failed:
        doubts.append(failed)
    if (late := max(control.late_p99_ms, candidate.late_p99_ms)) > LATE_SHARE * control.latency_ms[95].value:
        doubts.append(
            f"the load generator was {late:.1f} ms late itself (p99), which hides what differs between the arms; run "
            "it on another machine, or at a lower rate"
        )
    undecided = [each for each in judged if not each[1].high <= each[2]]
    factors = [_needed(found, limit) for _, found, limit, _ in undecided]
    reasons = doubts + [_words(*each) for each in undecided]
    if (few := min(control.users, candidate.users)) < LEAST_USERS:
        reasons.append(f"only {few} users in one of the arms, at least {LEAST_USERS} are needed in each")
        factors.append(LEAST_USERS / few if few else math.inf)
    if not reasons:
        return "promote", [_words(*each) for each in judged], 0
    if doubts or max(factors) > HOPELESS:
        return "go on", reasons, None
    return "go on", reasons, _rounded(max(factors), control.requests + candidate.requests)


def estimate(value: float, draws: Floats) -> Estimate:
    """A value with the interval that holds 95 % of its resampled values; NaN where there are none."""
    usable = draws[~np.isnan(draws)]
    low, high = np.percentile(usable, (2.5, 97.5)) if len(usable) else (math.nan, math.nan)
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class _Drawn:
    """An arm, and its figures in every resample."""

    summary: Summary
    metrics: Floats
    latencies: dict[int, Floats]


def _drawn(
    arm: Arm,
    items: Split,
    metric: Metric,
    random: np.random.Generator,
    blocks: NDArray[np.int64],
    duration_s: float,
) -> _Drawn:
    sums = _sums(arm, items, metric)
    metrics = _resampled(sums, metric, random)
    latency_ms = sorted(outcome.latency_ms for outcome in arm.outcomes if outcome.error is None)
    latencies = _latencies(arm, blocks, duration_s)
    failures = [outcome.error for outcome in arm.outcomes if outcome.error is not None]
    summary = Summary(
        versions=dict(sorted(Counter(given.version for given in arm.given).items())),
        users=len(sums),
        requests=len(arm.outcomes),
        failed=len(failures),
        first_failure=str(failures[0]) if failures else "",
        metric=estimate(metric.value(sums.sum(axis=0)) if len(sums) else math.nan, metrics),
        latency_ms={percent: estimate(percentile(latency_ms, percent), latencies[percent]) for percent in PERCENTILES},
        late_p99_ms=percentile(sorted(outcome.late_ms for outcome in arm.outcomes), 99),
    )
    return _Drawn(summary, metrics, latencies)


def _sums(arm: Arm, items: Split, metric: Metric) -> Floats:
    """(users, k): the metric's sums over each user's answers."""
    by_user: dict[int, Floats] = {}
    for given in arm.given:
        sums = metric.statistics(given.outputs, items.take(slice(given.item, given.item + 1)))[0]
        by_user[given.user] = by_user.get(given.user, 0.0) + sums
    return np.array(list(by_user.values()))


def _resampled(sums: Floats, metric: Metric, random: np.random.Generator) -> Floats:
    """(resamples,): the metric of users drawn with replacement; NaN without users."""
    if not (users := len(sums)):
        return np.full(RESAMPLES, math.nan)
    even = np.full(users, 1 / users)
    return np.array([metric.value(random.multinomial(users, even) @ sums) for _ in range(RESAMPLES)])


def _latencies(arm: Arm, blocks: NDArray[np.int64], duration_s: float) -> dict[int, Floats]:
    """By percentile, (resamples,): the latency in ms of runs made of other blocks of time; NaN without answers.

    blocks: (resamples, BLOCKS), how often each block was drawn.
    """
    answered = sorted((each for each in arm.outcomes if each.error is None), key=lambda each: each.latency_ms)
    latency = np.array([each.latency_ms for each in answered])
    share = (np.array([each.due_s for each in answered]) - arm.start_s) / duration_s
    block = np.clip((share * BLOCKS).astype(int), 0, BLOCKS - 1)
    draws = {percent: np.full(len(blocks), math.nan) for percent in PERCENTILES}
    for number, drawn in enumerate(blocks):
        at_most = np.cumsum(drawn[block])  # how many requests were as fast as this one, or faster
        if len(at_most) and at_most[-1]:
            for percent in PERCENTILES:  # nearest rank, as ``pacing.percentile``
                rank = max(math.ceil(at_most[-1] * percent / 100), 1)
                draws[percent][number] = latency[np.searchsorted(at_most, rank)]
    return draws


def _needed(found: Estimate, limit: float) -> float:
    """How many times as many requests would take the limit out of the interval."""
    half = found.high - found.value if found.value < limit else found.value - found.low
    distance = abs(limit - found.value)
    return (half / distance) ** 2 if distance and math.isfinite(half) else math.inf


def _rounded(factor: float, requests: int) -> int:
    """What is still to come, to two digits."""
    more = max(math.ceil(requests * (factor - 1)), 0)
    unit = 10 ** max(len(str(more)) - 2, 0)
    return int(math.ceil(more / unit) * unit)


def _words(what: str, found: Estimate, limit: float, unit: str) -> str:
    return f"{what} is {found.low:+.2%} to {found.high:+.2%}, allowed {limit:.2%}".replace("%", unit)
