"""Processes that make load together, kept from trial to trial because starting one takes a second.

    with Fleet("127.0.0.1:8001", load, processes=2) as fleet:
        with fleet.opened(200):                        # 200 streams, open
            start_s = fleet.start(seconds=6.0)         # all begin at one moment of the clock that they share
            parts = fleet.collect()

They are spawned, not forked: gRPC does not survive a fork. Each has its own connection.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import clients
from loadtest.load import Load, Part, Seat, clock_s
from optimize.errors import UserError

HEAD_START_S = 0.1  # from the order to start to the start: the order must have reached everyone
STOP_S = 5.0


class Fleet:
    """See the module; a context manager."""

    def __init__(self, address: str, load: Load, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.left_open = 0  # streams of the last level that could not be ended
        self._processes = []
        self._ends: list[Connection[Any, Any]] = []
        for seat in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work, args=(theirs, address, load, Seat(seat, processes)), name=f"loadtest-{seat}", daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._ends.append(ours)

    @contextmanager
    def opened(self, level: int) -> Iterator[None]:
        """Everything is open inside, and ended after a run that went well.

        Raises UserError if a process could not open its share.
        """
        self._send(("open", level))
        self._answers()
        yield
        self._send(("close",))
        self.left_open = sum(self._answers())

    def start(self, seconds: float) -> float:
        """Begin; returns when that is, a moment from now."""
        start_s = clock_s() + HEAD_START_S
        self._send(("run", start_s, start_s + seconds))
        return start_s

    def collect(self) -> list[Part]:
        """What each process saw; waits for their last answers."""
        return self._answers()

    def close(self) -> None:
        for end in self._ends:
            end.close()
        deadline = time.monotonic() + STOP_S
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0.1))
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, order: tuple[Any, ...]) -> None:
        for seat, end in enumerate(self._ends):
            try:
                end.send(order)
            except OSError:
                raise self._ended(seat) from None

    def _answers(self) -> list[Any]:
        answers: list[Any] = []
        for seat, end in enumerate(self._ends):
            try:
                answers.append(end.recv())
            except (EOFError, OSError):
                raise self._ended(seat) from None
        for answer in answers:
            if isinstance(answer, UserError):
                raise answer
        return answers

    def _ended(self, seat: int) -> UserError:
        self._processes[seat].join(STOP_S)
        return UserError(
            f"process {seat + 1} of {len(self._ends)} of the load generator ended by itself, with status "
            f"{self._processes[seat].exitcode}; was it killed, or out of memory?"
        )


def work(orders: Connection[Any, Any], address: str, load: Load, seat: Seat) -> None:
    """The body of each process: do as ordered until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes the pipe
    asyncio.run(_work(orders, address, load, seat))


async def _work(orders: Connection[Any, Any], address: str, load: Load, seat: Seat) -> None:
    client, run = None, None
    while True:
        try:
            order = await asyncio.to_thread(orders.recv)
        except (EOFError, OSError):
            break
        answer: Any
        try:
            match order:
                case ("open", level):
                    client = client or await clients.aio.connect(address)
                    run = await load.open(client, level, seat)
                    answer = None
                case ("run", start_s, end_s):
                    assert run is not None
                    cpu_s, wall_s = time.process_time(), clock_s()
                    outcomes = await run.run(start_s, end_s)
                    answer = Part(outcomes, time.process_time() - cpu_s, clock_s() - wall_s)
                case ("close",):
                    answer, run = await run.close() if run else 0, None
        except UserError as error:
            answer = error
        orders.send(answer)
    if client is not None:
        await client.close()
