"""Streams that never end properly: does the server forget them, and does its memory stay what it was?

Each sends one or two chunks and never END. Then, in turns, its stream is cancelled, its whole connection is closed, or
it simply falls silent. A lane of streams goes on with the next when the last has been idle for long enough, so as many
are held as the model has slots, and each stream after the first ones needs a slot that one of them gave back.

At the end, as many streams as there are slots start at once, and each keeps talking until all have started: a slot
that never came back is a stream that never starts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count

import clients
from clients.aio import AsyncClient
from clients.errors import ClientError
from clients.signature import Array
from loadtest.audio import Samples
from loadtest.chunks import ChunkShape
from loadtest.flatness import Trend
from loadtest.processes import Usage, server_pid
from loadtest.server_statistics import ServerStatistics
from loadtest.thresholds import Verdict

WAYS = ("cancelled", "disconnected", "silent")
MARGIN_S = 0.1  # beyond the idle limit, for Triton to notice
START_DEADLINE_S = 10.0
MEMORY_SAMPLES = 200


@dataclass(frozen=True)
class Abandonment:
    """What was seen. failed: streams that could not start. slowest_start_ms: of the others, while abandoned ones
    were held. started_at_once: of as many new streams as there are slots, after the idle limit. memory_bytes: of the
    server with its workers, once every slot had been used; None if it cannot be seen from here."""

    model: str
    version: str
    slots: int
    idle_limit_s: float
    abandoned: dict[str, int]
    failed: int
    first_failure: str
    slowest_start_ms: float
    started_at_once: int
    wall_s: float
    memory_bytes: Trend | None

    def verdicts(self, max_growth_percent: float) -> list[Verdict]:
        """Against the limits; memory only where it could be seen."""
        total = sum(self.abandoned.values()) + self.failed
        found = [
            Verdict(self.model, "streams that could not start", f"of {total}", self.failed, 0, False),
            Verdict(self.model, "new streams that started at once", "slots", self.started_at_once, self.slots, True),
        ]
        if self.memory_bytes is not None:
            growth = self.memory_bytes.growth_percent
            found.append(Verdict(self.model, "growth of the server's memory", "%", growth, max_growth_percent, False))
        return found


@dataclass
class _Tally:
    """What the lanes have done so far."""

    abandoned: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))
    failures: list[str] = field(default_factory=list)
    slowest_start_s: float = 0.0
    memory: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(self.abandoned.values()) + len(self.failures)


def duration_s(streams: int, slots: int, idle_limit_s: float) -> float:
    """About how long it takes: every slot is held for the idle limit by each of its streams."""
    return (streams / slots + 2) * (idle_limit_s + MARGIN_S)


async def run(
    address: str,
    model: str,
    streams: int,
    samples: Samples,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Abandonment:
    """Abandon that many. progress: how many so far, and all. Raises UserError: no server, no model with streams."""
    begin_s = time.monotonic()
    statistics = ServerStatistics(address, model)
    async with await clients.aio.connect(address) as client:
        signature = await client.signature(model)
        shape = ChunkShape.of(signature)
        idle_limit_s, slots, pid = signature.idle_limit_s or 0.0, statistics.slots(), server_pid(address)
        statistics.close()
        chunk = shape.inputs(shape.split(samples)[0])
        tally, numbers = _Tally(), count()
        # The backend's room for states grows until every slot was used: only then should memory stay.
        warm = min(2 * slots, streams // 2)

        async def lane(place: int) -> None:
            await asyncio.sleep(place / lanes * idle_limit_s)
            while (number := next(numbers)) < streams:
                await _abandon(client, address, model, chunk, number, idle_limit_s, tally)
                if pid is not None and tally.done > warm and tally.done % max(streams // MEMORY_SAMPLES, 1) == 0:
                    tally.memory.append(float(Usage.of(pid).rss_bytes))
                progress(tally.done, streams)

        lanes = min(slots, streams)
        await asyncio.gather(*map(lane, range(lanes)))
        started = await start_at_once(client, model, chunk, slots, idle_limit_s)
    return Abandonment(
        model=model,
        version=signature.version,
        slots=slots,
        idle_limit_s=idle_limit_s,
        abandoned=tally.abandoned,
        failed=len(tally.failures),
        first_failure=tally.failures[0] if tally.failures else "",
        slowest_start_ms=tally.slowest_start_s * 1e3,
        started_at_once=started,
        wall_s=time.monotonic() - begin_s,
        memory_bytes=Trend.of(tally.memory, warm_up=0) if tally.memory else None,
    )


async def _abandon(client: AsyncClient, address: str, model: str, chunk: dict[str, Array], number: int,
                   idle_limit_s: float, tally: _Tally) -> None:  # fmt: skip
    """One stream, and the time until the server has forgotten it."""
    way = WAYS[number % len(WAYS)]
    async with AsyncExitStack() as silence:
        try:
            async with AsyncExitStack() as stack:
                if way == "disconnected":
                    client = await stack.enter_async_context(await clients.aio.connect(address))
                deadline_s = START_DEADLINE_S + 2 * idle_limit_s
                session = await stack.enter_async_context(client.stream(model, deadline_s=deadline_s))
                begin_s = time.monotonic()
                await session.send(chunk)
                tally.slowest_start_s = max(tally.slowest_start_s, time.monotonic() - begin_s)
                if number // len(WAYS) % 2:
                    await session.send(chunk)
                if way == "silent":
                    await silence.enter_async_context(stack.pop_all())
            tally.abandoned[way] += 1
        except ClientError as error:
            tally.failures.append(str(error))
        await asyncio.sleep(idle_limit_s + MARGIN_S)


async def start_at_once(
    client: AsyncClient,
    model: str,
    chunk: dict[str, Array],
    slots: int,
    idle_limit_s: float,
    deadline_s: float = START_DEADLINE_S,
) -> int:
    """How many of ``slots`` new streams start while all that have started go on."""
    over = asyncio.Event()
    started = 0

    async def one() -> None:
        nonlocal started
        async with client.stream(model, deadline_s=deadline_s) as session:
            try:
                await session.send(chunk)
            except ClientError:
                return
            if not over.is_set():  # later it may have got the slot of one that has ended
                started += 1
            if started == slots:
                over.set()
            try:
                while not over.is_set():
                    await asyncio.sleep(idle_limit_s / 4)
                    await session.send(chunk)
                await session.finish(chunk)
            except ClientError:  # it has started, and that was the question
                pass

    tasks = [asyncio.create_task(one()) for _ in range(slots)]
    await asyncio.wait({asyncio.create_task(over.wait())}, timeout=deadline_s)
    over.set()
    await asyncio.gather(*tasks)
    return started
