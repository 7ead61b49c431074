"""Whole recordings through a step: joined, trimmed and cut as the offline model would have it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optimize import streaming, verify
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.specs import ModelSpec, StateSpec, TensorSpec

CHUNK = 4
SPEC = ModelSpec(
    "sums",
    inputs=(TensorSpec("pcm", "int16", (CHUNK,)), TensorSpec("lengths", "int32", (1,))),
    outputs=(TensorSpec("total", "float32", (CHUNK // 2,)), TensorSpec("output_lengths", "int64", (1,))),
    states=(StateSpec("sum", "float32", (1,)),),
)
WITHOUT_LENGTHS = ModelSpec("sums", SPEC.inputs[:1], SPEC.outputs[:1], SPEC.states)


def running_sums(feed: Arrays) -> Arrays:
    """The running sum after every second sample."""
    totals = feed["state_sum"] + np.cumsum(feed["pcm"].astype(np.float32), axis=1)
    heard = (np.arange(1, CHUNK, 2) < feed["lengths"].astype(int)).sum(axis=1, keepdims=True)
    return {"total": totals[:, 1::2], "output_lengths": heard, "next_state_sum": totals[:, -1:]}


def recordings(lengths: list[int], time: int) -> Split:
    pcm = np.random.default_rng(0).integers(-9, 9, (len(lengths), time)).astype(np.int16)
    return Split({"pcm": pcm, "lengths": np.array(lengths, np.int32)[:, None]}, {}, np.arange(len(lengths)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 21), min_size=1, max_size=5), st.integers(0, 6))
def test_the_answer_is_that_of_the_whole_and_zero_beyond(lengths: list[int], padding: int) -> None:
    time = max(lengths) + padding
    split = recordings(lengths, time)
    answer = streaming.whole(running_sums, SPEC)(split.inputs)
    sums = np.cumsum(split.inputs["pcm"].astype(np.float32), axis=1)
    assert answer["total"].shape == (len(lengths), (time + 1) // 2)
    for row, length in enumerate(lengths):
        heard = length // 2
        assert answer["output_lengths"][row] == heard
        np.testing.assert_array_equal(answer["total"][row, :heard], sums[row, 1::2][:heard])
        assert not answer["total"][row, heard:].any()


def test_offline_answers_are_made_comparable() -> None:
    split = recordings([3, 8], 9)
    longer = {"total": np.ones((2, 7), np.float32), "output_lengths": np.array([[1], [4]])}
    found = streaming.meant(longer, SPEC, split.inputs)
    np.testing.assert_array_equal(found["total"], [[1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])


def test_padding_weighs_nothing_where_answers_are_compared() -> None:
    """Frames that nobody means would make every difference look small."""
    reference: Arrays = {"total": np.array([[3.0, 0, 0, 0]]), "output_lengths": np.array([[1]])}
    found, expected = streaming.compared({**reference, "total": np.array([[5.0, 0, 0, 0]])}, reference, SPEC)
    assert (found["total"].tolist(), expected["total"].tolist()) == ([5.0], [3.0])
    assert verify.rms(found, expected) == 2
    longer: Arrays = {**reference, "total": np.ones((1, 5))}
    with pytest.raises(UserError, match=r"'total' has shape \(1, 5\) where \(1, 4\) was expected"):
        verify.max_abs(*streaming.compared(longer, reference, SPEC))


def test_steps_are_taken_from_streams_of_every_age_with_their_states() -> None:
    split = recordings([40] * 10 + [0], 40)
    steps = streaming.steps(running_sums, SPEC, split, count=20)
    assert 8 < len(steps) <= 20
    sums = {0.0} | {
        float(total) for row in split.inputs["pcm"] for total in np.cumsum(row.astype(int))[CHUNK - 1 :: CHUNK]
    }
    states = {float(state[0]) for state in steps.inputs["state_sum"]}
    assert len(states) > 6
    assert states <= sums
    assert np.all(steps.inputs["lengths"].astype(int) > 0)


def test_without_states_recordings_are_requests_already() -> None:
    stateless = ModelSpec("sums", SPEC.inputs, SPEC.outputs)
    split = recordings([4], 4)
    assert streaming.steps(running_sums, stateless, split) is split
    answer: Arrays = {"total": np.ones((1, 3)), "output_lengths": np.array([[2]])}
    assert streaming.whole(lambda _: answer, stateless)(split.inputs)["total"].tolist() == [[1, 1, 0]]
    without = ModelSpec("sums", SPEC.inputs, SPEC.outputs[:1])
    assert streaming.whole(lambda _: {"total": answer["total"]}, without)(split.inputs)["total"].tolist() == [[1, 1, 1]]


def test_recordings_must_fill_chunks_where_nothing_says_how_long_they_are() -> None:
    pcm = recordings([6], 6).inputs["pcm"]
    with pytest.raises(UserError, match="recordings of 6 are no whole number of chunks of 4"):
        list(streaming.chunks({"pcm": pcm}, WITHOUT_LENGTHS))
    assert [feed["pcm"].shape for feed in streaming.chunks({"pcm": pcm[:, :4]}, WITHOUT_LENGTHS)] == [(1, 4)]


def test_a_step_takes_and_gives_plain_tensors() -> None:
    class Sums(nn.Module):
        def initial_state(self, batch: int) -> tuple[Tensor]:
            return State(torch.zeros(batch, 1))

        def forward_chunk(self, pcm: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
            total = state[0] + pcm.sum(dim=1, keepdim=True)
            return total, State(total)

    class State(tuple[Tensor]):
        def __new__(cls, total: Tensor) -> State:
            return super().__new__(cls, (total,))

    step = streaming.served(Sums(), WITHOUT_LENGTHS)
    total, after = step(torch.ones(2, 4), torch.full((2, 1), 3.0))
    assert total.tolist() == after.tolist() == [[7.0], [7.0]]
    stateless = ModelSpec("sums", SPEC.inputs, SPEC.outputs)
    assert isinstance(streaming.served(Sums(), stateless), Sums)
