"""The search against servers of known capacity: exact, kind in short trials, noisy, and generators that give out."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from loadtest.search import Bound, Finding, Found, largest

capacities = st.integers(0, 3000)
ceilings = st.integers(1, 3000)
firsts = st.integers(1, 100)


class Server:
    """Sustains up to ``capacity``, in short trials up to ``kind``; the generator makes at most ``generator``."""

    def __init__(self, capacity: int, kind: int | None = None, generator: float = math.inf) -> None:
        self.capacity, self.kind, self.generator = capacity, capacity if kind is None else kind, generator
        self.tried: list[int] = []
        self.confirmed: list[int] = []

    def trial(self, level: int) -> Finding:
        self.tried.append(level)
        return self._finding(level, self.kind)

    def confirm(self, level: int) -> Finding:
        self.confirmed.append(level)
        return self._finding(level, self.capacity)

    def _finding(self, level: int, capacity: int) -> Finding:
        if level > self.generator:
            return Finding.GENERATOR
        return Finding.SUSTAINED if level <= capacity else Finding.NOT_SUSTAINED


@given(capacities, ceilings, firsts)
def test_the_true_capacity_is_found(capacity: int, ceiling: int, first: int) -> None:
    server = Server(capacity)
    found = largest(server.trial, server.confirm, ceiling=ceiling, first=first)
    assert found == Found(min(capacity, ceiling), Bound.CEILING if capacity >= ceiling else Bound.SERVER)
    assert max(server.tried) <= ceiling
    assert len(server.tried) <= 4 * math.log2(ceiling + 1) + 10
    assert server.confirmed == [found.level] * (found.level > 0)


@given(capacities, ceilings, st.floats(0.01, 0.3))
def test_with_a_precision_it_is_near_and_never_above(capacity: int, ceiling: int, precision: float) -> None:
    server = Server(capacity)
    level = largest(server.trial, server.confirm, ceiling=ceiling, precision=precision).level
    true = min(capacity, ceiling)
    assert true - max(1, precision * true) <= level <= true


@given(capacities, st.integers(0, 500))
def test_what_short_trials_found_too_kindly_is_stepped_down(capacity: int, kindness: int) -> None:
    server = Server(capacity, kind=capacity + kindness)
    found = largest(server.trial, server.confirm, ceiling=5000)
    assert found.bound is Bound.SERVER
    assert capacity * 0.95 - 1 <= found.level <= capacity
    assert server.confirmed == sorted(server.confirmed, reverse=True)
    if found.level:
        assert server.confirmed[-1] == found.level


@given(capacities, st.integers(0, 3000))
def test_a_generator_that_gives_out_first_makes_no_claim_about_the_server(capacity: int, generator: int) -> None:
    server = Server(capacity, generator=generator)
    found = largest(server.trial, server.confirm, ceiling=3000)
    assert found.level == min(capacity, generator)
    if generator < capacity:
        assert found.bound is Bound.GENERATOR
    elif capacity < generator:
        assert found.bound in (Bound.SERVER, Bound.CEILING)


@given(st.integers(1, 3000), st.integers(0, 10**6))
def test_a_disturbed_trial_is_repeated(capacity: int, seed: int) -> None:
    """Each level fails at random, but never twice in a row: the answer is the true one all the same."""
    server, random, disturbed = Server(capacity), Random(seed), set[int]()

    def trial(level: int) -> Finding:
        if level not in disturbed and random.random() < 0.5:
            disturbed.add(level)
            return random.choice([Finding.NOT_SUSTAINED, Finding.GENERATOR])
        disturbed.discard(level)
        return server.trial(level)

    assert largest(trial, server.confirm, ceiling=3000).level == capacity


@given(st.integers(1, 3000), st.integers(0, 10**6), st.floats(0, 0.5))
def test_noise_never_leads_above_the_capacity(capacity: int, seed: int, noise: float) -> None:
    server, random = Server(capacity), Random(seed)

    def disturbed(level: int) -> Finding:
        return Finding.NOT_SUSTAINED if random.random() < noise else server.trial(level)

    level = largest(disturbed, disturbed, ceiling=3000).level
    assert level <= capacity
    assert level == 0 or level in server.tried


def test_a_level_disturbed_twice_in_doubling_does_not_end_the_search() -> None:
    """64 fails while it is doubled, and all below it hold: it is tried once more, and the doubling goes on."""
    server, failures = Server(1000), [64, 64]

    def trial(level: int) -> Finding:
        if level in failures:
            failures.remove(level)
            return Finding.GENERATOR
        return server.trial(level)

    assert largest(trial, server.confirm, ceiling=3000) == Found(1000, Bound.SERVER)


def test_a_disturbed_generator_gets_a_second_confirmation() -> None:
    server, answers = Server(10), [Finding.GENERATOR, Finding.SUSTAINED]
    assert largest(server.trial, lambda level: answers.pop(0), ceiling=99) == Found(10, Bound.SERVER)
    assert answers == []
