"""Residual sums before a layer norm."""

from typing import Any

import pytest

from optimize.fuse.residual_norm import keep_residuals_apart
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

SIGNATURE = "(float[batch, 16] x, float[batch, 16] r) => (float[batch, 16] y)"
WEIGHTS: dict[str, Any] = {"g": random(16), "b": random(16, seed=1)}


def test_a_residual() -> None:
    model = graph(SIGNATURE, "s = Add(x, r) y = LayerNormalization(s, g, b)", **WEIGHTS)
    assert_rewritten(keep_residuals_apart, model, 1, "Sum LayerNormalization", 1e-5)


@pytest.mark.parametrize(
    "body",
    ["s = Add(x, b) z = LayerNormalization(s, g) y = Mul(z, r)", "s = Add(x, r) y = Softmax(s)"],  # a bias; no norm
)
def test_what_stays(body: str) -> None:
    assert_untouched(keep_residuals_apart, graph(SIGNATURE, body, **WEIGHTS))
