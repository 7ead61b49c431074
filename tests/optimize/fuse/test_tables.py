"""Tables of positions and their projections."""

from typing import Any

import numpy as np
import pytest

from optimize.fuse.tables import fold_tables
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph, random

SIGNATURE = "(float[batch, time, 8] x) => (float[batch, time, 8] y)"
CONSTANTS: dict[str, Any] = {
    "table": random(32, 8),
    "w": random(8, 8),
    "wide": random(8, 16),
    "b": random(8),
    "zero": np.array([0]),
    "one": np.array([1]),
}
ROWS = "s = Shape(x) t = Gather(s, one) p = Slice(table, zero, t, zero) "


def test_the_projection_is_in_the_table() -> None:
    model = graph(SIGNATURE, ROWS + "m = MatMul(p, w) a = Add(m, b) y = Add(x, a)", **CONSTANTS)
    assert_rewritten(fold_tables, model, 2, "Shape Gather Slice Add")


@pytest.mark.parametrize(
    "body",
    [
        ROWS + "m = MatMul(p, w) a = Add(x, m) y = Add(a, p)",  # the rows are read as they are, too
        ROWS + "m = MatMul(p, wide) c = MatMul(m, back) y = Add(x, c)",  # the table would grow
    ],
)
def test_what_stays(body: str) -> None:
    assert_untouched(fold_tables, graph(SIGNATURE, body, back=random(16, 8), **CONSTANTS))
