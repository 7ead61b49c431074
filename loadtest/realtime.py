"""When the chunks of one real-time stream are due, and what became of each.

A microphone does not wait: chunk ``n`` is complete at ``first_due_s + n * chunk_s`` whatever the server does. It is
sent then, or, since a stream has one chunk under way at a time, as soon as the chunk before it is answered; its
latency counts from when it was due. An answer that comes after the next chunk was due is a miss.

    pace = RealTime(first_due_s, chunk_s=0.32)
    while not pace.over:
        sleep(pace.wait_s(clock()))
        started_s = clock()
        answer = session.send(chunk)
        report(pace.answered(started_s, clock()))
    report(*pace.unanswered(clock()))

It reads no clock and sends nothing, so that threads, greenlets, asyncio and tests drive it alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from loadtest.pacing import Missed, Outcome

_GOLDEN = (math.sqrt(5) - 1) / 2


class RealTime:
    """The pace of one stream, until ``end_s``: what is due from then on is not its to send."""

    def __init__(self, first_due_s: float, chunk_s: float, end_s: float = math.inf) -> None:
        self.turn = 0
        self._first_due_s = first_due_s
        self._chunk_s = chunk_s
        self._end_s = end_s
        self._held_s = -math.inf

    @property
    def due_s(self) -> float:
        """Of the next chunk."""
        return self._first_due_s + self.turn * self._chunk_s

    @property
    def over(self) -> bool:
        return self.due_s >= self._end_s

    def wait_s(self, now_s: float) -> float:
        """Until the next chunk is due."""
        return max(self.due_s - now_s, 0.0)

    def hold(self, now_s: float) -> None:
        """The next chunk could not be sent before now, for a reason that is not the generator's."""
        self._held_s = now_s

    def answered(self, started_s: float, finished_s: float, error: Exception | None = None) -> Outcome:
        """The outcome of the next chunk, which was sent and answered, or failed. The one after it is next now."""
        outcome = Outcome(self.due_s, started_s, finished_s, error or self._miss(finished_s), self._held_s)
        self.turn += 1
        self._held_s = finished_s
        return outcome

    def unanswered(self, now_s: float) -> Iterator[Outcome]:
        """A miss for every chunk that should have been answered by now, the one under way and those behind it."""
        while not self.over and (miss := self._miss(now_s)) is not None:
            yield Outcome(self.due_s, max(self.due_s, self._held_s), now_s, miss, self._held_s)
            self.turn += 1

    def _miss(self, now_s: float) -> Missed | None:
        after_s = now_s - self.due_s
        if after_s <= self._chunk_s:
            return None
        return Missed(f"not answered {after_s * 1e3:.0f} ms after it was due; the next one came {self._chunk_s * 1e3:g}"
                      " ms after it")  # fmt: skip


def even_phase(stream: int, streams: int) -> float:
    """Where in the chunk's duration a stream begins, 0 to 1: all spread evenly."""
    return stream / streams


def any_phase(stream: int) -> float:
    """The same where nobody knows how many streams there will be: the golden ratio spreads any number well."""
    return stream * _GOLDEN % 1.0
