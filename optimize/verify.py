"""The gates: what must hold before a model may be published, each a number against a limit.

The same functions give the numbers of the report. A gate that fails names itself, its value, its limit and what to
try; nothing is published then, and what was published before keeps serving.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.recipes import Metric

SEED, RESAMPLES, COMPANY = 7, 2000, 16

Run = Callable[[Arrays], Arrays]


class GateError(UserError):
    """At least one gate failed."""


@dataclass(frozen=True)
class Gate:
    """A check that passes when value <= limit, or value >= limit where ``at_least`` says so."""

    name: str
    value: float
    limit: float
    advice: str
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.value >= self.limit if self.at_least else self.value <= self.limit)  # NaN fails both ways

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        return f"gate '{self.name}': {self.value:.4g}, allowed {sign} {self.limit:.4g}; {self.advice}"


@dataclass(frozen=True)
class BatchInvariance:
    """Answers alone against answers in company.

    max_abs_drift: largest difference of any output value. decision_flips: items whose decision changed (0 where the
    recipe has none). cases: items compared. metric_change: relative change of the task metric.
    """

    max_abs_drift: float
    decision_flips: int
    cases: int
    metric_change: float


def require(gates: list[Gate]) -> None:
    """Raise GateError naming every gate that failed."""
    failed = [str(gate) for gate in gates if not gate.passed]
    if failed:
        raise GateError("not published: " + "; ".join(failed))


def answers(run: Run, split: Split, batch_size: int = COMPANY) -> Arrays:
    """Run every item of a split in batches; (items, ...) per output."""
    batches = [run(split.rows(start, start + batch_size)) for start in range(0, len(split), batch_size)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def max_abs(outputs: Arrays, reference: Arrays) -> float:
    """The largest absolute difference over all outputs; NaN if either has NaN."""
    return max(float(np.max(np.abs(outputs[name].astype(float) - reference[name].astype(float)))) for name in reference)


def rms(outputs: Arrays, reference: Arrays) -> float:
    """The largest root mean square difference of an output."""
    return max(
        float(np.sqrt(np.mean((outputs[name].astype(float) - reference[name].astype(float)) ** 2)))
        for name in reference
    )


def spread(reference: Arrays) -> float:
    """The smallest standard deviation of an output: the scale against which an error is large or small."""
    return min(float(np.std(values.astype(float))) for values in reference.values())


def batch_invariance(
    run: Run, split: Split, metric: Metric, alone: Arrays, decision: Callable[[Arrays], NDArray[np.generic]] | None
) -> BatchInvariance:
    """Compare answers given alone with answers in shuffled batches of 16, the last one ragged."""
    order = np.random.default_rng(SEED).permutation(len(split))
    shuffled = answers(run, split.take(order))
    back = np.argsort(order)
    together = {name: values[back] for name, values in shuffled.items()}
    before, after = metric(alone, split), metric(together, split)
    flips = int(np.sum(decision(alone) != decision(together))) if decision else 0
    return BatchInvariance(max_abs(together, alone), flips, len(split), abs(_relative(after - before, before)))


def confidence(metric: Metric, statistics: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of a metric: bootstrap over groups of items that are not independent (Efron, 1979)."""
    values = [metric.value(sums) for sums in _resampled(statistics, groups)]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def relative_loss(
    metric: Metric, ours: NDArray[np.float64], reference: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[float, float, float]:
    """How much worse ours is than the reference, relative, with its 95 % interval by paired bootstrap.

    Positive is worse, whichever way the metric points.
    """

    def loss(sums: NDArray[np.float64]) -> float:
        k = ours.shape[1]
        value, base = metric.value(sums[:k]), metric.value(sums[k:])
        return _relative(base - value if metric.higher_is_better else value - base, base)

    both = np.concatenate([ours, reference], axis=1)
    low, high = np.percentile([loss(sums) for sums in _resampled(both, groups)], (2.5, 97.5))
    return loss(both.sum(axis=0)), float(low), float(high)


def _relative(change: float, base: float) -> float:
    """A change as a share of the base; infinite where the base is 0 and there is a change at all."""
    if base == 0:
        return math.copysign(math.inf, change) if change else 0.0
    return change / abs(base)


def _resampled(statistics: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """(resamples, k) sums over groups drawn with replacement."""
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    per_group = np.zeros((count, statistics.shape[1]))
    np.add.at(per_group, index, statistics)
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return draws @ per_group
