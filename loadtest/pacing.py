"""Open-loop arrivals: requests are due at absolute times, and start then whether or not earlier ones are answered.

A closed loop (send, wait for the answer, send again) slows down with the server and so never shows what its users
feel: the requests that would have waited are not sent. Here a slow server meets the same arrivals as a fast one, and
a request's latency counts from when it was *due*, so that waiting for its turn anywhere, in the generator too, is
part of it. This is the remedy for "coordinated omission" (Gil Tene, How NOT to Measure Latency).

Every request is an ``Outcome`` with three times: due, started, finished. Started minus due is the generator's own
delay; where it is not small against the latency, the generator and not the server is the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random

SPIN_S = 0.001  # timers wake up to a millisecond late: the last one before a due time is spent yielding instead
STOP_S = 0.25  # a stop takes a moment to arrive; what falls due in it was no longer wanted


class Dropped(Exception):
    """An arrival that was not sent, whether server or generator held it up. It counts as failed."""


class Missed(Exception):
    """A chunk of a real-time stream that was not answered when the next one was due. It counts as failed."""


@dataclass(frozen=True)
class Outcome:
    """One request, times in seconds of one clock. error: what went wrong, if anything.

    held_s: until when it could not be sent though it was due, because the stream's last chunk was unanswered.
    """

    due_s: float
    started_s: float
    finished_s: float
    error: Exception | None = None
    held_s: float = -math.inf

    @property
    def latency_ms(self) -> float:
        """What a user feels: from when the request was due."""
        return (self.finished_s - self.due_s) * 1e3

    @property
    def service_ms(self) -> float:
        """From when it was really sent."""
        return (self.finished_s - self.started_s) * 1e3

    @property
    def late_ms(self) -> float:
        """How late the generator was."""
        return (self.started_s - max(self.due_s, self.held_s)) * 1e3


def even(rate_per_s: float, start_s: float, seat: int = 0, seats: int = 1) -> Iterator[float]:
    """Due times of one of several users who share a rate: they take turns, so the whole is even too."""
    for turn in count():
        yield start_s + (turn * seats + seat) / rate_per_s


def poisson(rate_per_s: float, start_s: float, seat: int = 0, seats: int = 1) -> Iterator[float]:
    """Due times of independent arrivals: bursts and pauses, as from many separate callers. Seeded by the seat."""
    random, due_s = Random(seat), start_s
    while True:
        due_s += random.expovariate(rate_per_s / seats)
        yield due_s


ARRIVALS = {"even": even, "poisson": poisson}


def skip_past(due_times: Iterator[float], now_s: float) -> Iterator[float]:
    """Leave out what was due before a user began: it is not late, it was never its to send."""
    return (due_s for due_s in due_times if due_s >= now_s)


class OpenLoop:
    """Starts ``send`` at every due time, at most ``max_in_flight`` at once, and reports an Outcome for each.

    spawn: starts a function on its own and returns (a greenlet). The clock, sleep and spawn are given, so that tests
    run it on simulated time.
    """

    def __init__(
        self,
        due_times: Iterator[float],
        send: Callable[[], None],
        report: Callable[[Outcome], None],
        *,
        max_in_flight: int,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        spawn: Callable[[Callable[[], None]], object],
    ) -> None:
        self.in_flight = 0
        self._due_times = due_times
        self._due_s = next(due_times, math.inf)  # of the next arrival
        self._send = send
        self._report = report
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._sleep = sleep
        self._spawn = spawn

    def run(self) -> None:
        """Go on until the due times end (those of a load test do not: it is stopped from outside)."""
        while self._due_s < math.inf:
            self._wait_until(self._due_s)
            due_s, self._due_s = self._due_s, next(self._due_times, math.inf)
            if self.in_flight >= self._max_in_flight:
                self._drop(due_s, f"{self._max_in_flight} requests were under way already (--max-in-flight)")
            else:
                self.in_flight += 1
                self._spawn(partial(self._request, due_s))

    def abandon(self) -> None:
        """After a stop: what was due before and never started is reported too, or a slow generator would hide it."""
        while self._due_s < self._clock() - STOP_S:
            due_s, self._due_s = self._due_s, next(self._due_times, math.inf)
            self._drop(due_s, "the generator was too slow to send it; use more processes (--processes) or a lower rate")

    def _drop(self, due_s: float, why: str) -> None:
        now_s = self._clock()
        self._report(Outcome(due_s, now_s, now_s, Dropped(why)))

    def _wait_until(self, due_s: float) -> None:
        # Always yield once, even when behind: what was spawned must start, and what was received must be read.
        self._sleep(max(due_s - SPIN_S - self._clock(), 0.0))
        while self._clock() < due_s:
            self._sleep(0.0)

    def _request(self, due_s: float) -> None:
        started_s, error = self._clock(), None
        try:
            self._send()
        except Exception as failure:  # any failure is a result of the load test
            error = failure
        finally:
            self.in_flight -= 1
        self._report(Outcome(due_s, started_s, self._clock(), error))


def percentile(sorted_values: list[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed (nearest rank); NaN of none."""
    if not sorted_values:
        return math.nan
    return sorted_values[max(math.ceil(len(sorted_values) * percent / 100), 1) - 1]
