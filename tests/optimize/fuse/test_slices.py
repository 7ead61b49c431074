"""Slices that cut a whole axis."""

from typing import Any

import numpy as np
import pytest

from optimize.fuse.slices import slices_to_split
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph

SIGNATURE = "(float[batch, 12] x) => (float[batch, 6] y)"
NUMBERS: dict[str, Any] = {f"n{number}": np.array([number]) for number in (0, 1, 4, 6, 8, 12)}
END: dict[str, Any] = {"end": np.array([2**63 - 1]), "back": np.array([-6])}


def test_a_gated_linear_unit() -> None:
    body = "a = Slice(x, n0, n6, n1) b = Slice(x, n6, end, n1) s = Sigmoid(b) y = Mul(a, s)"
    assert_rewritten(slices_to_split, graph(SIGNATURE, body, **NUMBERS, **END), 2, "Split Sigmoid Mul", 0)


def test_the_order_of_the_nodes_does_not_matter() -> None:
    body = "b = Slice(x, back, end, n1, n1) s = Sigmoid(b) a = Slice(x, n0, n6, n1) y = Mul(a, s)"
    assert_rewritten(slices_to_split, graph(SIGNATURE, body, **NUMBERS, **END), 2, "Split Sigmoid Mul", 0)


@pytest.mark.parametrize(
    "body",
    [
        "a = Slice(x, n0, n6, n1) b = Slice(x, n4, n12, n1) c = Slice(b, n0, n6, n1) y = Mul(a, c)",  # they overlap
        "a = Slice(x, n0, n6, n1) y = Relu(a)",  # only one
        "a = Slice(x, n0, n4, n1) b = Slice(x, n4, n8, n1) c = Concat <axis=1> (a, b) y = Slice(c, n0, n6, n1)",
    ],
)
def test_not_a_whole_axis(body: str) -> None:
    assert_untouched(slices_to_split, graph(SIGNATURE, body, **NUMBERS))
