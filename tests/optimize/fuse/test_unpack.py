"""Gathers of a packed projection."""

from typing import Any

import numpy as np
import pytest

from optimize.fuse.axis_sizes import with_axis_sizes
from optimize.fuse.unpack import unpack
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph

SIGNATURE = "(float[batch, time, 12] x) => (float[batch, time, 4] y)"
CONSTANTS: dict[str, Any] = {f"i{index}": np.array(index) for index in range(3)} | {
    "apart": np.array([0, 0, 3, 4]),
    "within": np.array([0, 0, 4, 3]),
}
OUTSIDE = "a = Reshape(x, apart) t = Transpose <perm=[2,0,1,3]> (a) "
AFTER = "Split Identity Identity Identity Add Mul"
PICK = "q = Gather <axis=0> (t, i0) k = Gather <axis=0> (t, i1) v = Gather <axis=0> (t, i2) s = Add(q, k) y = Mul(s, v)"


def test_each_part() -> None:
    rewritten = assert_rewritten(unpack, with_axis_sizes(graph(SIGNATURE, OUTSIDE + PICK, **CONSTANTS)), 3, AFTER, 0)
    assert rewritten.graph.node[0].op_type == "Split"


@pytest.mark.parametrize(
    "body",
    [
        OUTSIDE + PICK.replace("i2", "i1"),  # one part twice, one never
        "a = Reshape(x, within) t = Transpose <perm=[3,0,1,2]> (a) " + PICK,  # the parts lie interleaved in x
        OUTSIDE  # the whole is read as well
        + PICK.replace("y =", "z =")
        + " o = ReduceMean <axes=[0], keepdims=0> (t) y = Add(z, o)",
    ],
)
def test_what_stays(body: str) -> None:
    assert_untouched(unpack, with_axis_sizes(graph(SIGNATURE, body, **CONSTANTS)))


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_every_operator_set(opset: int) -> None:
    """Split had to be told the number of its parts from 18 on."""
    assert_rewritten(unpack, with_axis_sizes(graph(SIGNATURE, OUTSIDE + PICK, opset, **CONSTANTS)), 3, AFTER, 0)
