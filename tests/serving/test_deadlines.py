"""Which requests of a stream come too late to be run."""

from __future__ import annotations

import json

import pytest
from deadlines import Deadlines, TooLate
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.fake_pb_utils import InferenceRequest

Delays = list[tuple[int, int]]  # microseconds on the way, microseconds allowed


def request(sent_us: int, timeout_us: int) -> InferenceRequest:
    return InferenceRequest({}, timeout_us=timeout_us, parameters_json=json.dumps({"sent_us": sent_us}))


def verdicts(delays: Delays, clocks_differ_us: int, slot: int = 0) -> list[bool]:
    """Whether each request of a stream is dropped; they are sent a second apart."""
    deadlines, dropped = Deadlines(), []
    for place, (delay_us, timeout_us) in enumerate(delays):
        sent_us = place * 1_000_000
        try:
            deadlines.check(
                slot, place == 0, False, request(sent_us, timeout_us), sent_us + delay_us + clocks_differ_us
            )
        except TooLate:
            dropped.append(True)
        else:
            dropped.append(False)
    return dropped


def test_what_waited_longer_than_it_may_is_dropped() -> None:
    assert verdicts([(500, 1000), (1400, 1000), (1600, 1000), (500, 1), (501, 1), (502, 1)], 0) == [
        *(False, False, True, False, False, True)
    ]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1, max_size=20),
    st.integers(-(10**12), 10**12),
)
def test_clocks_do_not_matter_and_nobody_is_dropped_early(delays: Delays, clocks_differ_us: int) -> None:
    found = verdicts(delays, clocks_differ_us)
    assert found == verdicts(delays, 0)
    for dropped, (delay_us, timeout_us) in zip(found, delays, strict=True):
        assert not dropped or delay_us > timeout_us
    assert not found[0]


def test_a_stream_s_slot_says_nothing_of_the_next_stream() -> None:
    deadlines = Deadlines()
    deadlines.check(0, True, False, request(0, 1000), 0)
    deadlines.check(0, True, False, request(0, 1000), 10**9)  # a client with another clock
    deadlines.check(0, False, False, request(0, 1000), 10**9 + 900)
    with pytest.raises(TooLate, match=r"the deadline of 0.001 s has passed: the request waited 0.0011 s and"):
        deadlines.check(0, False, False, request(0, 1000), 10**9 + 1100)
    deadlines.check(0, True, False, InferenceRequest({}), 0)
    deadlines.check(0, False, False, request(0, 1000), 10**12)


def test_the_last_words_are_heard_however_late() -> None:
    deadlines = Deadlines()
    deadlines.check(0, True, False, request(0, 1000), 0)
    deadlines.check(0, False, True, request(0, 1000), 10**9)


@pytest.mark.parametrize("parameters", ["", "{}", '{"sent_us": "yesterday"}', '{"other": 1}'])
def test_without_a_time_of_sending_there_is_no_deadline(parameters: str) -> None:
    deadlines = Deadlines()
    for starts, now_us in ((True, 0), (False, 10**12)):
        late = InferenceRequest({}, timeout_us=1000, parameters_json=parameters)
        deadlines.check(0, starts, False, late, now_us)
