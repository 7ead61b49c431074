"""A recurrent encoder-decoder with additive attention: a sentence of subwords in, its translation out.

An encoder reads the source in both directions; a decoder writes one subword after the other and looks back at what
the encoder wrote, each time with other weights (Bahdanau et al., 2015, https://arxiv.org/abs/1409.0473). One table
of vectors serves both languages and the output (Press and Wolf, 2017, https://arxiv.org/abs/1608.05859).

    memory, state = translator.encode(source, lengths)            # once for each sentence
    logits, state = translator.step(tokens, state, memory)        # for each subword, in training and in every search
    tokens, output_lengths, score = translator(source, lengths)   # what is served: beam search around step

In training the previous word is the reference's or, now and then, the network's own guess, so that it learns to go
on from its own mistakes (scheduled sampling: Bengio et al., 2015, https://arxiv.org/abs/1506.03099).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from optimize.data.subwords import PADDING, START, UNKNOWN
from optimize.errors import UserError
from optimize.models import beam_search
from optimize.models.beam_search import Going
from optimize.models.looping import Looping

NO_ATTENTION = -1e9


@dataclass(frozen=True)
class TranslatorConfig:
    """hidden: width of the decoder. encoder: width of each direction of the encoder. embedding: of a subword.

    sampling_rate: share of words that training takes from the network's own guesses, reached after sampling_batches
    batches, linearly from 0. dropout: in training only. beam, length_alpha, most_tokens: of the search that is served.
    """

    vocabulary: int
    hidden: int
    encoder: int
    embedding: int
    attention: int
    cell: Literal["gru", "lstm"] = "gru"
    dropout: float = 0.0
    sampling_rate: float = 0.0
    sampling_batches: int = 1
    beam: int = 4
    length_alpha: float = 0.6
    most_tokens: int = 32

    def __post_init__(self) -> None:
        widths = {name: getattr(self, name) for name in ("vocabulary", "hidden", "encoder", "embedding", "attention")}
        for name, width in widths.items():
            if width < 16 or width % 16:
                raise UserError(f"translator: {name} is {width}; expected a positive multiple of 16")
        if self.cell not in ("gru", "lstm"):
            raise UserError(f"translator: cell is '{self.cell}'; expected 'gru' or 'lstm'")
        if not 0 <= self.sampling_rate <= 1 or self.sampling_batches < 1:
            raise UserError(f"{self}: sampling_rate must lie in [0, 1] and sampling_batches be at least 1")
        if self.beam < 1 or self.most_tokens < 1:
            raise UserError(f"{self}: beam and most_tokens must be at least 1")


class Memory(NamedTuple):
    """What the encoder wrote: keys (rows, source, attention), values (rows, source, 2 encoder), mask (rows, source)."""

    keys: Tensor
    values: Tensor
    mask: Tensor


class State(NamedTuple):
    """What the decoder carries: hidden (rows, hidden); for an LSTM hidden and cell side by side (rows, 2 hidden)."""

    hidden: Tensor


Search = Going[State]


class Translator(Looping):
    """Subwords to subwords. ``trained_batches`` counts batches of training, for the sampling rate."""

    trained_batches: Tensor

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.config = config
        lstm, hidden, annotation = config.cell == "lstm", config.hidden, 2 * config.encoder
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)
        layer: type[nn.LSTM] | type[nn.GRU] = nn.LSTM if lstm else nn.GRU
        self.forwards = layer(config.embedding, config.encoder, batch_first=True)
        self.backwards = layer(config.embedding, config.encoder, batch_first=True)
        self.key = nn.Linear(annotation, config.attention)
        self.query = nn.Linear(hidden, config.attention, bias=False)
        self.energy = nn.Linear(config.attention, 1, bias=False)
        self.first = nn.Linear(annotation, hidden * (2 if lstm else 1))
        self.cell = (nn.LSTMCell if lstm else nn.GRUCell)(config.embedding + annotation, hidden)
        self.readout = nn.Linear(hidden + annotation + config.embedding, config.embedding)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("trained_batches", torch.zeros((), dtype=torch.int64))

    @property
    def most_steps(self) -> int:
        return self.config.most_tokens

    def begin(self, *inputs: Tensor) -> tuple[Memory, Search]:
        """source (batch, source) int64 and lengths (batch, 1), to what every step of the search looks at and its start.

        Numbers that are no subword's are read as UNKNOWN: they harm nobody else in the batch.
        """
        source, lengths = inputs
        known = (source >= 0) & (source < self.config.vocabulary)
        memory, state = self.encode(torch.where(known, source, UNKNOWN), lengths)
        state = State(self._for_each_hypothesis(state.hidden))
        return (
            Memory(*(self._for_each_hypothesis(tensor) for tensor in memory)),
            beam_search.begin(state, self.config.beam, self.config.most_tokens),
        )

    def repeat(self, position: Tensor, carried: Search, fixed: Memory) -> tuple[Search, Tensor]:
        """The next word of every hypothesis, by ``step``."""
        return beam_search.advance(
            lambda tokens, state: self.step(tokens, state, fixed), carried, position, self.config.length_alpha
        )

    def finish(self, carried: Search) -> tuple[Tensor, ...]:
        """The best translation that the beam has found.

        Returns tokens (batch, most_tokens) int64 up to END and PADDING after, output_lengths (batch, 1) int64, END
        included, and score (batch, 1): the log-probability over its length penalty.
        """
        found = carried.beam.best
        return found.tokens, found.lengths.unsqueeze(1), found.scores.unsqueeze(1)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """source (batch, source) and lengths (batch, 1), to what every step looks at and the state of the first.

        A length beyond the width counts as the width; one of 0 gives an answer that means nothing, but to no one else.
        """
        positions = torch.arange(source.shape[1], device=source.device).unsqueeze(0)
        lengths = torch.minimum(lengths.to(torch.int64), positions[:, -1:] + 1)
        mask = positions < lengths
        mirror = torch.where(mask, lengths - 1 - positions, positions)
        onward, _ = self.forwards(self._embed(source))
        mirrored, _ = self.backwards(self._embed(torch.gather(source, 1, mirror)))
        backward = torch.gather(mirrored, 1, mirror.unsqueeze(2).expand(-1, -1, mirrored.shape[2]))
        values = self.dropout(torch.cat([onward, backward], dim=2))
        share = mask.unsqueeze(1).to(values.dtype)
        # A product adds in the same order in any company; ONNX Runtime's ReduceSum does not.
        mean = (share @ values).squeeze(1) / share.sum(2).clamp(min=1)
        return Memory(self.key(values), values, mask), State(torch.tanh(self.first(mean)))

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """tokens (rows,): the words before. Returns logits (rows, vocabulary) of the words to come, and the state."""
        features, state = self.advance(tokens, state, memory)
        return self.logits(features), state

    def advance(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """A step up to its features (rows, embedding), which ``logits`` turns into logits."""
        embedded = self._embed(tokens)
        hidden, cell = state.hidden, state.hidden
        if self.config.cell == "lstm":
            hidden, cell = state.hidden.chunk(2, dim=1)
        energies = self.energy(torch.tanh(self.query(hidden).unsqueeze(1) + memory.keys)).squeeze(2)
        weights = torch.softmax(energies.masked_fill(~memory.mask, NO_ATTENTION), dim=1)
        context = torch.matmul(weights.unsqueeze(1), memory.values.to(weights.dtype)).squeeze(1)
        entering = torch.cat([embedded, context], dim=1)
        if self.config.cell == "lstm":
            hidden, cell = self.cell(entering, (hidden, cell))
            state = State(torch.cat([hidden, cell], dim=1))
        else:
            hidden = self.cell(entering, hidden)
            state = State(hidden)
        features = torch.tanh(self.readout(torch.cat([hidden, context, embedded], dim=1)))
        return self.dropout(features), state

    def logits(self, features: Tensor) -> Tensor:
        """features (..., embedding) to logits (..., vocabulary)."""
        return nn.functional.linear(features, self.embedding.weight, self.bias)

    def teacher_forced(self, source: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """targets (batch, target), padded: logits (words, vocabulary) for its words that are not padding, in order.

        In training mode some of the words before are the network's own guesses.
        """
        memory, state = self.encode(source, lengths)
        rate = self._sampling_rate()
        before = torch.full_like(targets[:, 0], START)
        features: list[Tensor] = []
        for position in range(targets.shape[1]):
            if position:
                before = targets[:, position - 1]
            if position and rate:
                before = self._sampled(before, features[-1], rate)
            feature, state = self.advance(before, state, memory)
            features.append(feature)
        return self.logits(torch.stack(features, dim=1)[targets != PADDING])

    def _for_each_hypothesis(self, tensor: Tensor) -> Tensor:
        """(batch, ...) to (batch * beam, ...): every row as often as the beam has hypotheses."""
        return tensor.unsqueeze(1).expand(-1, self.config.beam, *[-1] * (tensor.dim() - 1)).flatten(0, 1)

    def _embed(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.dropout(self.embedding(tokens) * self.config.embedding**0.5)
        return vectors

    def _sampling_rate(self) -> float:
        """The share of own guesses in this batch; counts the batch."""
        if not self.training or not self.config.sampling_rate:
            return 0.0
        progress = min(int(self.trained_batches) / self.config.sampling_batches, 1.0)
        self.trained_batches += 1
        return self.config.sampling_rate * progress

    @torch.no_grad()
    def _sampled(self, reference: Tensor, features: Tensor, rate: float) -> Tensor:
        """(rows,): the reference's words, or the best guess from ``features`` (rows, embedding) for some of them."""
        own = torch.nonzero(torch.rand(len(reference)) < rate).squeeze(1)
        mixed: Tensor = reference.index_copy(0, own, self.logits(features[own]).argmax(1))
        return mixed
