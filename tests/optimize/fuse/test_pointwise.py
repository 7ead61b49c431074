"""Convolutions of kernel size 1."""

from typing import Any

import pytest

from optimize.fuse.axis_sizes import with_axis_sizes
from optimize.fuse.pointwise import pointwise_to_matmul
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

SIGNATURE = "(float[batch, time, 8] x) => (float[batch, 6, time] y)"
TURN = "a = Transpose <perm=[0,2,1]> (x) "
WEIGHTS: dict[str, Any] = {"w": random(6, 8, 1), "b": random(6), "wide": random(6, 8, 3), "grouped": random(6, 4, 1)}


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("y = Conv <kernel_shape=[1]> (a, w, b)", "Transpose Transpose MatMul Add Transpose"),
        ("y = Conv <kernel_shape=[1], strides=[1], pads=[0, 0]> (a, w)", "Transpose Transpose MatMul Transpose"),
    ],
)
def test_beside_a_transpose(body: str, after: str) -> None:
    model = with_axis_sizes(graph(SIGNATURE, TURN + body, **WEIGHTS))
    rewritten = assert_rewritten(pointwise_to_matmul, model, 1, after)
    assert [node.name for node in rewritten.graph.node if node.op_type == "MatMul"] == ["Conv_1"]


@pytest.mark.parametrize(
    "body",
    [
        TURN + "y = Conv <kernel_shape=[3], pads=[1, 1]> (a, wide)",
        TURN + "y = Conv <kernel_shape=[1], group=2> (a, grouped)",
        TURN + "p = Conv <kernel_shape=[1], pads=[1, 1]> (a, w) s = MaxPool <kernel_shape=[3]> (p) y = Relu(s)",
        TURN + "r = Relu(a) y = Conv <kernel_shape=[1]> (r, w)",  # nothing that could cancel
    ],
)
def test_what_stays(body: str) -> None:
    assert_untouched(pointwise_to_matmul, with_axis_sizes(graph(SIGNATURE, body, **WEIGHTS)))
