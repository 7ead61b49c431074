"""What ONNX Runtime's own basic optimisations take away."""

from typing import Any

import numpy as np
import pytest

from optimize.fuse.fold import fold
from tests.optimize.fuse.graphs import assert_rewritten, graph, random

SIGNATURE = "(float[batch, 4, 8] x) => (float[batch, 4, 8] y)"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Identity(x) y = Relu(a)", "Relu"),
        ("a = Dropout(x) y = Relu(a)", "Relu"),
        ("c = Add(w, w) y = Mul(x, c)", "Mul"),
        ("a = Relu(x) b = Relu(x) y = Add(a, b)", "Relu Add"),
        ("a = Relu(x) b = Tanh(x) y = Add(a, x)", "Relu Add"),
        (
            "a = Conv <pads=[1, 1]> (x, k) y = BatchNormalization(a, g, g, g, v)",
            "Conv",
        ),
        ("k0 = Constant <value_floats=[2.0]> () y = Mul(x, k0)", "Mul"),
    ],
)
def test_folding(body: str, after: str) -> None:
    constants: dict[str, Any] = {"w": random(8), "k": random(4, 4, 3), "g": random(4), "v": np.abs(random(4)) + 1}
    model = graph(SIGNATURE, body, **constants)
    assert_rewritten(fold, model, len(model.graph.node) - len(after.split()), after)
