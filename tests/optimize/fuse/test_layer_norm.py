"""A layer norm that was written out."""

from typing import Any

import numpy as np
import pytest

from optimize.fuse.axis_sizes import with_axis_sizes
from optimize.fuse.layer_norm import fuse_layer_norm
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

SIGNATURE = "(float[batch, time, 16] x) => (float[batch, time, 16] y)"
MEAN = "m = ReduceMean <axes=[-1], keepdims=1> (x) d = Sub(x, m) "
POWER = "q = Pow(d, two) v = ReduceMean <axes=[-1], keepdims=1> (q) "
PRODUCT = "q = Mul(d, d) v = ReduceMean <axes=[2], keepdims=1> (q) "
ROOT = "w = Add(v, eps) r = Sqrt(w) "
CONSTANTS: dict[str, Any] = {"two": 2.0, "eps": 1e-5, "gamma": random(16), "beta": random(16, seed=1)}


@pytest.mark.parametrize("square", [POWER, PRODUCT])
@pytest.mark.parametrize(
    ("affine", "after"),
    [
        ("n = Div(d, r) g = Mul(n, gamma) y = Add(g, beta)", "LayerNormalization"),
        ("n = Div(d, r) g = Mul(gamma, n) y = Add(beta, g)", "LayerNormalization"),
        ("n = Div(d, r) y = Mul(n, gamma)", "LayerNormalization"),
        ("y = Div(d, r)", "LayerNormalization"),
    ],
)
def test_written_out(square: str, affine: str, after: str) -> None:
    assert_rewritten(
        fuse_layer_norm, with_axis_sizes(graph(SIGNATURE, MEAN + square + ROOT + affine, **CONSTANTS)), 1, after
    )


def test_axes_as_an_input() -> None:
    body = "m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes) " + ROOT + "y = Div(d, r)"
    model = graph(SIGNATURE, body, opset=18, axes=np.array([-1]), eps=1e-5)
    assert_rewritten(fuse_layer_norm, model, 1, "LayerNormalization")


def test_below_opset_17_nothing_is_done() -> None:
    assert_untouched(fuse_layer_norm, graph(SIGNATURE, MEAN + POWER + ROOT + "y = Div(d, r)", opset=16, **CONSTANTS))


@pytest.mark.parametrize(
    "body",
    [
        MEAN.replace("-1", "1") + POWER.replace("-1", "1") + ROOT + "y = Div(d, r)",  # over time
        MEAN + POWER + "r = Sqrt(v) z = Add(r, eps) y = Div(d, z)",  # epsilon outside of the root
        MEAN + POWER + ROOT + "n = Div(d, r) y = Add(n, d)",  # d is read once more
    ],
)
def test_something_else(body: str) -> None:
    assert_untouched(fuse_layer_norm, graph(SIGNATURE, body, **CONSTANTS))


def test_a_mean_that_is_an_answer_stays() -> None:
    signature = "(float[batch, time, 16] x) => (float[batch, time, 16] y, float[batch, time, 1] m)"
    assert_untouched(fuse_layer_norm, graph(signature, MEAN + POWER + ROOT + "y = Div(d, r)", **CONSTANTS))
