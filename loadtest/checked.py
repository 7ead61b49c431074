"""Streams whose every answer is held, bit for bit, against the published model's in this process.

    utterances = prepare(signature, onnx, samples, seed=0)
    tally = Tally()
    await talk(client, "speech", utterances, tally, over, seed=3, replay=True)

What is right, was computed before; so a stream costs this process little. Each session ends in one of four ways: every
answer came; it was lost, and its client was told so (SessionLost); it was refused before its first answer; or something
else, which must not be. After the first three its speaker begins another utterance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from clients.aio import AsyncClient
from clients.errors import (
    ClientError,
    ConnectionLost,
    DeadlineExceeded,
    ModelNotFound,
    ModelNotReady,
    ServerUnavailable,
    SessionLost,
)
from clients.replay import Replay
from clients.session import AsyncSession
from clients.signature import Array, Signature
from loadtest.audio import Samples
from loadtest.chunks import ChunkShape, Speaker
from loadtest.load import clock_s
from loadtest.reference import LocalStream
from optimize.errors import UserError

UTTERANCES, LEAST_CHUNKS, MOST_CHUNKS = 8, 4, 24
DEADLINE_S = 120.0  # for what waits until a server is there again
INTERRUPTED_S = 1.0  # an answer that took longer was held up by a fault
PAUSE_S = 0.2  # after a session that was refused
EXAMPLES = 5

# Of a server, or a model, that is not there now: nobody has begun, so nothing is lost.
REFUSALS = (ServerUnavailable, ModelNotReady, ModelNotFound, ConnectionLost, DeadlineExceeded)


@dataclass(frozen=True)
class Utterance:
    """The chunks of one stream, and the outputs that must come back."""

    chunks: list[dict[str, Array]]
    expected: list[dict[str, bytes]]


@dataclass
class Tally:
    """What the streams have seen so far. wrong: answers. unreported: sessions. interruptions_s: of answers that a fault
    held up, from the moment their chunk was sent, by whichever session, until an answer came. latencies_ms: of the
    others."""

    answers: int = 0
    wrong: int = 0
    finished: int = 0
    lost: int = 0
    unreported: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    interruptions_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def example(self, what: str) -> None:
        """Keep the first few."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(what)

    def refuse(self, error: ClientError) -> None:
        """A session ended before its first answer."""
        kind = type(error).__name__
        self.refused[kind] = self.refused.get(kind, 0) + 1

    def answered(self, taken_s: float) -> None:
        self.answers += 1
        if taken_s > INTERRUPTED_S:
            self.interruptions_s.append(taken_s)
        else:
            self.latencies_ms.append(1e3 * taken_s)


def prepare(
    signature: Signature, onnx: Path, samples: Samples, seed: int, outputs: Sequence[str] = ()
) -> list[Utterance]:
    """Different utterances of the audio, with ragged ends. outputs: to compare, all if none are named.

    Raises UserError: an output that is none, or a model that is fed otherwise.
    """
    shape, random = ChunkShape.of(signature), Random(seed)
    names = [tensor.name for tensor in signature.outputs]
    unknown = [name for name in outputs if name not in names]
    if unknown:
        raise UserError(f"model '{signature.model}' has no output '{unknown[0]}', but {', '.join(names)} (--outputs)")
    found = []
    for number in range(UTTERANCES):
        speaker, local = Speaker(shape, samples, 0.0, seed + number), LocalStream(onnx)
        chunks = [speaker.next()[0] for _ in range(random.randint(LEAST_CHUNKS, MOST_CHUNKS))]
        pcm = chunks[-1][shape.pcm][0]
        chunks[-1] = shape.inputs(pcm, random.randint(1, shape.samples))
        answers = [local.answer(chunk) for chunk in chunks]
        expected = [{name: answer[name].tobytes() for name in outputs or names} for answer in answers]
        found.append(Utterance(chunks, expected))
    return found


def differing(answer: Mapping[str, Array], expected: Mapping[str, bytes]) -> list[str]:
    """The outputs that are not what they should be."""
    return [name for name, value in expected.items() if answer[name].tobytes() != value]


async def talk(
    client: AsyncClient,
    model: str,
    utterances: Sequence[Utterance],
    tally: Tally,
    over: asyncio.Event,
    *,
    seed: int,
    replay: bool = False,
    chunk_s: float = 0.0,
) -> None:
    """One utterance after the other until ``over``. chunk_s: between two chunks; 0: as fast as they are answered."""
    random, since_s = Random(seed), None
    await asyncio.sleep(random.random() * chunk_s)
    while not over.is_set():
        utterance, speaker = random.choice(utterances), _Speaker(since_s)
        wanted = Replay(deadline_s=DEADLINE_S) if replay else False
        try:
            async with client.stream(model, deadline_s=DEADLINE_S, replay=wanted) as session:
                await speaker.speak(session, utterance, tally, chunk_s)
            tally.finished += 1
        except SessionLost as error:
            tally.lost += 1
            if replay:
                tally.example(str(error))
        except REFUSALS as error:
            if speaker.answered:
                _unreported(tally, speaker, error)
            else:
                tally.refuse(error)
                await asyncio.sleep(PAUSE_S)
        except ClientError as error:
            _unreported(tally, speaker, error)
        since_s = speaker.since_s


class _Speaker:
    """One session. since_s: when the chunk was sent that has no answer yet."""

    def __init__(self, since_s: float | None) -> None:
        self.since_s = since_s
        self.answered = 0

    async def speak(self, session: AsyncSession, utterance: Utterance, tally: Tally, chunk_s: float) -> None:
        due_s = clock_s()
        for place, (chunk, expected) in enumerate(zip(utterance.chunks, utterance.expected, strict=True), start=1):
            await asyncio.sleep(max(due_s - clock_s(), 0.0))
            due_s = max(due_s, clock_s() - chunk_s) + chunk_s
            self.since_s = clock_s() if self.since_s is None else self.since_s
            ask = session.finish if place == len(utterance.chunks) else session.send
            answer = await ask(chunk)
            tally.answered(clock_s() - self.since_s)
            self.answered, self.since_s = place, None
            if names := differing(answer.outputs, expected):
                tally.wrong += 1
                tally.example(f"chunk {place} of {len(utterance.chunks)}: {', '.join(names)} differ")


def _unreported(tally: Tally, speaker: _Speaker, error: ClientError) -> None:
    tally.unreported += 1
    tally.example(f"after {speaker.answered} answers: {type(error).__name__}: {error}")
