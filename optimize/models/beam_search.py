"""Search for the best sequence that a step function can write: greedy, and with a beam.

    found = beam_search(step, state, beam=4, most_tokens=32, length_alpha=0.6)

or, for whoever holds the loop, ``start`` and then ``advance`` until it says that nothing goes on.

A hypothesis that ends leaves the beam, which shrinks (Sutskever et al., 2014), and the best that ended is kept, judged
by its log-probability over the length penalty ((5 + length) / 6) ** alpha (Wu et al., 2016, section 7,
https://arxiv.org/abs/1609.08144). The search stops once nothing that goes on can become better than what has ended.
A beam of one is greedy search. Rows never see each other: company changes no answer. Sizes that no request changes are
read with ``int``: an exported graph has them as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from optimize.data.subwords import END, PADDING, START

NEVER = -1e9  # the score of what is not there

StateT = TypeVar("StateT", bound=tuple[Any, ...])
Step = Callable[[Tensor, StateT], tuple[Tensor, StateT]]


class Found(NamedTuple):
    """tokens (batch, most_tokens) int64: END and then PADDING after the words. lengths (batch,), END included.

    scores (batch,): log-probability over length penalty.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


class Beam(NamedTuple):
    """A search under way. tokens (batch, beam, most_tokens) and log_probs (batch, beam) of what goes on; best ended."""

    tokens: Tensor
    log_probs: Tensor
    best: Found


class Going(NamedTuple, Generic[StateT]):
    """A search between two steps: words (batch * beam,) to go on from, and the state (batch * beam rows) for it."""

    beam: Beam
    words: Tensor
    state: StateT


def length_penalty(length: Tensor, alpha: float) -> Tensor:
    """What a log-probability of ``length`` tokens is divided by; 1 for a single token."""
    return ((5 + length) / 6) ** alpha


def begin(state: StateT, beam: int, most_tokens: int) -> Going[StateT]:
    """One empty hypothesis for every item, the other places of the beam vacant. state: ``batch * beam`` rows."""
    rows = state[0].shape[0]
    return Going(start(rows // beam, beam, most_tokens), torch.full((rows,), START, dtype=torch.int64), state)


def start(batch: int, beam: int, most_tokens: int) -> Beam:
    """A beam without words. (dtype: the exporter takes integers for float32 otherwise.)"""
    first = torch.where(torch.arange(beam) == 0, 0.0, NEVER)
    best = Found(
        torch.full((batch, most_tokens), PADDING, dtype=torch.int64),
        torch.zeros(batch, dtype=torch.int64),
        torch.full((batch,), NEVER),
    )
    tokens = torch.full((batch, beam, most_tokens), PADDING, dtype=torch.int64)
    return Beam(tokens, first.expand(batch, -1).clone(), best)


def writable(logits: Tensor) -> Tensor:
    """logits (rows, vocabulary) to log-probabilities; PADDING, UNKNOWN and START are never written."""
    forbidden = torch.where(torch.arange(int(logits.shape[1])) < END, NEVER, 0.0)  # added: ONNX Runtime chooses slowly
    return torch.log_softmax(logits.float(), dim=1) + forbidden


def extend(beam: Beam, log_probs: Tensor, position: Tensor, alpha: float) -> tuple[Beam, Tensor, Tensor]:
    """Extend every hypothesis by one token. log_probs: (batch, beam, vocabulary); position: how many tokens it has.

    Returns the beam, the tokens to go on from (batch * beam,), and for each the row (batch * beam,) that it extends.
    """
    batch = beam.tokens.shape[0]
    width, most_tokens, vocabulary = (int(size) for size in (*beam.tokens.shape[1:], log_probs.shape[2]))
    total = beam.log_probs.unsqueeze(2) + log_probs
    chosen, places = total.flatten(1).topk(width, dim=1)
    origins = torch.div(places, vocabulary, rounding_mode="trunc")
    tokens = places - origins * vocabulary
    firsts = torch.arange(batch).unsqueeze(1) * width  # where the rows of each item begin
    rows = (firsts + origins).flatten()
    written = beam.tokens.flatten(0, 1)[rows].reshape(-1, width, most_tokens)
    written = torch.where(torch.arange(most_tokens) == position, tokens.unsqueeze(2), written)
    ended = (tokens == END) | (position == most_tokens - 1)
    scores = torch.where(ended, chosen / length_penalty(position + 1, alpha), NEVER)
    score, place = scores.max(dim=1, keepdim=True)
    score, candidate = score.flatten(), written.flatten(0, 1)[(firsts + place).flatten()]
    better = score > beam.best.scores
    best = Found(
        torch.where(better.unsqueeze(1), candidate, beam.best.tokens),
        torch.where(better, position + 1, beam.best.lengths),
        torch.where(better, score, beam.best.scores),
    )
    going_on = Beam(written, torch.where(ended, NEVER, chosen).clamp(min=NEVER), best)
    return going_on, tokens.reshape(-1), rows


def undecided(beam: Beam, alpha: float) -> Tensor:
    """(): whether any hypothesis that goes on could still become better than the best that ended."""
    most = torch.tensor(int(beam.tokens.shape[2]))
    likeliest = beam.log_probs.amax(dim=1)
    possible = likeliest / length_penalty(most, alpha)
    return ((possible > beam.best.scores) & (likeliest > NEVER / 2)).any()


def advance(step: Step[StateT], going: Going[StateT], position: Tensor, alpha: float) -> tuple[Going[StateT], Tensor]:
    """One step of the search; position (): how many tokens are written. Also whether the search goes on, ()."""
    width = int(going.beam.tokens.shape[1])
    logits, state = step(going.words, going.state)
    log_probs = writable(logits).reshape(-1, width, int(logits.shape[1]))
    beam, words, origins = extend(going.beam, log_probs, position, alpha)
    return Going(beam, words, reorder(state, origins)), undecided(beam, alpha)


def beam_search(step: Step[StateT], state: StateT, beam: int, most_tokens: int, length_alpha: float) -> Found:
    """Search from ``state``, whose tensors have ``batch * beam`` rows, those of one item together.

    step: (tokens (rows,), state) to (logits (rows, vocabulary), state).
    """
    going = begin(state, beam, most_tokens)
    for position in range(most_tokens):
        going, goes_on = advance(step, going, torch.tensor(position), length_alpha)
        if not goes_on:
            break
    return going.beam.best


def greedy_search(step: Step[StateT], state: StateT, most_tokens: int) -> Found:
    """The likeliest token at every step; the score is the log-probability itself."""
    batch = state[0].shape[0]
    written = torch.full((batch, most_tokens), PADDING)
    lengths, scores = torch.zeros(batch, dtype=torch.int64), torch.zeros(batch)
    tokens, going_on = torch.full((batch,), START), torch.ones(batch, dtype=torch.bool)
    for position in range(most_tokens):
        logits, state = step(tokens, state)
        likeliest, tokens = writable(logits).max(dim=1)
        written[:, position] = torch.where(going_on, tokens, PADDING)
        lengths, scores = lengths + going_on, scores + torch.where(going_on, likeliest, 0)
        going_on = going_on & (tokens != END)
        if not going_on.any():
            break
    return Found(written, lengths, scores)


def reorder(state: StateT, rows: Tensor) -> StateT:
    """The rows of every tensor of a NamedTuple, in another order."""
    make: Callable[..., StateT] = type(state)
    return make(*(tensor[rows] for tensor in state))
