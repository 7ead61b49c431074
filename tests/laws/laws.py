"""The four laws of a streaming model, for anything that can answer: a torch module, an ONNX session, a server.

Each law takes a ``Streaming`` model and audio, and returns how far the model is from keeping it. Tokens must be equal
unless the two best labels of a frame lie closer than twice the tolerance; such frames are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
State = tuple[NDArray[np.generic], ...]


class Answer(NamedTuple):
    """log_probs (batch, frames, vocabulary), tokens (batch, frames), output_lengths (batch, 1)."""

    log_probs: NDArray[np.float32]
    tokens: NDArray[np.int64]
    output_lengths: NDArray[np.int64]


class Streaming(Protocol):
    """chunk_samples: of one step. step: pcm (batch, chunk_samples), lengths (batch, 1) and the states."""

    chunk_samples: int

    def initial_state(self, batch: int) -> State: ...
    def step(self, pcm: Pcm, lengths: NDArray[np.int32], state: State) -> tuple[Answer, State]: ...


class Offline(Protocol):
    """The same model on whole utterances, pcm (batch, samples) and lengths (batch, 1)."""

    def offline(self, pcm: Pcm, lengths: NDArray[np.int32]) -> Answer: ...


@dataclass
class Difference:
    """log_probs: the largest. tokens: wrong ones. near_ties: ones that differ where the model could not decide.
    frames: compared; moved: those whose log-probabilities differ by more than float noise, 1e-4."""

    log_probs: float = 0.0
    tokens: int = 0
    near_ties: int = 0
    frames: int = 0
    moved: int = 0

    def add(self, found: Answer, expected: Answer, tolerance: float) -> None:
        """Compare two answers for one stream, (1, frames, ...) each."""
        assert found.log_probs.shape == expected.log_probs.shape, (found.log_probs.shape, expected.log_probs.shape)
        self.frames += found.tokens.size
        if not found.tokens.size:
            return
        distance = np.abs(found.log_probs - expected.log_probs).max(axis=-1)
        self.log_probs = max(self.log_probs, float(distance.max()))
        self.moved += int((distance > 1e-4).sum())
        best = np.sort(expected.log_probs, axis=-1)
        tied = (best[..., -1] - best[..., -2] < 2 * tolerance) & (distance > 0)
        tied[:, 1:] |= tied[:, :-1].copy()  # whether a word is new depends on the frame before, too
        differ = found.tokens != expected.tokens
        self.near_ties += int((differ & tied).sum())
        self.tokens += int((differ & ~tied).sum())


def stream(model: Streaming, pcm: Pcm) -> tuple[Answer, State]:
    """One stream (samples,) alone, chunk by chunk, the last one short; no audio at all is one empty chunk."""
    state, answers = model.initial_state(1), []
    for chunk, length in chunks(pcm, model.chunk_samples):
        answer, state = model.step(chunk[None], np.array([[length]], np.int32), state)
        answers.append(meant(answer, 0))
    return join(answers), state


def chunked_is_offline(
    model: Streaming, whole: Offline, audio: Sequence[Pcm], tolerance: float, garbage: NDArray[np.int16]
) -> Difference:
    """Laws 1 and 3: every stream alone in chunks, against all together, padded with ``garbage`` to one length."""
    longest = max(map(len, audio)) + len(garbage)
    pcm = np.resize(garbage, (len(audio), longest)) if len(garbage) else np.zeros((len(audio), longest), np.int16)
    for row, samples in enumerate(audio):
        pcm[row, : len(samples)] = samples
    answer = whole.offline(pcm, np.array([[len(samples)] for samples in audio], np.int32))
    difference = Difference()
    for row, samples in enumerate(audio):
        difference.add(stream(model, samples)[0], meant(answer, row), tolerance)
    return difference


def past_is_unchanged(model: Streaming, whole: Offline, pcm: Pcm, future: Pcm, tolerance: float) -> Difference:
    """Law 2: what was said of the whole chunks of ``pcm`` stays, whatever follows, offline too."""
    heard = len(pcm) // model.chunk_samples * model.chunk_samples
    before, _ = stream(model, pcm[:heard])
    after = whole.offline(np.concatenate([pcm[:heard], future])[None], np.array([[heard + len(future)]], np.int32))
    frames = before.tokens.shape[1] if heard else 0
    difference = Difference()
    difference.add(_frames(before, frames), _frames(meant(after, 0), frames), tolerance)
    return difference


def neighbours_do_not_matter(
    model: Streaming, audio: Sequence[Pcm], rounds: Sequence[Sequence[int]], tolerance: float
) -> tuple[Difference, float]:
    """Law 4: streams that join, pause, leave and change rows, against each stream alone; also the final states.

    rounds: which streams send their next chunk together, in which order; one that has nothing left is passed over.
    """
    waiting = [chunks(samples, model.chunk_samples) for samples in audio]
    states = [model.initial_state(1) for _ in audio]
    answers: list[list[Answer]] = [[] for _ in audio]
    for together in [*rounds, *([[index] for index in range(len(audio))] * max(map(len, waiting)))]:
        rows = [index for index in dict.fromkeys(together) if waiting[index]]
        if not rows:
            continue
        taken = [waiting[index].pop(0) for index in rows]
        state = tuple(np.concatenate(parts) for parts in zip(*(states[index] for index in rows), strict=True))
        answer, state = model.step(
            np.stack([chunk for chunk, _ in taken]), np.array([[length] for _, length in taken], np.int32), state
        )
        for row, index in enumerate(rows):
            answers[index].append(meant(answer, row))
            states[index] = tuple(part[row : row + 1] for part in state)
    difference, drift = Difference(), 0.0
    for index, samples in enumerate(audio):
        alone, state = stream(model, samples)
        difference.add(join(answers[index]), alone, tolerance)
        for found, expected in zip(states[index], state, strict=True):
            drift = max(drift, float(np.abs(found.astype(float) - expected.astype(float)).max()))
    return difference, drift


def chunks(pcm: Pcm, size: int) -> list[tuple[Pcm, int]]:
    """Whole chunks and how many of their samples are meant; what follows the last sample is not zero."""
    pieces = [pcm[start : start + size] for start in range(0, max(len(pcm), 1), size)]
    return [(np.concatenate([piece, np.full(size - len(piece), 12345, np.int16)]), len(piece)) for piece in pieces]


def meant(answer: Answer, row: int) -> Answer:
    """One stream's share of a batch's answer, without the frames beyond its end."""
    alone = Answer(*(part[row : row + 1] for part in answer))  # type: ignore[arg-type]
    return _frames(alone, int(answer.output_lengths[row, 0]))


def join(answers: Sequence[Answer]) -> Answer:
    """Answers of one stream, chunk after chunk, as one."""
    return Answer(
        np.concatenate([answer.log_probs for answer in answers], axis=1),
        np.concatenate([answer.tokens for answer in answers], axis=1),
        np.sum([answer.output_lengths for answer in answers], axis=0),
    )


def _frames(answer: Answer, count: int) -> Answer:
    return Answer(answer.log_probs[:, :count], answer.tokens[:, :count], answer.output_lengths)
