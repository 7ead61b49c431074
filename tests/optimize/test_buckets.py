"""Requests cut to the bucket that a client would pad to."""

from __future__ import annotations

import numpy as np
import pytest

from optimize.buckets import fitted
from optimize.data.dataset import Arrays
from optimize.specs import ModelSpec, TensorSpec

SPEC = ModelSpec(
    "words",
    (
        TensorSpec("source", "int64", ("words",)),
        TensorSpec("lengths", "int32", (1,)),
        TensorSpec("extra", "int8", (9,)),
    ),
    (TensorSpec("answer", "float32", (1,)),),
    buckets={"words": (4, 8)},
)


@pytest.mark.parametrize(("lengths", "width"), [([1, 4], 4), ([5, 2], 8), ([9, 1], 12)])
def test_the_smallest_bucket_that_holds_the_longest(lengths: list[int], width: int) -> None:
    request: Arrays = {
        "source": np.arange(24).reshape(2, 12),
        "lengths": np.array(lengths, np.int32)[:, None],
        "extra": np.zeros((2, 9), np.int8),
    }
    found = fitted(request, SPEC)
    np.testing.assert_array_equal(found["source"], request["source"][:, :width])
    assert found["extra"].shape == (2, 9)


def test_without_lengths_a_request_is_as_it_is() -> None:
    request: Arrays = {"source": np.zeros((1, 12), np.int64), "extra": np.zeros((1, 9), np.int8)}
    spec = ModelSpec("words", (SPEC.inputs[0], SPEC.inputs[2]), SPEC.outputs, buckets=SPEC.buckets)
    assert fitted(request, spec)["source"] is request["source"]


def test_axes_may_have_lengths_of_their_own() -> None:
    names, sizes = ("text", "events"), ((4, 8), (2, 16))
    spec = ModelSpec(
        "both",
        tuple(TensorSpec(name, "int64", (name,)) for name in names)
        + tuple(TensorSpec(f"{name}_lengths", "int32", (1,)) for name in names),
        SPEC.outputs,
        buckets=dict(zip(names, sizes, strict=True)),
    )
    request: Arrays = {name: np.arange(32).reshape(2, 16) for name in names}
    request |= {"text_lengths": np.array([[5], [3]], np.int32), "events_lengths": np.array([[0], [1]], np.int32)}
    found = fitted(request, spec)
    assert (found["text"].shape, found["events"].shape) == ((2, 8), (2, 2))
