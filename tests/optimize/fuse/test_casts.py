"""Casts that undo or continue one another."""

import pytest

from optimize.fuse.casts import merge_casts
from tests.optimize.fuse.graphs import assert_rewritten, assert_untouched, graph

FLOAT, DOUBLE, INT32, INT64, FLOAT16 = 1, 11, 6, 7, 10


def test_there_and_back_is_nothing() -> None:
    body = f"a = Cast <to={DOUBLE}> (x) b = Cast <to={FLOAT}> (a) y = Relu(b)"
    assert_rewritten(merge_casts, graph("(float[batch] x) => (float[batch] y)", body), 2, "Relu", 0)


def test_a_chain_is_its_last() -> None:
    body = f"a = Cast <to={INT64}> (x) y = Cast <to={FLOAT}> (a)"
    assert_rewritten(merge_casts, graph("(int32[batch] x) => (float[batch] y)", body), 1, "Cast", 0)


def test_to_the_same_type_is_nothing() -> None:
    body = f"a = Cast <to={FLOAT}> (x) y = Relu(a)"
    assert_rewritten(merge_casts, graph("(float[batch] x) => (float[batch] y)", body), 1, "Relu", 0)


@pytest.mark.parametrize(
    ("signature", "middle", "last"),
    [
        ("(float[batch] x) => (float[batch] y)", FLOAT16, FLOAT),  # rounds
        ("(float[batch] x) => (float[batch] y)", INT64, FLOAT),  # truncates
        ("(int64[batch] x) => (int64[batch] y)", DOUBLE, INT64),  # large numbers round
    ],
)
def test_what_rounds_stays(signature: str, middle: int, last: int) -> None:
    assert_untouched(merge_casts, graph(signature, f"a = Cast <to={middle}> (x) y = Cast <to={last}> (a)"))
