"""Zero states of RNNs."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from optimize.fuse.rnn_state import drop_zero_states
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

SIGNATURE = "(float[4, batch, 2] x) => (float[4, 1, batch, 3] y)"
FILL = (
    "s = Shape(x) b = Slice(s, one, two) c = Concat <axis=0> (one, b, three) "
    "h = ConstantOfShape <value = float[1] {{ {} }}> (c) z = ConstantOfShape (c) "
)


def model(operator: str, fill: float) -> ModelProto:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    states = "h, z" if operator == "LSTM" else "h"
    body = FILL.format(fill) + f"y = {operator} <hidden_size=3> (x, w, r, , , {states})"
    numbers: dict[str, Any] = {name: np.array([number]) for name, number in (("one", 1), ("two", 2), ("three", 3))}
    return graph(SIGNATURE, body, w=random(1, gates * 3, 2), r=random(1, gates * 3, 3), **numbers)


@pytest.mark.parametrize(("operator", "count"), [("LSTM", 2), ("GRU", 1), ("RNN", 1)])
def test_zeros_go(operator: str, count: int) -> None:
    rewritten = assert_rewritten(drop_zero_states, model(operator, 0.0), count, operator, 0)
    assert list(rewritten.graph.node[0].input) == ["x", "w", "r"]


def test_others_stay() -> None:
    assert_untouched(drop_zero_states, model("GRU", 1.0))


def test_only_the_zero_one_of_two_goes() -> None:
    rewritten, count = drop_zero_states(model("LSTM", 1.0))
    assert count == 1
    assert list(rewritten.graph.node[-1].input) == ["x", "w", "r", "", "", "h"]
