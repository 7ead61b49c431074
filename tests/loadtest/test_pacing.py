"""Open-loop pacing on simulated time: no clock is read, no second is waited."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from itertools import count, islice

import pytest
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.pacing import STOP_S, Dropped, OpenLoop, Outcome, even, percentile, poisson, skip_past

STEP_S = 20e-6  # a yield takes a moment, or spinning would never end


class Simulation:
    """Greenlets on a clock that jumps from event to event."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._agenda: list[tuple[float, int, greenlet]] = []
        self._order = count()
        self._hub = getcurrent()

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        heapq.heappush(self._agenda, (self.now_s + max(duration_s, STEP_S), next(self._order), getcurrent()))
        self._hub.switch()

    def spawn(self, function: Callable[[], object]) -> None:
        heapq.heappush(self._agenda, (self.now_s, next(self._order), greenlet(function, self._hub)))

    def run(self, until_s: float = math.inf) -> None:
        while self._agenda and self._agenda[0][0] <= until_s:
            at_s, _, waiting = heapq.heappop(self._agenda)
            self.now_s = max(self.now_s, at_s)
            waiting.switch()
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)


class Server:
    """Answers after a while, at most ``workers`` requests at a time; the others queue."""

    def __init__(self, simulation: Simulation, service_s: float, workers: int = 10**6) -> None:
        self._simulation = simulation
        self._service_s = service_s
        self._free_at_s = [0.0] * min(workers, 1000)
        self.under_way = 0
        self.most_under_way = 0

    def __call__(self) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        start_s = max(heapq.heappop(self._free_at_s), self._simulation.now_s)
        heapq.heappush(self._free_at_s, start_s + self._service_s)
        self._simulation.sleep(start_s + self._service_s - self._simulation.now_s)
        self.under_way -= 1


def open_loop(
    simulation: Simulation,
    due_times: Iterator[float],
    send: Callable[[], None],
    outcomes: list[Outcome],
    max_in_flight: int = 100,
) -> OpenLoop:
    """On its way in the simulation, reporting to ``outcomes``."""
    loop = OpenLoop(
        due_times,
        send,
        outcomes.append,
        max_in_flight=max_in_flight,
        clock=simulation.clock,
        sleep=simulation.sleep,
        spawn=simulation.spawn,
    )
    simulation.spawn(loop.run)
    return loop


def simulate(
    rate_per_s: float, arrivals: int, service_s: float, workers: int = 10**6, max_in_flight: int = 10**6
) -> tuple[list[Outcome], Server]:
    simulation = Simulation()
    server = Server(simulation, service_s, workers)
    outcomes: list[Outcome] = []
    open_loop(simulation, islice(even(rate_per_s, start_s=1.0), arrivals), server, outcomes, max_in_flight)
    simulation.run()
    return outcomes, server


rates = st.floats(1, 2000)
services = st.floats(1e-5, 2)
counts = st.integers(1, 60)


@settings(deadline=None)
@given(rates, counts, services, st.integers(1, 20), st.integers(1, 20))
def test_every_arrival_is_reported_once_and_the_cap_holds(
    rate: float, arrivals: int, service_s: float, workers: int, cap: int
) -> None:
    outcomes, server = simulate(rate, arrivals, service_s, workers, cap)
    assert sorted(outcome.due_s for outcome in outcomes) == list(islice(even(rate, 1.0), arrivals))
    assert server.most_under_way <= cap
    assert server.under_way == 0
    for outcome in outcomes:
        assert outcome.due_s <= outcome.started_s <= outcome.finished_s


@settings(deadline=None)
@given(rates, counts, services)
def test_arrivals_do_not_wait_for_answers(rate: float, arrivals: int, service_s: float) -> None:
    outcomes, server = simulate(rate, arrivals, service_s)
    for outcome in outcomes:
        assert outcome.late_ms < 1
        assert outcome.latency_ms == pytest.approx(service_s * 1e3, abs=1)
    assert server.most_under_way >= min(arrivals, math.floor(service_s * rate * 0.99))


def test_an_overloaded_server_shows_in_the_latency() -> None:
    """100 arrivals a second, 50 answers a second: the last of 200 waits for two seconds, which a closed loop hides."""
    outcomes, _ = simulate(rate_per_s=100, arrivals=200, service_s=0.02, workers=1)
    assert outcomes[0].latency_ms == pytest.approx(20, abs=1)
    assert outcomes[-1].latency_ms == pytest.approx(2000, rel=0.02)
    assert max(outcome.late_ms for outcome in outcomes) < 1


def test_beyond_the_cap_arrivals_are_dropped_and_reported() -> None:
    outcomes, server = simulate(rate_per_s=100, arrivals=200, service_s=0.02, workers=1, max_in_flight=5)
    dropped = [outcome for outcome in outcomes if isinstance(outcome.error, Dropped)]
    assert 90 <= len(dropped) <= 110  # the half that the server cannot serve
    assert server.most_under_way == 5
    assert "--max-in-flight" in str(dropped[0].error)
    assert max(outcome.latency_ms for outcome in outcomes) < 130


def test_a_late_generator_counts_as_latency() -> None:
    """Something blocks the generator for a second: the arrivals of that second start late, and say so."""
    simulation = Simulation()
    outcomes: list[Outcome] = []
    open_loop(simulation, islice(even(10, 0.0), 20), lambda: None, outcomes)
    simulation.run(until_s=0.45)
    simulation.now_s += 1.0
    simulation.run()
    late = [outcome.late_ms for outcome in outcomes]
    assert len(late) == 20
    assert late[5] == pytest.approx(950, abs=10)
    assert late[14] == pytest.approx(50, abs=10)
    assert max(late[15:]) < 1
    assert all(outcome.latency_ms == pytest.approx(outcome.late_ms, abs=1) for outcome in outcomes)


def test_failures_are_outcomes() -> None:
    simulation = Simulation()
    outcomes: list[Outcome] = []
    broken = ConnectionError("gone")

    def fail() -> None:
        raise broken

    loop = open_loop(simulation, islice(even(10, 0.0), 3), fail, outcomes, 1)
    simulation.run()
    assert [outcome.error for outcome in outcomes] == [broken] * 3
    assert loop.in_flight == 0


def test_what_was_due_and_never_started_is_reported_after_a_stop() -> None:
    simulation = Simulation()
    outcomes: list[Outcome] = []
    loop = open_loop(simulation, even(10, 0.0), lambda: None, outcomes, 1)
    simulation.run(until_s=0.95)
    assert len(outcomes) == 10
    loop.abandon()
    assert len(outcomes) == 10  # a loop that kept up has nothing to report
    simulation.now_s = 2.05 + STOP_S
    loop.abandon()
    assert [outcome.due_s for outcome in outcomes[10:]] == pytest.approx([turn / 10 for turn in range(10, 21)])
    assert all(isinstance(outcome.error, Dropped) for outcome in outcomes[10:])


@settings(deadline=None)
@given(rates, st.integers(1, 7), st.floats(0, 1e9))
def test_users_take_turns(rate: float, seats: int, start_s: float) -> None:
    alone = list(islice(even(rate, start_s), 4 * seats))
    together = sorted(due_s for seat in range(seats) for due_s in islice(even(rate, start_s, seat, seats), 4))
    assert together == alone


@settings(deadline=None)
@given(rates, st.integers(0, 5))
def test_poisson_arrivals_are_seeded_and_keep_the_rate(rate: float, seat: int) -> None:
    due_times = list(islice(poisson(rate, 0.0, seat, 6), 2000))
    assert due_times == list(islice(poisson(rate, 0.0, seat, 6), 2000))
    assert due_times == sorted(due_times)
    assert due_times[-1] == pytest.approx(2000 * 6 / rate, rel=0.15)  # six standard deviations


def test_what_was_due_before_a_user_began_is_not_its_own() -> None:
    assert list(islice(skip_past(even(10, 0.0), 0.55), 2)) == pytest.approx([0.6, 0.7])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile(values: list[float], percent: float) -> None:
    values.sort()
    value = percentile(values, percent)
    assert value in values
    assert sum(other <= value for other in values) >= percent / 100 * len(values) * (1 - 1e-12)
    assert sum(other < value for other in values) <= max(percent / 100 * len(values), 0)


def test_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 50))
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0
