"""Ranges of activations: seen over all the data, or a clear complaint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import ModelProto, helper

from optimize.data.dataset import Arrays
from optimize.quantize.calibration import observe
from optimize.quantize.method import QuantizationError
from tests.optimize.quantize.small_graphs import graph, normal

X = normal(4, 3)


@pytest.fixture(scope="module")
def model() -> ModelProto:
    nodes = [helper.make_node("Mul", ["x", "two"], ["double"]), helper.make_node("Neg", ["double"], ["y"])]
    return graph(nodes, {"two": np.array(2, np.float32)}, X)


def test_the_range_spans_all_feeds_inside_the_graph_and_at_both_ends(model: ModelProto) -> None:
    feeds: list[Arrays] = [{"x": X}, {"x": 5 * X}, {"x": X[:1]}]
    before = model.SerializeToString(deterministic=True)
    ranges = observe(model, ["double", "x", "y"], feeds)
    low, high = float(X.min()) * 5, float(X.max()) * 5
    for name, expected in {"x": (low, high), "double": (2 * low, 2 * high), "y": (-2 * high, -2 * low)}.items():
        assert ranges[name] == pytest.approx(expected)
    assert model.SerializeToString(deterministic=True) == before


def test_feeds_are_taken_one_by_one(model: ModelProto) -> None:
    alive: list[int] = []

    def feeds() -> Iterator[Arrays]:
        for index in range(100):
            alive.append(index)
            yield {"x": X * index}

    observe(model, ["double"], feeds())
    assert len(alive) == 100


def test_an_unknown_name_is_named(model: ModelProto) -> None:
    with pytest.raises(QuantizationError, match=r"no values \['nowhere'\]; was it changed since"):
        observe(model, ["double", "nowhere"], [{"x": X}])


@pytest.mark.parametrize("feeds", [[], [{"x": X[:0]}]])
def test_no_data_is_no_range(model: ModelProto, feeds: list[Arrays]) -> None:
    with pytest.raises(QuantizationError, match=r"no value of \['double'\]; give at least one request"):
        observe(model, ["double"], feeds)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(model: ModelProto, poison: float) -> None:
    spoiled = X.copy()
    spoiled[2, 1] = poison
    with pytest.raises(QuantizationError, match="'double' is not finite on the calibration data"):
        observe(model, ["double"], [{"x": X}, {"x": spoiled}])
