"""Requests to a model without state, at a set rate and open loop: they start when they are due, not when one ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from clients.aio import AsyncClient
from clients.errors import ClientError
from loadtest.load import Seat, clock_s
from loadtest.pacing import ARRIVALS, Dropped, Outcome
from loadtest.workloads import requests_for

MAX_IN_FLIGHT = 1000  # of a process; beyond it arrivals are dropped, and count as failed


@dataclass(frozen=True)
class RequestLoad:
    """Requests to ``model``. arrivals: 'poisson' or 'even'. inputs: a file of them, see ``workloads.requests_for``."""

    model: str
    arrivals: str
    deadline_s: float
    inputs: Path | None = None

    async def open(self, client: AsyncClient, level: int, seat: Seat) -> RequestRun:
        requests = requests_for(await client.signature(self.model), seat.seat, self.inputs)
        await client.infer(self.model, next(requests), deadline_s=self.deadline_s)

        async def send() -> None:
            await client.infer(self.model, next(requests), deadline_s=self.deadline_s)

        return RequestRun(send, lambda start_s: ARRIVALS[self.arrivals](level, start_s, seat.seat, seat.seats))


class RequestRun:
    """One process's requests. due_times: from a start, without end. The clock and sleep are asyncio's but in tests."""

    def __init__(
        self,
        send: Callable[[], Awaitable[None]],
        due_times: Callable[[float], Iterator[float]],
        max_in_flight: int = MAX_IN_FLIGHT,
        clock: Callable[[], float] = clock_s,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._send = send
        self._due_times = due_times
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._sleep = sleep

    async def run(self, start_s: float, end_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        under_way: set[asyncio.Task[None]] = set()

        async def request(due_s: float) -> None:
            started_s, error = self._clock(), None
            try:
                await self._send()
            except ClientError as failure:
                error = failure
            outcomes.append(Outcome(due_s, started_s, self._clock(), error))

        for due_s in takewhile(lambda due_s: due_s < end_s, self._due_times(start_s)):
            await self._sleep(max(due_s - self._clock(), 0.0))
            if len(under_way) >= self._max_in_flight:
                now_s = self._clock()
                outcomes.append(Outcome(due_s, now_s, now_s, Dropped(f"{self._max_in_flight} requests were under way")))
                continue
            task = asyncio.create_task(request(due_s))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        return outcomes

    async def close(self) -> int:
        return 0
