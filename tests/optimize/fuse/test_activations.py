"""SiLU, GELU and its tanh form, however they are written."""

from typing import Any

import pytest

from optimize.fuse.activations import fuse_activations
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph

SIGNATURE = "(float[batch, 16] x) => (float[batch, 16] y)"
TANH: dict[str, Any] = {"c": 0.044715, "k": 0.7978845608, "one": 1.0, "half": 0.5, "three": 3.0}


@pytest.mark.parametrize(
    ("body", "constants", "operator"),
    [
        ("s = Sigmoid(x) y = Mul(x, s)", {}, "QuickGelu"),
        ("s = Sigmoid(x) y = Mul(s, x)", {}, "QuickGelu"),
        ("a = Mul(x, k) s = Sigmoid(a) y = Mul(x, s)", {"k": 1.702}, "QuickGelu"),
        (
            "a = Div(x, r) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)",
            {"r": 1.4142135, "one": 1.0, "half": 0.5},
            "Gelu",
        ),
        (
            "h = Mul(x, half) a = Mul(x, r) e = Erf(a) b = Add(one, e) y = Mul(h, b)",
            {"r": 0.70710678, "one": 1.0, "half": 0.5},
            "Gelu",
        ),
        (
            "p = Pow(x, three) q = Mul(p, c) s = Add(x, q) t = Mul(s, k) u = Tanh(t) v = Add(u, one) w = Mul(x, v) "
            "y = Mul(w, half)",
            TANH,
            "FastGelu",
        ),
        (
            "xx = Mul(x, x) p = Mul(xx, x) q = Mul(p, c) s = Add(x, q) t = Mul(s, k) u = Tanh(t) v = Add(u, one) "
            "h = Mul(x, half) y = Mul(h, v)",
            TANH,
            "FastGelu",
        ),
    ],
)
def test_written_out(body: str, constants: dict[str, Any], operator: str) -> None:
    rewritten = assert_rewritten(fuse_activations, graph(SIGNATURE, body, **constants), 1, operator)
    assert rewritten.opset_import[-1].domain == "com.microsoft"


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = Mul(x, k) s = Sigmoid(a) y = Mul(x, s)", {"k": 1.5}),  # neither 1 nor 1.702
        ("a = Neg(x) s = Sigmoid(a) y = Mul(x, s)", {}),
        ("s = Sigmoid(x) t = Mul(x, s) y = Add(t, s)", {}),  # the gate is read twice
        ("a = Mul(x, r) e = Erf(a) b = Add(e, one) y = Mul(x, b)", {"r": 0.70710678, "one": 1.0}),  # without the half
    ],
)
def test_something_else(body: str, constants: dict[str, Any]) -> None:
    assert_untouched(fuse_activations, graph(SIGNATURE, body, **constants))


def test_a_gate_that_is_an_answer_stays() -> None:
    signature = "(float[batch, 16] x) => (float[batch, 16] y, float[batch, 16] s)"
    assert_untouched(fuse_activations, graph(signature, "s = Sigmoid(x) y = Mul(x, s)"))


def test_a_gated_linear_unit_is_no_silu() -> None:
    signature = "(float[batch, 16] x) => (float[batch, 8] y)"
    assert_untouched(fuse_activations, graph(signature, "a, b = Split <axis=1> (x) s = Sigmoid(b) y = Mul(a, s)"))
