"""The rows that hold streams' states: who gets which, who must go, and that nobody reads another's."""

from __future__ import annotations

import random

import numpy as np
import pytest
from onnx_contract import Tensor
from streams import Streams, TooManyStreams, UnknownStream

STATES = [Tensor("state_sum", np.dtype(np.int64), (1,)), Tensor("state_level", np.dtype(np.float32), (2, 3))]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def streams_of(limit: int, clock: Clock) -> Streams:
    return Streams(STATES, limit, idle_s=10.0, batch=4, clock=clock)


def test_states_are_kept_by_stream(clock: Clock) -> None:
    streams = streams_of(8, clock)
    slots = [streams.enter(name, start=True) for name in (7, "7", "call")]
    assert len(set(slots)) == 3
    sums = np.array([[1], [2], [3]])
    streams.scatter(slots, [sums, np.repeat(sums, 6).reshape(3, 2, 3).astype(np.float32)])
    again = [streams.enter(name, start=False) for name in ("call", 7)]
    found = streams.gather(again, fresh=[])
    np.testing.assert_array_equal(found[0], [[3], [1]])
    np.testing.assert_array_equal(found[1][:, 1, 2], [3, 1])


def test_who_begins_gets_zeros_and_the_old_state_stays_until_the_run_succeeded(clock: Clock) -> None:
    streams = streams_of(8, clock)
    slot = streams.enter(1, start=True)
    streams.scatter([slot], [np.array([[5]]), np.full((1, 2, 3), 5, np.float32)])
    assert streams.enter(1, start=True) == slot
    assert [state.any() for state in streams.gather([slot], fresh=[0])] == [False, False]
    assert [state.all() for state in streams.gather([slot], fresh=[])] == [True, True]


@pytest.mark.parametrize("start_of_another", [False, True])
def test_who_left_is_unknown(clock: Clock, start_of_another: bool) -> None:
    streams = streams_of(1, clock)
    streams.enter(1, start=True)
    streams.leave(1)
    if start_of_another:
        streams.enter(2, start=True)
    with pytest.raises(
        UnknownStream, match=r"1 was never started, has ended, or was idle for more than 10 s; begin it with START"
    ):
        streams.enter(1, start=False)
    streams.leave(1)  # nothing happens


def test_silence_beyond_twice_the_idle_limit_ends_a_stream(clock: Clock) -> None:
    streams = streams_of(8, clock)
    for name in ("silent", "speaking"):
        streams.enter(name, start=True)
    clock.now += 20.5
    streams.expire()
    streams.enter("speaking", start=False)
    clock.now += 1.0
    streams.expire()
    assert len(streams) == 1
    streams.enter("speaking", start=False)
    with pytest.raises(UnknownStream, match="'silent'"):
        streams.enter("silent", start=False)


def test_a_full_house_refuses_until_somebody_was_silent_for_the_idle_limit(clock: Clock) -> None:
    streams = streams_of(3, clock)
    for name in "abc":
        streams.enter(name, start=True)
        clock.now += 1
    with pytest.raises(TooManyStreams, match="3 are open and none was idle for more than 10 s"):
        streams.enter("d", start=True)
    streams.enter("a", start=False)
    clock.now += 9.5  # b is silent for 11.5 s, c for 10.5 s, a for 9.5 s
    streams.enter("d", start=True)
    streams.enter("a", start=False)
    with pytest.raises(UnknownStream):
        streams.enter("b", start=False)


def test_the_arrays_grow_by_doubling_and_stay_bounded(clock: Clock) -> None:
    streams = streams_of(100, clock)
    seen = {streams.slots}
    for name in range(10_000):
        clock.now += 0.2
        slot = streams.enter(name, start=True)
        streams.scatter([slot], [np.array([[name]]), np.full((1, 2, 3), name, np.float32)])
        seen.add(streams.slots)
        if name >= 20:
            earlier = streams.enter(name - 20, start=False)
            assert streams.gather([earlier], fresh=[])[0].item() == name - 20
    assert seen == {16, 32, 64, 100}
    assert [len(array) for array in streams._arrays] == [100, 100]


def test_the_clock_is_asked_about_the_longest_silent_only(clock: Clock) -> None:
    """A stream that speaks goes to the end of the queue, so expiry looks at one stream where nobody is due."""
    streams = streams_of(8, clock)
    for name in "abc":
        streams.enter(name, start=True)
    streams.enter("a", start=False)
    assert list(streams._streams) == ["b", "c", "a"]


def test_random_streams_never_meet(clock: Clock) -> None:
    """Against a plain dict: starts, continuations, ends and pauses in any order."""
    draw = random.Random(3)
    streams, model = streams_of(24, clock), dict[int, int]()
    for step in range(5_000):
        clock.now += draw.random() * 0.1
        name = draw.randrange(20)
        if draw.random() < 0.2:
            streams.leave(name)
            model.pop(name, None)
            continue
        start = draw.random() < 0.3
        if not start and name not in model:
            with pytest.raises(UnknownStream):
                streams.enter(name, start)
            continue
        slot = streams.enter(name, start)
        (found, _) = streams.gather([slot], fresh=[0] if start else [])
        assert found.item() == (0 if start else model[name])
        if draw.random() < 0.9:  # else the run failed
            streams.scatter([slot], [np.array([[step]]), np.zeros((1, 2, 3), np.float32)])
            model[name] = step
        elif start:
            streams.leave(name)
            model.pop(name, None)
    assert len(streams) == len(model)


def test_a_run_may_be_larger_than_announced(clock: Clock) -> None:
    streams = streams_of(8, clock)
    slots = [streams.enter(name, start=True) for name in range(6)]
    assert [len(state) for state in streams.gather(slots, fresh=range(6))] == [6, 6]


def test_states_of_a_wrong_shape_are_not_kept(clock: Clock) -> None:
    streams = streams_of(8, clock)
    slot = streams.enter(1, start=True)
    with pytest.raises(RuntimeError, match=r"state of shape \[1, 2\] for \[1, 2, 3\]"):
        streams.scatter([slot], [np.array([[5]]), np.ones((1, 2), np.float32)])
    assert not streams.gather([slot], fresh=[])[0].any()


def test_without_a_batch_axis_a_state_is_one_row(clock: Clock) -> None:
    streams = Streams(STATES, 2, idle_s=10.0, batch=0, clock=clock)
    slots = [streams.enter(name, start=True) for name in "ab"]
    for slot in slots:
        assert [state.shape for state in streams.gather([slot], fresh=[0])] == [(1,), (2, 3)]
        streams.scatter([slot], [np.array([slot]), np.full((2, 3), slot, np.float32)])
    assert [streams.gather([slot], fresh=[])[0].item() for slot in slots] == slots
