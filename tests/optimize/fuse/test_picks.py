"""One step of a sequence."""

from typing import Any

import numpy as np
import pytest

from optimize.fuse.picks import pick_before_transposing
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph

SIGNATURE = "(float[time, batch, 8] x) => (float[batch, 8] y)"
INDEX: dict[str, Any] = {"last": np.array(-1), "lasts": np.array([-1]), "zero": np.array([0])}
TURN = "a = Transpose <perm=[1,0,2]> (x) "


def test_the_last_step() -> None:
    body = TURN + "y = Gather <axis=1> (a, last)"
    assert_rewritten(pick_before_transposing, graph(SIGNATURE, body, **INDEX), 1, "Gather", 0)


@pytest.mark.parametrize(
    "body",
    [
        "a = Transpose <perm=[2,1,0]> (x) b = Gather <axis=2> (a, last) y = Transpose <perm=[1,0]> (b)",  # turned still
        TURN + "b = Gather <axis=1> (a, lasts) y = ReduceMean <axes=[1], keepdims=0> (b)",  # a step, and its axis
        TURN
        + "b = Gather <axis=1> (a, last) c = ReduceMean <axes=[1], keepdims=0> (a) y = Add(b, c)",  # all steps, too
    ],
)
def test_what_stays(body: str) -> None:
    assert_untouched(pick_before_transposing, graph(SIGNATURE, body, **INDEX))
