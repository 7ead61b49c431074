"""Attention with every kind of mask, and what only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimize.fuse import fuse
from optimize.fuse.attention import fuse_attention
from optimize.fuse.axis_sizes import with_axis_sizes
from tests.optimize.fuse.graphs import assert_same_answers, assert_untouched, graph, operators, random

WIDTH, HEADS = 16, 2
CONSTANTS: dict[str, Any] = {
    **{f"w{name}": random(WIDTH, WIDTH, seed=seed) / 4 for seed, name in enumerate("qkv")},
    **{f"b{name}": random(WIDTH, seed=seed) for seed, name in enumerate("qkv", 5)},
    "heads": np.array([0, 0, HEADS, WIDTH // HEADS]),
    "flat": np.array([0, 0, WIDTH]),
    "scale": 8**-0.5,
    "low": -1e4,
    "infinite": -np.inf,
    "zero": 0.0,
    "axes": np.array([1, 2]),
}
PROJECT = " ".join(f"m{name} = MatMul(x, w{name}) p{name} = Add(m{name}, b{name})" for name in "qkv") + " "
HEADED = (
    "hq = Reshape(pq, heads) q = Transpose <perm=[0,2,1,3]> (hq) hk = Reshape(pk, heads) "
    "k = Transpose <perm=[0,2,3,1]> (hk) hv = Reshape(pv, heads) v = Transpose <perm=[0,2,1,3]> (hv) "
)
SCORES = PROJECT + HEADED + "s = MatMul(q, k) t = Mul(s, scale) "
TAIL = "p = Softmax <axis=-1> (u) c = MatMul(p, v) d = Transpose <perm=[0,2,1,3]> (c) y = Reshape(d, flat)"
SIGNATURE = "(float[batch, time, 16] x{}) => (float[batch, time, 16] y)"
PADDED = SIGNATURE.format(", bool[batch, time] pad")


@pytest.mark.parametrize(
    ("signature", "body", "after"),
    [
        (SIGNATURE.format(""), SCORES + "u = Identity(t) ", "Attention"),
        (PADDED, SCORES + "n = Unsqueeze(pad, axes) u = Where(n, low, t) ", "Not Cast Attention"),
        (PADDED, SCORES + "n = Unsqueeze(pad, axes) o = Where(n, low, zero) u = Add(t, o) ", "Not Cast Attention"),
        (PADDED, SCORES + "o = Where(pad, low, zero) n = Unsqueeze(o, axes) u = Add(n, t) ", "Not Cast Attention"),
        (
            PADDED,
            SCORES + "r = Not(pad) o = Where(r, zero, low) n = Unsqueeze(o, axes) u = Add(n, t) ",
            "Not Cast Attention",
        ),
        (SIGNATURE.format(", float[batch, 1, time, time] bias"), SCORES + "u = Add(t, bias) ", "Expand Attention"),
        (SIGNATURE.format(", float[batch, 2, time, time] bias"), SCORES + "u = Add(bias, t) ", "Attention"),
    ],
)
def test_with_its_projections(signature: str, body: str, after: str) -> None:
    model = graph(signature, body + TAIL, **CONSTANTS)
    fused, counts = fuse(model)
    assert counts["attentions fused"] == 1
    assert sorted(operators(fused).elements()) == sorted(after.split())
    assert (fused.graph.input, fused.graph.output) == (model.graph.input, model.graph.output)
    assert next(node.name for node in fused.graph.node if node.op_type == "Attention") == "MatMul_0"
    assert_same_answers(model, fused)
    assert not any(fuse(fused)[1].values())


def test_other_keys_and_values() -> None:
    """Cross-attention: another input for keys and values, so MultiHeadAttention."""
    body = (
        SCORES.replace("MatMul(x, wk)", "MatMul(z, wk)").replace("MatMul(x, wv)", "MatMul(z, wv)") + "u = Identity(t) "
    )
    model = graph(SIGNATURE.format(", float[batch, 7, 16] z"), body + TAIL, **CONSTANTS)
    fused, counts = fuse(model)
    assert counts["attentions fused"] == 1
    assert operators(fused) == {"MatMul": 3, "Add": 3, "MultiHeadAttention": 1}
    assert_same_answers(model, fused)


def test_one_packed_projection() -> None:
    packed = "m = MatMul(x, w) a = Add(m, b) pq, pk, pv = Split <axis=2> (a) "
    constants: dict[str, Any] = {"w": random(WIDTH, 3 * WIDTH) / 4, "b": random(3 * WIDTH)}
    model = graph(
        SIGNATURE.format(""),
        packed + SCORES.removeprefix(PROJECT) + "u = Identity(t) " + TAIL,
        **CONSTANTS,
        **constants,
    )
    fused, counts = fuse(model)
    assert counts["attentions fused"] == 1
    assert operators(fused) == {"Attention": 1}
    assert_same_answers(model, fused)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        # a mask of queries, not of keys
        (PADDED, SCORES + "n = Unsqueeze(pad, ends) u = Where(n, low, t) "),
        # a mask that is too weak to be one
        (PADDED, SCORES + "n = Unsqueeze(pad, axes) u = Where(n, zero, t) "),
        # a bias for all items: wrong answers in the target runtime
        (SIGNATURE.format(", float[1, 2, time, time] bias"), SCORES + "u = Add(t, bias) "),
        # something between the heads and the product, as rotary positions are
        (
            SIGNATURE.format(""),
            SCORES.replace("MatMul(q, k)", "MatMul(q0, k)").replace("s = ", "q0 = Tanh(q) s = ") + "u = Identity(t) ",
        ),
        # softmax over the queries
        (SIGNATURE.format(""), SCORES + "u = Identity(t) "),
    ],
)
def test_something_else(signature: str, body: str) -> None:
    tail = TAIL if "ends" in body or "bias" in body or "pad" in signature or "Tanh" in body else TAIL.replace("-1", "2")
    model = with_axis_sizes(graph(signature, body + tail, **CONSTANTS, ends=np.array([1, 3])))
    assert_untouched(fuse_attention, model)


def test_weights_that_are_an_answer_stay() -> None:
    signature = "(float[batch, time, 16] x) => (float[batch, time, 16] y, float[batch, 2, time, time] p)"
    assert_untouched(fuse_attention, with_axis_sizes(graph(signature, SCORES + "u = Identity(t) " + TAIL, **CONSTANTS)))


def test_weights_that_are_masked_again_stay() -> None:
    body = SCORES + "p0 = Softmax <axis=-1> (t) n = Unsqueeze(pad, axes) p = Where(n, zero, p0) "
    assert_untouched(fuse_attention, with_axis_sizes(graph(PADDED, body + TAIL[TAIL.index("c =") :], **CONSTANTS)))
