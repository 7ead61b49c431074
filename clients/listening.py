"""A sound through a streaming session: the words of every chunk, when they came, and what that sums up to.

    with client.stream("speech") as session, ended_on_failure(session):
        for heard in hear(session, sound, realtime=True):
            print(heard.end_s, heard.words, heard.latency_ms)

In real time, chunk n is due when its last sample has been spoken, counted from the start and not from the answer
before: a late answer does not shift the schedule, it makes the next ones late too. Latency is counted from then.
Otherwise a chunk is due when it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clients.calls import Answer
from clients.errors import ClientError, ServerError
from clients.recording import SAMPLE_RATE_HZ, Pcm, Sound
from clients.signature import Array, Signature
from optimize.errors import UserError

HANG_UP_S = 1.0  # for the server to hear that a stream ends early

_INTERFACE = {"pcm": "INT16", "lengths": "INT32"}, {"tokens": "INT64", "output_lengths": "INT64"}


class NotSpeech(UserError):
    """The model is there, and is no streaming speech model."""


class Listener(Protocol):
    """What is needed of a ``Session``."""

    @property
    def signature(self) -> Signature: ...

    @property
    def answered(self) -> int: ...

    def send(self, inputs: Mapping[str, Array]) -> Answer: ...

    def finish(self, inputs: Mapping[str, Array], *, deadline_s: float | None = None) -> Answer: ...

    def receive(self, *, deadline_s: float | None = None) -> Answer: ...


class Clock(Protocol):
    """Seconds from any origin, and a way to let them pass."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    """The machine's."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Heard:
    """A chunk and its answer. end_s: how much of the sound has been heard with it. latency_ms: from when the chunk was
    due; service_ms: from when it was sent, which is later if the answers before it were late."""

    end_s: float
    words: tuple[str, ...]
    latency_ms: float
    service_ms: float


@dataclass(frozen=True)
class Summary:
    """Of all chunks. real_time_factor: the time spent waiting for answers per time of sound. missed: how many answers
    came later than a chunk's duration after their chunk was due, by when the next one is."""

    transcript: str
    audio_s: float
    chunks: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    real_time_factor: float
    missed: int


def chunk_samples(signature: Signature) -> int:
    """The samples of the model's chunks. Raises NotSpeech."""
    inputs, outputs = _INTERFACE
    tensors = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)}
    lacks = [
        f"{name} {datatype}"
        for name, datatype in (inputs | outputs).items()
        if name not in tensors or tensors[name].datatype != datatype
    ]
    wants = [tensor.name for tensor in signature.inputs if tensor.name not in inputs and not tensor.optional]
    shape = tensors["pcm"].shape if "pcm" in tensors else ()
    faults = [
        *(["it lacks " + ", ".join(lacks)] if lacks else []),
        *(["it also wants " + ", ".join(wants)] if wants else []),
        *([f"its chunks have no fixed size: {shape}"] if not lacks and (len(shape) != 2 or shape[1] < 1) else []),
        *(["it keeps no state between requests"] if signature.idle_limit_s is None else []),
    ]
    if faults:
        raise NotSpeech(
            f"model '{signature.model}' is no streaming speech model: {'; '.join(faults)}; choose another with --model"
        )
    return shape[1]


def labels_of(signature: Signature) -> tuple[str, ...]:
    """The words by token, published with the model. Raises UserError: none, or not as many as the model knows."""
    labels = signature.labels.get("tokens", ())
    for tensor in signature.outputs:
        if tensor.name == "log_probs" and tensor.shape[-1] not in (-1, len(labels)):
            raise UserError(
                f"model '{signature.model}' version {signature.version} knows {tensor.shape[-1]} tokens, but "
                f"has {len(labels)} labels for them; publish it with labels of 'tokens' in its ModelSpec"
            )
    return labels


def hear(session: Listener, sound: Sound, *, realtime: bool = False, clock: Clock | None = None) -> Iterator[Heard]:
    """Send the sound chunk by chunk, the last with END, and yield what each gave as soon as it is there.

    Raises UserError for a model that cannot hear or a sound that breaks off, and any of ``clients.errors``.
    """
    clock = clock or MonotonicClock()
    samples, labels = chunk_samples(session.signature), labels_of(session.signature)
    start, spoken = clock.now(), 0
    for part in sound.chunks(samples):
        spoken += len(part.pcm)
        due = start + spoken / SAMPLE_RATE_HZ
        if realtime and (early_s := due - clock.now()) > 0:
            clock.sleep(early_s)
        sent = clock.now()
        inputs = _inputs(part.pcm, samples)
        answer = session.finish(inputs) if part.last else session.send(inputs)
        answered = clock.now()
        yield Heard(
            end_s=spoken / SAMPLE_RATE_HZ,
            words=_words(answer, labels),
            latency_ms=1e3 * (answered - (due if realtime else sent)),
            service_ms=1e3 * (answered - sent),
        )


@contextmanager
def ended_on_failure(session: Listener) -> Iterator[None]:
    """Let the server free the stream at once when the block is left by an error or by Ctrl-C."""
    try:
        yield
    except BaseException:
        with suppress(ClientError):
            session.receive(deadline_s=HANG_UP_S)  # there is nothing to take, unless a chunk was under way
        if session.answered:
            with suppress(ClientError):
                silence = _inputs(np.empty(0, np.int16), chunk_samples(session.signature))
                session.finish(silence, deadline_s=HANG_UP_S)
        raise


def summary(heard: Sequence[Heard], chunk_s: float) -> Summary:
    """Of at least one chunk. chunk_s: how long a whole one is."""
    latencies = np.array([each.latency_ms for each in heard])
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist()
    audio_s = heard[-1].end_s
    return Summary(
        transcript=transcript(heard),
        audio_s=audio_s,
        chunks=len(heard),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(latencies.max()),
        real_time_factor=sum(each.service_ms for each in heard) / 1e3 / audio_s,
        missed=int((latencies > 1e3 * chunk_s).sum()),
    )


def transcript(heard: Sequence[Heard]) -> str:
    """All words so far."""
    return " ".join(word for each in heard for word in each.words)


def _inputs(pcm: Pcm, samples: int) -> dict[str, Array]:
    """pcm: (time,), padded to a chunk of ``samples``."""
    padded = np.zeros((1, samples), np.int16)
    padded[0, : len(pcm)] = pcm
    return {"pcm": padded, "lengths": np.array([[len(pcm)]], np.int32)}


def _words(answer: Answer, labels: Sequence[str]) -> tuple[str, ...]:
    meant = answer["tokens"][0, : int(answer["output_lengths"][0, 0])]
    tokens = [int(token) for token in meant if token]
    for token in tokens:
        if not 0 < token < len(labels):
            raise ServerError(
                f"model '{answer.model}' version {answer.version} answers with token {token}, but {len(labels)} labels "
                "are known; publish it with labels of 'tokens' in its ModelSpec"
            )
    return tuple(labels[token] for token in tokens)
