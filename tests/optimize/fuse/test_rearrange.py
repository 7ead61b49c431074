"""Chains of Reshape, Transpose, Squeeze and Unsqueeze: fewest nodes, same numbers in the same places."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.fuse.axis_sizes import with_axis_sizes
from optimize.fuse.rearrange import rearrange
from tests.optimize.fuse.graphs import answers, assert_rewritten, assert_untouched, graph

IN = "(float[batch, time, 8] x) => "
CONSTANTS: dict[str, Any] = {
    "heads": np.array([0, 0, 2, 4]),
    "flat": np.array([0, 0, 8]),
    "rows": np.array([-1, 8]),
    "zero": np.array([0]),
    "one": np.array([1]),
}


@pytest.mark.parametrize(
    ("answer", "body", "count", "after"),
    [
        ("(float[batch, time, 8] y)", "a = Transpose <perm=[1,0,2]> (x) b = Transpose <perm=[1,0,2]> (a)", 2, ""),
        (
            "(float[8, batch, time] y)",
            "a = Transpose <perm=[0,2,1]> (x) b = Transpose <perm=[1,0,2]> (a)",
            1,
            "Transpose",
        ),
        ("(float[batch, time, 8] y)", "a = Reshape(x, heads) b = Reshape(a, flat)", 2, ""),
        ("(float[n, 8] y)", "a = Reshape(x, heads) b = Reshape(a, rows)", 1, "Reshape"),
        ("(float[batch, time, 8] y)", "a = Unsqueeze(x, one) b = Squeeze(a, one)", 2, ""),
        (
            "(float[batch, 2, time, 4] y)",
            "a = Reshape(x, heads) c = Transpose <perm=[2,0,1,3]> (a) b = Transpose <perm=[1,0,2,3]> (c)",
            1,
            "Reshape Transpose",
        ),
        (
            "(float[batch, time, 8] y)",
            "a = Reshape(x, heads) c = Transpose <perm=[0,2,1,3]> (a) d = Transpose <perm=[0,2,1,3]> (c) "
            "b = Reshape(d, flat)",
            4,
            "",
        ),
    ],
)
def test_chains(answer: str, body: str, count: int, after: str) -> None:
    model = with_axis_sizes(graph(IN + answer, body + " y = Relu(b)", **CONSTANTS))
    assert_rewritten(rearrange, model, count, f"{after} Relu", 0)


def test_an_answer_at_the_end_keeps_its_name() -> None:
    body = "a = Transpose <perm=[1,0,2]> (x) y = Transpose <perm=[1,0,2]> (a)"
    model = with_axis_sizes(graph(IN + "(float[batch, time, 8] y)", body))
    assert_rewritten(rearrange, model, 1, "Identity", 0)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (  # the middle is an answer
            "(float[batch, time, 8] y, float[time, batch, 8] a)",
            "a = Transpose <perm=[1,0,2]> (x) b = Transpose <perm=[1,0,2]> (a) y = Relu(b)",
        ),
        (  # the middle is read twice
            "(float[batch, time, 8] y, float[time, batch, 8] z)",
            "a = Transpose <perm=[1,0,2]> (x) b = Transpose <perm=[1,0,2]> (a) y = Relu(b) z = Relu(a)",
        ),
        (  # batch and time are two different sizes, though 8 = 8
            "(float[time, batch, 8] y)",
            "a = Transpose <perm=[1,0,2]> (x) y = Relu(a)",
        ),
    ],
)
def test_what_stays(answer: str, body: str) -> None:
    assert_untouched(rearrange, with_axis_sizes(graph(IN + answer, body)))


SHAPES = [(2, 3, 4), (6, 4), (3, 8), (2, 12), (4, 3, 2), (1, 24), (2, 3, 2, 2), (24,), (2, 1, 12)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(SHAPES), st.integers(0, 2**16)), min_size=1, max_size=6))
def test_no_chain_grows_or_moves_a_number(steps: list[tuple[int, ...] | int]) -> None:
    """A shape is a Reshape, a number seeds the order of a Transpose. Compared with numpy, value by value."""
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    body, name = "", "x"
    constants: dict[str, Any] = {}
    for index, step in enumerate(steps):
        if isinstance(step, int):
            perm = [int(axis) for axis in np.random.default_rng(step).permutation(value.ndim)]
            body += f"v{index} = Transpose <perm={perm}> ({name}) "
            value = value.transpose(perm)
        else:
            constants[f"s{index}"] = np.array(step)
            body += f"v{index} = Reshape({name}, s{index}) "
            value = value.reshape(step)
        name = f"v{index}"
    shape = ", ".join(map(str, value.shape))
    model = with_axis_sizes(graph(f"(float[2, 3, 4] x) => (float[{shape}] y)", f"{body} y = Relu({name})", **constants))
    rewritten, count = rearrange(model)
    assert len(rewritten.graph.node) == len(model.graph.node) - count
    if all(isinstance(step, int) for step in steps) or all(isinstance(step, tuple) for step in steps):
        assert len(rewritten.graph.node) <= 2
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(answers(rewritten, {"x": x})[0], value)
    assert rearrange(rewritten)[1] == 0
