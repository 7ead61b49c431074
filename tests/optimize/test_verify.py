import numpy as np
import pytest
from numpy.typing import NDArray

from optimize import verify
from optimize.data.dataset import Arrays, Split
from optimize.recipes import Metric
from optimize.verify import Gate, GateError

RANDOM = np.random.default_rng(0)
X: NDArray[np.float32] = RANDOM.normal(size=(200, 3)).astype(np.float32)
SPLIT = Split({"x": X}, {"y": X.sum(axis=1)}, np.arange(200) // 10)
MAE = Metric(
    "MAE",
    False,
    lambda outputs, split: np.stack(
        [np.abs(outputs["y"].astype(float) - split.targets["y"].astype(float)), np.ones(len(split))], axis=1
    ),
    lambda sums: float(sums[0] / sums[1]),
)


TARGETS = X.sum(axis=1)


def positive(outputs: Arrays) -> NDArray[np.bool_]:
    return outputs["y"].astype(float) > 0


def honest(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"].astype(float).sum(axis=1)}


def company_dependent(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"].sum(axis=1) + inputs["x"].max() * (len(inputs["x"]) > 1)}


def test_an_honest_model_does_not_drift() -> None:
    alone = verify.answers(honest, SPLIT, batch_size=1)
    drift = verify.batch_invariance(honest, SPLIT, MAE, alone, positive)
    assert (drift.max_abs_drift, drift.decision_flips, drift.metric_change, drift.cases) == (0, 0, 0, 200)


def test_a_model_that_minds_its_company_is_found() -> None:
    alone = verify.answers(company_dependent, SPLIT, batch_size=1)
    drift = verify.batch_invariance(company_dependent, SPLIT, MAE, alone, positive)
    assert drift.drift["shuffled"] == drift.drift["reordered"] == pytest.approx(X.max(), rel=1e-6)
    assert drift.drift["with outliers"] == drift.max_abs_drift == pytest.approx(10 * X.max(), rel=0.3)
    assert drift.decision_flips > 0
    assert drift.metric_change > 1


def test_gates_name_themselves_and_nan_never_passes() -> None:
    assert Gate("g", 1.0, 1.0, "").passed
    assert Gate("g", 1.0, 1.0, "", at_least=True).passed
    assert not Gate("g", float("nan"), 1.0, "").passed
    assert not Gate("g", float("nan"), 1.0, "", at_least=True).passed
    verify.require([Gate("fine", 0.0, 1.0, "")])
    with pytest.raises(GateError, match=r"'worse': 2, allowed at most 1; try again$"):
        verify.require([Gate("fine", 0.0, 1.0, ""), Gate("worse", 2.0, 1.0, "try again")])


def test_interval_covers_the_value_and_shrinks_with_more_groups() -> None:
    statistics = MAE.statistics({"y": TARGETS + X[:, 0]}, SPLIT)
    low, high = verify.confidence(MAE, statistics, SPLIT.groups)
    assert low < MAE.value(statistics.sum(axis=0)) < high
    fewer = verify.confidence(MAE, statistics, SPLIT.groups // 5)
    many = verify.confidence(MAE, np.tile(statistics, (9, 1)), np.arange(9 * 200))
    assert many[1] - many[0] < high - low
    assert fewer != (low, high)


def test_loss_is_relative_and_positive_when_worse() -> None:
    better = MAE.statistics({"y": TARGETS + 1}, SPLIT)
    worse = MAE.statistics({"y": TARGETS + 1.5}, SPLIT)
    loss, low, high = verify.metric_loss(MAE, worse, better, SPLIT.groups)
    assert (loss, low, high) == pytest.approx((0.5, 0.5, 0.5))
    upwards = Metric("up", True, MAE.statistics, MAE.value)
    assert verify.metric_loss(upwards, worse, better, SPLIT.groups)[0] == pytest.approx(-0.5)
    points = Metric("per cent", False, MAE.statistics, MAE.value, points=True)
    assert verify.metric_loss(points, worse, better, SPLIT.groups)[0] == pytest.approx(0.005)


def test_nan_in_any_output_is_seen() -> None:
    fine = np.ones(3)
    broken: Arrays = {"a": fine, "b": np.array([1.0, np.nan, 1.0])}
    reference: Arrays = {"a": fine, "b": fine}
    for distance in (verify.max_abs, verify.rms):
        assert np.isnan(distance(broken, reference))
        assert np.isnan(verify.relative(distance, broken, {"a": fine, "b": np.arange(3.0)}))


def test_each_output_is_measured_against_its_own_spread() -> None:
    small, large = np.array([0.0, 1.0]), np.array([0.0, 1000.0])
    assert verify.relative(verify.max_abs, {"s": small, "l": large + 5}, {"s": small, "l": large}) == pytest.approx(
        0.01
    )
    constant: Arrays = {"c": np.ones(4)}
    assert verify.relative(verify.max_abs, constant, constant) == 0
    assert verify.relative(verify.max_abs, {"c": np.zeros(4)}, constant) == np.inf
