"""Shapes that follow from the names of the axes."""

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from optimize.fuse.static_shapes import static_shapes
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

CONSTANTS: dict[str, Any] = {f"n{number}": np.array([number]) for number in (0, 1, 2, 3, 4, 32)} | {
    "i": np.array(2),
    "table": random(32, 8),
}
DIMS = "s = Shape(x) b = Gather(s, n0) t = Gather(s, n1) "


@pytest.mark.parametrize(
    ("signature", "body", "count", "after", "target"),
    [
        (
            "(float[batch, time, 8] x) => (float[batch, time, 2, 4] y)",
            DIMS + "c = Concat <axis=0> (b, t, n2, n4) y = Reshape(x, c)",
            1,
            "Reshape",
            [0, 0, 2, 4],
        ),
        (
            "(float[batch, time, 8] x) => (float[rows, 8] y)",
            DIMS + "r = Mul(b, t) w = Slice(s, n2, n3) c = Concat <axis=0> (r, w) y = Reshape(x, c)",
            2,
            "Reshape",
            [-1, 8],
        ),
        (  # behind a sum with the first rows of a table, as learned positions are
            "(float[batch, time, 8] x) => (float[time, batch, 8] y)",
            DIMS + "rows = Slice(table, n0, t, n0) p = Add(x, rows) f = Transpose <perm=[1,0,2]> (p) "
            "c = Concat <axis=0> (t, b, n2, n4) h = Reshape(f, c) d = Concat <axis=0> (t, b, n2, n4) g = Reshape(h, d) "
            "e = Shape(f) y = Reshape(g, e)",
            3,
            "Shape Gather Slice Add Transpose Reshape Reshape Reshape",
            None,
        ),
    ],
)
def test_targets(signature: str, body: str, count: int, after: str, target: list[int] | None) -> None:
    rewritten = assert_rewritten(static_shapes, graph(signature, body, **CONSTANTS), count, after, 0)
    if target is not None:
        shapes = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in rewritten.graph.initializer}
        assert shapes[rewritten.graph.node[-1].input[1]] == target


def test_a_static_size_is_a_constant() -> None:
    body = "s = Shape(x) w = Gather(s, i) f = Cast <to=1> (w) r = Sqrt(f) y = Div(x, r)"
    model = graph("(float[batch, time, 8] x) => (float[batch, time, 8] y)", body, **CONSTANTS)
    assert_rewritten(static_shapes, model, 1, "Cast Sqrt Div", 0)


def test_two_axes_out_of_their_places_stay() -> None:
    body = DIMS + "c = Concat <axis=0> (t, b, n2, n4) y = Reshape(x, c)"
    signature = "(float[batch, time, 8] x) => (float[time, batch, 2, 4] y)"
    assert_untouched(static_shapes, graph(signature, body, **CONSTANTS))


def test_a_shape_that_comes_with_the_request_stays() -> None:
    signature = "(float[batch, time, 8] x, int64[3] shape) => (float[a, b, c] y)"
    assert static_shapes(graph(signature, "y = Reshape(x, shape)"))[1] == 0


def test_a_size_that_is_an_answer_stays() -> None:
    body = "s = Shape(x) n = Gather(s, i)"
    assert_untouched(static_shapes, graph("(float[batch, time, 8] x) => (int64 n)", body, **CONSTANTS))
