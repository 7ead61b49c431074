"""Arithmetic on the sizes of axes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.fuse.sizes import ONE, Size, dimension, divide, product, reshape_target, size

SIZES = st.builds(
    Size,
    st.integers(1, 64),
    st.lists(st.sampled_from(["batch", "time", "2*t - 1"]), max_size=3).map(lambda s: tuple(sorted(s))),
)


@given(SIZES, SIZES)
def test_division_undoes_multiplication(first: Size, second: Size) -> None:
    assert divide(product([first, second]), second) == first


@pytest.mark.parametrize("axis", [1, 64, "batch", "4*batch", "2*batch*time"])
def test_reading_and_writing(axis: int | str) -> None:
    assert dimension(size(axis)) == axis


def test_what_is_no_product_is_a_symbol() -> None:
    assert size("2*time - 1") == Size(1, ("2*time - 1",))
    assert divide(size("2*time - 1"), size(2)) is None
    assert divide(size("time"), size("batch")) is None
    assert divide(Size(6), Size(4)) is None


def test_targets() -> None:
    batch, time = size("batch"), size("time")
    assert reshape_target([batch, time, Size(8)], [batch, time, Size(2), Size(4)]) == [0, 0, 2, 4]
    assert reshape_target([batch, time], [product([batch, time]), ONE]) == [-1, 1]
    assert reshape_target([batch, time, ONE], [time, batch, ONE]) is None
