"""One stream that goes on for long: does it still hear the same, in the same time, in the same memory?

Its answers are held, chunk by chunk and bit for bit, against those of the published model in this process; or against
a second served stream that began a few chunks later and so is never of the same age in the same batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import clients
from clients.session import AsyncSession
from clients.signature import Array
from loadtest.audio import Samples
from loadtest.chunks import ChunkShape
from loadtest.flatness import Trend
from loadtest.load import clock_s
from loadtest.processes import Usage, server_pid
from loadtest.reference import LocalStream
from loadtest.thresholds import Verdict
from optimize.errors import UserError

LAG_CHUNKS = 7  # how much younger the second stream is
LEAST_CHUNKS = 40  # for the tenths to mean anything
MEMORY_SAMPLES = 200

MAX_TIME_RATIO = 1.25


@dataclass(frozen=True)
class Continuous:
    """What was seen. differing: chunks answered otherwise than by ``reference``; first_difference: the first of them.
    memory_bytes: of the server with its workers; None if it cannot be seen from here."""

    model: str
    version: str
    reference: str
    output: str
    chunks: int
    audio_s: float
    wall_s: float
    differing: int
    first_difference: int | None
    chunk_ms: Trend
    memory_bytes: Trend | None

    def verdicts(self, max_growth_percent: float, max_time_ratio: float = MAX_TIME_RATIO) -> list[Verdict]:
        """Against the limits; memory only where it could be seen."""
        what = f"chunks whose '{self.output}' differ from {self.reference}"
        found = [
            Verdict(self.model, what, f"of {self.chunks}", self.differing, 0, False),
            Verdict(self.model, "time of a chunk, last tenth to first", "times", self.chunk_ms.ratio, max_time_ratio,
                    False),
        ]  # fmt: skip
        if self.memory_bytes is not None:
            growth = self.memory_bytes.growth_percent
            found.append(Verdict(self.model, "growth of the server's memory", "%", growth, max_growth_percent, False))
        return found


async def run(
    address: str,
    model: str,
    minutes: float,
    samples: Samples,
    *,
    output: str = "tokens",
    realtime: bool = False,
    onnx: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Continuous:
    """Stream ``minutes`` of audio, as fast as answers come or in real time. progress: chunks answered, and all.

    Raises UserError: no server, model or output of that name, too short, or an ONNX file that does not fit.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(await clients.aio.connect(address))
        signature = await client.signature(model)
        shape = ChunkShape.of(signature)
        chunks = shape.split(samples)
        total = int(minutes * 60 / shape.seconds)
        _check(total, shape.seconds, output, signature)
        served = await stack.enter_async_context(client.stream(model))
        local = LocalStream(onnx) if onnx is not None else None
        second = None if local else await stack.enter_async_context(client.stream(model))
        pid, expected, times_ms, memory, differing = server_pid(address), _Late(), [], [], []
        begin_s = clock_s()
        for number in range(total + (LAG_CHUNKS if second else 0)):
            if realtime:
                await asyncio.sleep(max(begin_s + number * shape.seconds - clock_s(), 0.0))
            older = shape.inputs(chunks[number % len(chunks)]) if number < total else None
            younger = shape.inputs(chunks[(number - LAG_CHUNKS) % len(chunks)]) if number >= LAG_CHUNKS else None
            (answer, taken_ms), (other, _) = await asyncio.gather(_ask(served, older), _ask(second, younger))
            if answer is not None and older is not None:
                expected.put(answer[output])
                if number >= LAG_CHUNKS:  # before that it is alone
                    times_ms.append(taken_ms)
            if local is not None and older is not None:
                other = local.answer(older)
            if other is not None:
                place, said = expected.take()
                if said.tobytes() != other[output].tobytes():
                    differing.append(place)
            if pid is not None and number % max(total // MEMORY_SAMPLES, 1) == 0:
                memory.append(float(Usage.of(pid).rss_bytes))
            progress(min(number + 1, total), total)
    return Continuous(
        model=model,
        version=signature.version,
        reference=f"'{onnx}' in this process" if local else f"a stream that began {LAG_CHUNKS} chunks later",
        output=output,
        chunks=total,
        audio_s=total * shape.seconds,
        wall_s=clock_s() - begin_s,
        differing=len(differing),
        first_difference=differing[0] if differing else None,
        chunk_ms=Trend.of(times_ms),
        memory_bytes=Trend.of(memory) if memory else None,
    )


class _Late:
    """Answers that wait to be compared, in order, with their numbers."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Array]] = []
        self._numbers = count()

    def put(self, said: Array) -> None:
        self._waiting.append((next(self._numbers), said.copy()))

    def take(self) -> tuple[int, Array]:
        return self._waiting.pop(0)


async def _ask(session: AsyncSession | None, inputs: dict[str, Array] | None) -> tuple[dict[str, Array] | None, float]:
    """The answer, and how long it took in ms; None where there is nothing to ask or nobody."""
    if session is None or inputs is None:
        return None, 0.0
    begin_s = clock_s()
    answer = await session.send(inputs)
    return dict(answer.outputs), (clock_s() - begin_s) * 1e3


def _check(total: int, chunk_s: float, output: str, signature: clients.Signature) -> None:
    names = [tensor.name for tensor in signature.outputs]
    if output not in names:
        raise UserError(f"model '{signature.model}' has no output '{output}'; it has {', '.join(names)} (--output)")
    if total < LEAST_CHUNKS:
        least = LEAST_CHUNKS * chunk_s / 60
        raise UserError(f"--continuous is too short for chunks of {chunk_s * 1e3:g} ms: give at least {least:.3g} min")
