"""What a load is to the processes that make it: something that opens, runs from one moment to another, and closes.

Every process has a seat among all of them and makes its share: of N streams those numbered seat, seat + seats, ... .
A load is pickled to the processes; what it opens there stays there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from clients.aio import AsyncClient
from loadtest.pacing import Outcome

clock_s = time.perf_counter  # on Linux the same clock for all processes of a machine


@dataclass(frozen=True)
class Seat:
    """One process among those that share a load."""

    seat: int
    seats: int

    def share(self, total: int) -> range:
        """Which of ``total`` streams are this one's."""
        return range(self.seat, total, self.seats)


@dataclass(frozen=True)
class Part:
    """What one process saw. cpu_s: its own use of the processor, during wall_s."""

    outcomes: list[Outcome]
    cpu_s: float
    wall_s: float


class Run(Protocol):
    """A process's share of a load, opened."""

    async def run(self, start_s: float, end_s: float) -> list[Outcome]:
        """Every request due from ``start_s`` and before ``end_s``, by ``clock_s``."""

    async def close(self) -> int:
        """Leave the server as it was; returns how many streams could not be ended."""


class Load(Protocol):
    """Makes the runs; ``level`` says how much: streams, or requests per second, of all processes together."""

    async def open(self, client: AsyncClient, level: int, seat: Seat) -> Run: ...
