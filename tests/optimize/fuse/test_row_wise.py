"""Rearrangements that meet across operators on rows."""

from typing import Any

import numpy as np
import pytest

from optimize.fuse.axis_sizes import with_axis_sizes
from optimize.fuse.row_wise import move_past_rows
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

SIGNATURE = "(float[batch, time, 8] x) => (float[batch, time, {}] y)"
CONSTANTS: dict[str, Any] = {
    "w": random(8, 6),
    "b": random(6, seed=1),
    "g": random(8, seed=2),
    "rows": np.array([-1, 8]),
    "back": np.array([3, -1, 6]),
}
TURN, TURN_BACK = "a = Transpose <perm=[1,0,2]> (x) ", "y0 = Transpose <perm=[1,0,2]> (f) y = Relu(y0)"


@pytest.mark.parametrize(
    ("body", "width", "after"),
    [
        ("m = MatMul(a, w) f = Add(m, b) ", 6, "MatMul Add Relu"),
        ("m = MatMul(a, w) n = Add(b, m) f = Tanh(n) ", 6, "MatMul Add Tanh Relu"),
        ("f = LayerNormalization <axis=2> (a, g) ", 8, "LayerNormalization Relu"),
        ("f = Softmax <axis=-1> (a) ", 8, "Softmax Relu"),
    ],
)
def test_there_and_back(body: str, width: int, after: str) -> None:
    model = with_axis_sizes(graph(SIGNATURE.format(width), TURN + body + TURN_BACK, **CONSTANTS))
    assert_rewritten(move_past_rows, model, 2, after)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_becomes_a_product_of_its_name(transposed: int) -> None:
    """What torch's attention does: two axes made one for a Gemm, and apart again."""
    weight = random(6, 8) if transposed else random(8, 6)
    body = f"a = Reshape(x, rows) f = Gemm <transB={transposed}> (a, w, b) s = Reshape(f, back) y = Relu(s)"
    model = with_axis_sizes(graph("(float[3, time, 8] x) => (float[3, time, 6] y)", body, **CONSTANTS | {"w": weight}))
    rewritten = assert_rewritten(move_past_rows, model, 2, "MatMul Add Relu")
    assert [node.name for node in rewritten.graph.node if node.op_type == "MatMul"] == ["Gemm_1"]


def test_elementwise_at_any_axis() -> None:
    body = "a = Transpose <perm=[0,2,1]> (x) f = Sigmoid(a) y0 = Transpose <perm=[0,2,1]> (f) y = Relu(y0)"
    assert_rewritten(move_past_rows, with_axis_sizes(graph(SIGNATURE.format(8), body)), 2, "Sigmoid Relu", 0)


@pytest.mark.parametrize(
    "body",
    [
        TURN + "f = Softmax <axis=0> (a) " + TURN_BACK,  # over another axis
        TURN + "f = Add(a, g1) " + TURN_BACK,  # varies along another axis
        TURN + "f = Tanh(a) y0 = Transpose <perm=[1,0,2]> (f) z = Transpose <perm=[1,0,2]> (a) y = Add(y0, z)",
        "a = Transpose <perm=[0,2,1]> (x) f = LayerNormalization(a, g2) y0 = Transpose <perm=[0,2,1]> (f) y = Relu(y0)",
    ],
)
def test_what_stays(body: str) -> None:
    signature = SIGNATURE.format(8).replace("time", "5")
    model = with_axis_sizes(graph(signature, body, g1=random(5, 1, 8), g2=random(5), **CONSTANTS))
    assert_untouched(move_past_rows, model)
