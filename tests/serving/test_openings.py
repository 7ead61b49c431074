"""The cache of openings by itself: what is learnt, what is told apart, what must go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from openings import Openings, Step

CHUNK = np.arange(8, dtype=np.int16)[None]
SILENCE = np.zeros((1, 8), np.int16)


def length(samples: int) -> npt.NDArray[np.int32]:
    return np.array([[samples]], np.int32)


def bring(openings: Openings, slot: int, chunks: Sequence[npt.NDArray[np.int16]], first: bool = True) -> list[bool]:
    """One stream's chunks in order; whether each was known. An answer is the sum of all samples up to there."""
    known, total = [], 0
    for place, chunk in enumerate(chunks):
        step = openings.step(slot, first and place == 0, [chunk, length(8)])
        total += int(chunk.sum())
        known.append(step is not None and step.known is not None)
        if step is not None and step.known is not None:
            assert step.known.outputs[0].item() == step.known.states[0].item() == total
            openings.follow(slot, step)
        elif step is not None:
            openings.keep(slot, step, [np.array([[-1], [total]])], [np.array([[-1], [total]])], row=1)
    return known


def test_an_opening_is_learnt_chunk_by_chunk() -> None:
    openings = Openings(1 << 20)
    assert [sum(bring(openings, slot, [SILENCE] * 4)) for slot in range(7)] == [0, 0, 1, 2, 3, 4, 4]


def test_streams_that_begin_at_once_teach_each_other() -> None:
    openings = Openings(1 << 20)
    steps = [openings.step(slot, True, [SILENCE]) for slot in range(3)]
    for slot, step in enumerate(steps):
        assert step is not None
        openings.keep(slot, step, [np.zeros((3, 1))], [np.zeros((3, 1))], slot)
    assert len(openings) == 1
    assert [openings.step(slot, False, [SILENCE]) is not None for slot in range(3)] == [False, True, True]


def test_a_stream_like_no_other_costs_one_hash() -> None:
    openings = Openings(1 << 20)
    values = np.random.default_rng(0)
    for slot in range(50):
        bring(openings, slot, [values.integers(-99, 99, (1, 8), np.int16) for _ in range(20)])
    assert (openings.hits, openings.misses, openings.bytes, len(openings)) == (0, 50, 0, 0)


def test_who_left_the_paths_does_not_come_back_before_start() -> None:
    openings = Openings(1 << 20)
    for slot in range(3):
        bring(openings, slot, [SILENCE] * 2)
    assert bring(openings, 9, [SILENCE, CHUNK, SILENCE]) == [True, False, False]
    assert bring(openings, 9, [SILENCE], first=False) == [False]
    assert bring(openings, 9, [SILENCE]) == [True]


@pytest.mark.parametrize(
    "other",
    [
        [SILENCE, length(7)],
        [np.zeros((1, 9), np.int16), length(8)],
        [np.zeros((1, 4), np.int16), length(8)],
        [np.zeros((1, 10), np.int16)],  # the same 20 bytes, but for the length's 8
        [length(8), SILENCE],
    ],
)
def test_whatever_differs_is_another_key(other: list[npt.NDArray[np.generic]]) -> None:
    openings = Openings(1 << 20)
    (one, two) = openings.step(0, True, [SILENCE, length(8)]), openings.step(0, True, other)
    assert one is not None
    assert two is not None
    assert one.key != two.key


def test_the_same_bytes_cut_otherwise_are_another_key() -> None:
    openings = Openings(1 << 20)
    keys = set()
    for cut in (2, 4, 6):
        step = openings.step(0, True, [CHUNK[:, :cut], CHUNK[:, cut:]])
        assert step is not None
        keys.add(step.key)
    keys.update(step.key for shape in ((1, 8), (2, 4)) if (step := openings.step(0, True, [CHUNK.reshape(shape)])))
    assert len(keys) == 5


def test_the_same_chunk_after_another_past_is_another_key() -> None:
    openings = Openings(1 << 20)
    for slot in range(3):
        bring(openings, slot, [CHUNK, SILENCE])
        bring(openings, slot, [SILENCE, SILENCE])
    assert bring(openings, 9, [CHUNK, SILENCE]) == [True, True]
    assert bring(openings, 9, [SILENCE, SILENCE]) == [True, True]
    assert openings.hits >= 4  # and `bring` compared the sums


def test_the_longest_unused_go_first() -> None:
    openings = Openings(3 * (512 + 16))
    beginnings = [np.full((1, 8), value, np.int16) for value in range(4)]
    for chunk in beginnings[:3]:
        for slot in range(2):
            bring(openings, slot, [chunk])
    assert bring(openings, 9, beginnings[:1]) == [True]
    for slot in range(2):
        bring(openings, slot, beginnings[3:])
    assert (len(openings), openings.bytes) == (3, openings.limit_bytes)
    assert [bring(openings, 9, [beginnings[value]]) for value in (0, 2, 3)] == [[True]] * 3
    assert bring(openings, 9, [beginnings[1]]) == [False]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    openings = Openings(100)
    for slot in range(3):
        assert bring(openings, slot, [SILENCE] * 2) == [False, False]
    assert (len(openings), openings.bytes) == (0, 0)


def test_a_path_has_an_end() -> None:
    openings = Openings(1 << 20, depth=3)
    for slot in range(9):
        bring(openings, slot, [SILENCE] * 6)
    assert bring(openings, 9, [SILENCE] * 6) == [True] * 3 + [False] * 3
    assert len(openings) == 3


def test_a_step_that_is_not_taken_moves_nobody() -> None:
    """As of a request that fails: sent again, it stands where it stood."""
    openings = Openings(1 << 20)
    for slot in range(4):
        bring(openings, slot, [SILENCE, CHUNK])
    bring(openings, 9, [SILENCE])
    for _ in range(3):
        assert isinstance(openings.step(9, False, [SILENCE, length(3)]), Step)
    assert bring(openings, 9, [SILENCE]) == [True]
    bring(openings, 8, [SILENCE])
    openings.step(8, False, [SILENCE, length(3)])
    step = openings.step(8, False, [CHUNK, length(8)])
    assert step is not None
    assert step.known is not None


def test_what_is_kept_is_a_copy() -> None:
    openings = Openings(1 << 20)
    array = np.ones((2, 3), np.float32)
    for slot in range(2):
        step = openings.step(slot, True, [SILENCE])
        assert step is not None
        openings.keep(slot, step, [array], [array], 0)
    array[:] = 9
    step = openings.step(2, True, [SILENCE])
    assert step is not None
    assert step.known is not None
    np.testing.assert_array_equal(step.known.outputs[0], np.ones((1, 3)))
    assert step.known.outputs[0].base is None
