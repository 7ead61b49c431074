"""The search finds the operators that cost the accuracy, takes out no more than needed, and remembers."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from optimize.data.dataset import Split
from optimize.errors import UserError
from optimize.quantize import sensitivity
from optimize.quantize.plan import Choice, Choices
from optimize.recipes import Metric
from optimize.specs import ModelSpec, TensorSpec

COSTS = {"a": 0.001, "b": 0.05, "c": 0.0, "d": 0.02, "e": 0.002}
CHOICES: Choices = {name: Choice("MatMul", "static", "measured") for name in COSTS}


def additive(choices: Choices) -> float:
    return sum(COSTS[name] for name, choice in choices.items() if choice.quantised)


def test_the_costly_ones_are_taken_out_and_no_others() -> None:
    found = sensitivity.search(CHOICES, additive, limit=0.01)
    assert found.everything == pytest.approx(0.073)
    assert found.alone == COSTS
    assert list(found.excluded) == ["b", "d"]
    assert found.remaining == pytest.approx(0.003)
    kept = sensitivity.exclude(CHOICES, found)
    assert [name for name, choice in kept.items() if not choice.quantised] == ["b", "d"]
    assert "by static it alone costs +5.00 %" in kept["b"].reason.replace("%", " %")


def test_nothing_is_taken_out_within_the_limit() -> None:
    assert sensitivity.search(CHOICES, additive, limit=0.1).excluded == {}


def test_when_quantisation_is_not_to_blame_it_says_so() -> None:
    with pytest.raises(UserError, match="not what costs the accuracy"):
        sensitivity.search(CHOICES, lambda choices: additive(choices) + 0.5, limit=0.01)


SPEC = ModelSpec("m", (TensorSpec("x", "float32", (16,)),), (TensorSpec("y", "float32", (16,)),))


def two_products() -> ModelProto:
    """y = (x A) B; A has an outlier among its inputs that a single activation scale cannot carry."""
    random = np.random.default_rng(0)
    weights = [random.normal(size=(16, 16)).astype(np.float32) for _ in range(2)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "A"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "B"], ["y"], name="second"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(array, name) for name, array in zip("AB", weights, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_measured_losses_are_kept_and_found_again(tmp_path: Path) -> None:
    model = two_products()
    onnx.checker.check_model(model)
    x = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    split = Split({"x": x}, {"y": x}, np.arange(64))
    metric = Metric(
        "error",
        False,
        lambda outputs, split: np.stack([np.abs(outputs["y"].astype(float)).sum(axis=1), np.ones(64)], axis=1),
        lambda sums: float(sums[0] / sums[1]),
    )
    journal = tmp_path / "sensitivity.json"
    choices: Choices = {name: Choice("MatMul", "static", "") for name in ("first", "second")}
    calibration = [split.inputs]
    first = sensitivity.metric_loss(model, SPEC, metric, split, calibration, journal)(choices)
    assert first != 0
    kept = json.loads(journal.read_text())
    assert len(kept) == 2  # fp32 and this
    key = next(key for key in kept if "first" in key)
    journal.write_text(json.dumps(kept | {key: 2 * next(value for name, value in kept.items() if name != key)}))
    again = sensitivity.metric_loss(model, SPEC, metric, split, calibration, journal)
    assert again(choices) == pytest.approx(1.0)  # read, not run
    others = split.take(slice(None, None, -1))
    assert sensitivity.metric_loss(model, SPEC, metric, others, calibration, journal)(choices) != pytest.approx(1.0)
    assert sensitivity.metric_loss(model, SPEC, metric, split, [others.inputs], journal)(choices) != pytest.approx(1.0)
    journal.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        sensitivity.metric_loss(model, SPEC, metric, split, calibration, journal)
