"""Constant factors on their way into weights."""

from typing import Any

import pytest

from optimize.fuse.axis_sizes import with_axis_sizes
from optimize.fuse.scales import fold_scales
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

SIGNATURE = "(float[batch, time, 8] x) => (float[batch, time, 8] y)"
WEIGHTS: dict[str, Any] = {
    "w": random(8, 8),
    "u": random(8, 8, seed=1),
    "b": random(8, seed=2),
    "half": 0.5,
    "eight": 8.0,
    "columns": random(8, seed=3),
}


@pytest.mark.parametrize(
    ("body", "after", "atol"),
    [
        ("m = MatMul(x, w) a = Add(m, b) y = Mul(a, half)", "MatMul Add", 0),
        ("m = MatMul(x, w) a = Add(b, m) y = Div(a, eight)", "MatMul Add", 0),
        ("m = MatMul(x, w) a = Add(m, b) y = Mul(columns, a)", "MatMul Add", 5e-6),
        (
            "m = MatMul(x, w) t = Transpose <perm=[0,2,1]> (m) s = MatMul(x, t) p = MatMul(s, x) y = Mul(p, half)",
            None,
            0,
        ),
        (
            "m = MatMul(x, w) n = MatMul(x, u) a = Sub(m, n) y = Mul(a, half)",
            "MatMul MatMul Sub",
            0,
        ),
    ],
)
def test_into_weights(body: str, after: str | None, atol: float) -> None:
    model = with_axis_sizes(graph(SIGNATURE, body, **WEIGHTS))
    assert_rewritten(fold_scales, model, 1, after or "MatMul Transpose MatMul MatMul", atol)


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(x, w) y0 = Mul(m, half) y = Add(y0, m)",  # read twice
        "m = MatMul(x, w) r = Tanh(m) y = Mul(r, half)",  # not linear
        "m = MatMul(x, w) a = Add(m, x) y = Mul(a, half)",  # one branch takes nothing
        "m = MatMul(x, w) n = MatMul(m, w) y = Mul(n, half)",  # another product shares the weights
        "m = MatMul(x, w) y = Div(half, m)",  # not a factor
    ],
)
def test_what_stays(body: str) -> None:
    assert_untouched(fold_scales, with_axis_sizes(graph(SIGNATURE, body, **WEIGHTS)))


def test_a_sum_that_is_an_answer_stays() -> None:
    signature = "(float[batch, time, 8] x) => (float[batch, time, 8] y, float[batch, time, 8] m)"
    assert_untouched(fold_scales, with_axis_sizes(graph(signature, "m = MatMul(x, w) y = Mul(m, half)", **WEIGHTS)))
