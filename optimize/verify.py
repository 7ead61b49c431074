"""The gates: what must hold before a model may be published, each a number against a limit.

The same functions give the numbers of the report. A gate that fails names itself, its value, its limit and what to
try; nothing is published then, and what was published before keeps serving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
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
    """How much an answer depends on who shares its batch.

    max_abs_drift: largest difference between an item's answer alone and in company, in the output's unit; drift: the
    same for each kind of company. decision_flips: most items whose decision changed in one of them (0 where the recipe
    has no decisions). cases: items compared. metric_change: ``Metric.loss`` in shuffled batches, unsigned.
    """

    max_abs_drift: float
    decision_flips: int
    cases: int
    metric_change: float
    drift: dict[str, float]


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
    return _largest(np.max(np.abs(difference)) for difference in _differences(outputs, reference))


def rms(outputs: Arrays, reference: Arrays) -> float:
    """The largest root mean square difference of an output; NaN if either has NaN."""
    return _largest(np.sqrt(np.mean(difference**2)) for difference in _differences(outputs, reference))


def _differences(outputs: Arrays, reference: Arrays) -> Iterator[NDArray[np.float64]]:
    for name, values in reference.items():
        if outputs[name].shape != values.shape:
            raise UserError(
                f"output '{name}' has shape {outputs[name].shape} where {values.shape} was expected: the two answers "
                "cannot be compared; an output of a step must grow with the recording"
            )
        yield outputs[name].astype(float) - values.astype(float)


def relative(distance: Callable[[Arrays, Arrays], float], outputs: Arrays, reference: Arrays) -> float:
    """The largest ``max_abs`` or ``rms`` of an output as a share of its own standard deviation.

    Of an output that is constant, 0 if it is met exactly and infinite otherwise.
    """
    shares = []
    for name, values in reference.items():
        error, scale = distance({name: outputs[name]}, {name: values}), float(np.std(values.astype(float)))
        shares.append(error / scale if scale else math.inf if error else 0.0)
    return _largest(shares)


def real(outputs: Arrays) -> Arrays:
    """The outputs that are real numbers, which may differ a little; all, if there is none."""
    return {name: values for name, values in outputs.items() if values.dtype.kind == "f"} or outputs


def _largest(values: Iterable[float]) -> float:
    """Unlike Python's own, NaN if there is one anywhere."""
    return float(np.max(list(values)))


def batch_invariance(
    run: Run, split: Split, metric: Metric, alone: Arrays, decision: Callable[[Arrays], NDArray[np.generic]] | None
) -> BatchInvariance:
    """Compare answers given alone with answers in shuffled batches, reordered, with outliers, and padded."""
    before = metric(alone, split)
    flips, drift, change = 0, {}, 0.0
    for kind, company in COMPANIES.items():
        together = _in_company(run, split, company)
        drift[kind] = max_abs(together, alone)
        flips = max(flips, int(np.sum(decision(alone) != decision(together))) if decision else 0)
        if kind == "shuffled":
            change = abs(metric.loss(metric(together, split), before))
    return BatchInvariance(_largest(drift.values()), flips, len(split), change, drift)


def _in_company(run: Run, split: Split, company: Company) -> Arrays:
    """Every item's answer in shuffled batches of 16 with some company, in the order of the split."""
    order = np.random.default_rng(SEED).permutation(len(split))
    batches = []
    for start in range(0, len(split), COMPANY):
        rows = split.take(order[start : start + COMPANY]).inputs
        batch, places = company(rows)
        batches.append({name: values[places] for name, values in run(batch).items()})
    back = np.argsort(order)
    return {name: np.concatenate([batch[name] for batch in batches])[back] for name in batches[0]}


def _reordered(rows: Arrays) -> tuple[Arrays, NDArray[np.intp]]:
    count = len(next(iter(rows.values())))
    return {name: values[::-1].copy() for name, values in rows.items()}, np.arange(count)[::-1]


def _joined_by(rows: Arrays, extra: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> Arrays:
    """The rows and half as many more, made from the first ones.

    Integers such as ids and lengths are repeated, but for those of 16 bits: they are samples of sound.
    """
    half = max(len(next(iter(rows.values()))) // 2, 1)
    made = {name: values.dtype.kind == "f" or values.dtype == np.int16 for name, values in rows.items()}
    return {
        name: np.concatenate([values, extra(values[:half]) if made[name] else values[:half]])
        for name, values in rows.items()
    }


def _ten_times_as_large(values: NDArray[np.generic]) -> NDArray[np.generic]:
    larger = 10 * values.astype(float)
    return (np.clip(larger, -32768, 32767) if values.dtype == np.int16 else larger).astype(values.dtype)


def _keeping(rows: Arrays, batch: Arrays) -> tuple[Arrays, NDArray[np.intp]]:
    return batch, np.arange(len(next(iter(rows.values()))))


Company = Callable[[Arrays], tuple[Arrays, NDArray[np.intp]]]
COMPANIES: dict[str, Company] = {
    "shuffled": lambda rows: _keeping(rows, rows),
    "reordered": _reordered,
    "with outliers": lambda rows: _keeping(rows, _joined_by(rows, _ten_times_as_large)),
    "padded with zeros": lambda rows: _keeping(rows, _joined_by(rows, np.zeros_like)),
}
"""Kinds of company: the rows asked about to the batch they are sent in, and where in it they are."""


def confidence(metric: Metric, statistics: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of a metric: bootstrap over groups of items that are not independent (Efron, 1979)."""
    values = [metric.value(sums) for sums in _resampled(statistics, groups)]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def metric_loss(
    metric: Metric, ours: NDArray[np.float64], reference: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[float, float, float]:
    """``Metric.loss`` of ours to the reference, with its 95 % interval by paired bootstrap."""

    def loss(sums: NDArray[np.float64]) -> float:
        k = ours.shape[1]
        return metric.loss(metric.value(sums[:k]), metric.value(sums[k:]))

    both = np.concatenate([ours, reference], axis=1)
    low, high = np.percentile([loss(sums) for sums in _resampled(both, groups)], (2.5, 97.5))
    return loss(both.sum(axis=0)), float(low), float(high)


def _resampled(statistics: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """(resamples, k) sums over groups drawn with replacement."""
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    per_group = np.zeros((count, statistics.shape[1]))
    np.add.at(per_group, index, statistics)
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return draws @ per_group
