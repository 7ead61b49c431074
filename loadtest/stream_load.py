"""Many real-time streams in one process, each an asyncio task with one bidirectional gRPC stream at a time.

An utterance ends with END, and the next begins with START on a new stream, opened while the next chunk is still being
spoken. A stream that fails begins again in the same way; that chunk is a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from clients.aio import AsyncClient
from clients.errors import ClientError
from clients.session import AsyncSession
from loadtest.audio import Samples
from loadtest.chunks import ChunkShape, Speaker
from loadtest.load import Seat, clock_s
from loadtest.pacing import Outcome
from loadtest.realtime import RealTime, even_phase

OPEN_AT_ONCE = 32  # while a load is being opened


@dataclass(frozen=True)
class StreamLoad:
    """Streams of ``model`` with seeded audio. deadline_s: after which an unanswered chunk has failed."""

    model: str
    shape: ChunkShape
    samples: Samples = field(repr=False)
    utterance_s: float
    deadline_s: float
    seed: int = 0

    async def open(self, client: AsyncClient, level: int, seat: Seat) -> StreamRun:
        speakers = {
            stream: Speaker(self.shape, self.samples, self.utterance_s, self.seed + stream)
            for stream in seat.share(level)
        }

        def session() -> AsyncSession:
            return client.stream(self.model, deadline_s=self.deadline_s)

        streams = [
            Stream(session, speaker, self.shape, even_phase(stream, level) * self.shape.seconds)
            for stream, speaker in speakers.items()
        ]
        gate = asyncio.Semaphore(OPEN_AT_ONCE)

        async def opened(stream: Stream) -> None:
            async with gate:
                await stream.open()

        await asyncio.gather(*map(opened, streams))
        return StreamRun(streams)


class Stream:
    """One speaker in real time. sleep: asyncio's, unless a test has its own; likewise the clock."""

    def __init__(
        self,
        session: Callable[[], AsyncSession],
        speaker: Speaker,
        shape: ChunkShape,
        phase_s: float,
        clock: Callable[[], float] = clock_s,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._new_session = session
        self._speaker = speaker
        self._shape = shape
        self._phase_s = phase_s
        self._clock = clock
        self._sleep = sleep
        self._session: AsyncSession | None = None
        self._fresh = True  # whether nothing has been sent on it
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._session = await self._new_session().__aenter__()
        self._fresh = True

    async def run(self, start_s: float, end_s: float) -> list[Outcome]:
        """Speak from start to end."""
        pace = RealTime(start_s + self._phase_s, self._shape.seconds, end_s)
        outcomes: list[Outcome] = []
        # After the end go on with what is still in time, and give up what is not.
        while not pace.over and self._clock() < max(end_s, pace.due_s + self._shape.seconds):
            await self._sleep(pace.wait_s(self._clock()))
            started_s = self._clock()
            error = await self._chunk()
            outcomes.append(pace.answered(started_s, self._clock(), error))
            if self._session is None:
                await self._reopen()
                pace.hold(self._clock())
        return [*outcomes, *pace.unanswered(self._clock())]

    async def close(self) -> bool:
        """End the utterance, uncounted; False if the server may still hold the stream."""
        ended = True
        if self._session is not None:
            if not self._fresh:
                try:
                    await self._session.finish(self._speaker.next()[0])
                except ClientError:
                    ended = False
            await self._session.close()
        if self._closing:
            await asyncio.wait(self._closing)
        return ended

    async def _chunk(self) -> Exception | None:
        """Send the next chunk; afterwards there is no session if it was the last one, or failed."""
        inputs, last = self._speaker.next()
        if self._session is None:
            return ClientError("the stream could not be opened again")
        self._fresh = False
        try:
            if not last:
                await self._session.send(inputs)
                return None
            await self._session.finish(inputs)
        except ClientError as failure:
            self._speaker.again()
            self._discard()
            return failure
        self._discard()
        return None

    def _discard(self) -> None:
        """Close the session without waiting for it."""
        assert self._session is not None
        task = asyncio.create_task(self._session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._session = None

    async def _reopen(self) -> None:
        try:
            await self.open()
        except ClientError:  # told by the next chunk
            self._session = None


class StreamRun:
    """All streams of one process."""

    def __init__(self, streams: list[Stream]) -> None:
        self._streams = streams

    async def run(self, start_s: float, end_s: float) -> list[Outcome]:
        found = await asyncio.gather(*(stream.run(start_s, end_s) for stream in self._streams))
        return [outcome for outcomes in found for outcome in outcomes]

    async def close(self) -> int:
        ended = await asyncio.gather(*(stream.close() for stream in self._streams))
        return ended.count(False)
