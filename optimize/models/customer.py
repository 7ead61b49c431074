"""A customer's value from a review and a clickstream: two Transformer branches that read each other.

    text   -> embedding, positions    -> layers --+--> cross-attention --+--> pooled --+--> tier
    events -> embedding, age and gap  -> layers --+--> cross-attention --+--> pooled --+--> sentiment

``fusion`` says how the branches meet: "cross" (each attends to the other, then both are pooled), "late" (pooled, then
joined), or "text" and "clicks", one branch alone, for comparison. A missing branch, of length 0, is one learned vector.

Events come at uneven times. How old an event is, and how long it came after the one before, are written as ramps
between knots that lie ever further apart (piecewise linear encoding: Gorishniy et al., 2022, https://arxiv.org/abs/2203.05556)
and then multiplied by learned weights: the time embedding is a learned curve, linear between the knots. Time2Vec
(Kazemi et al., 2019, https://arxiv.org/abs/1907.05321) and mTAN (Shukla and Marlin, 2021,
https://arxiv.org/abs/2101.10318) learn sines instead, whose last digits depend on the place in a vector on some
runtimes; ramps need a subtraction, a product and two comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from optimize.errors import UserError
from optimize.models.pretrained import PretrainedEncoder
from optimize.models.transformer import Layer, LayerConfig, mask_of

KNOTS_HOURS = (
    0.0,
    0.02,
    0.1,
    0.5,
    2.0,
    6.0,
    12.0,
    24.0,
    72.0,
    168.0,
    336.0,
    504.0,
    720.0,
    1080.0,
    1440.0,
    2160.0,
    4320.0,
)
RAMPS = len(KNOTS_HOURS) - 1
MANY = 32.0  # events or subwords: the unit of the sum over a branch
UNKNOWN = 1  # of tokens and of event types


@dataclass(frozen=True)
class CustomerConfig:
    """vocabulary, event_types: sizes of the tables. tokens: the longest text. layers: of each branch.

    crossings: pairs of cross-attention layers, of "cross" alone. layer: of all of them. text_encoder: the folder of a
    pretrained encoder that reads the text instead of layers of our own, and text_share: which share of its layers.
    """

    vocabulary: int
    event_types: int
    layer: LayerConfig
    layers: int = 2
    crossings: int = 1
    tokens: int = 64
    tiers: int = 4
    sentiments: int = 3
    fusion: Literal["cross", "late", "text", "clicks"] = "cross"
    text_encoder: str = ""
    text_share: float = 1.0

    def __post_init__(self) -> None:
        if self.fusion not in ("cross", "late", "text", "clicks"):
            raise UserError(f"fusion is '{self.fusion}'; expected 'cross', 'late', 'text' or 'clicks'")
        if min(self.vocabulary, self.event_types, self.tokens, self.tiers, self.sentiments) < 2 or self.layers < 1:
            raise UserError(f"{self}: tables and classes need at least 2 entries, branches at least 1 layer")


class Sequence(NamedTuple):
    """x (batch, time, width), meant (batch, time), at least one of a row, and the mask of attention to them."""

    x: Tensor
    meant: Tensor
    mask: Tensor


class CustomerModel(nn.Module):
    """Review and clicks to the probabilities of every tier and sentiment."""

    def __init__(self, config: CustomerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.layer.width
        reads = {"text": ["text"], "clicks": ["clicks"]}.get(config.fusion, ["text", "clicks"])
        branch = PretrainedTextBranch if config.text_encoder else TextBranch
        self.text = branch(config) if "text" in reads else None
        self.clicks = ClickBranch(config) if "clicks" in reads else None
        crossings = config.crossings if config.fusion == "cross" else 0
        self.to_clicks = nn.ModuleList(Layer(config.layer, crossing=True) for _ in range(crossings))
        self.to_text = nn.ModuleList(Layer(config.layer, crossing=True) for _ in range(crossings))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in reads)
        self.joined = nn.Sequential(
            nn.Linear(2 * width * len(reads), 2 * width), nn.GELU(), nn.Dropout(config.layer.dropout)
        )
        self.tier = nn.Linear(2 * width, config.tiers)
        self.sentiment = nn.Linear(2 * width, config.sentiments)

    def forward(
        self, text: Tensor, text_lengths: Tensor, events: Tensor, ages: Tensor, event_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probabilities of tiers (batch, tiers) and sentiments (batch, sentiments); for the inputs see ``logits``."""
        tier, sentiment = self.logits(text, text_lengths, events, ages, event_lengths)
        return torch.softmax(tier, dim=1), torch.softmax(sentiment, dim=1)

    def logits(
        self, text: Tensor, text_lengths: Tensor, events: Tensor, ages: Tensor, event_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of tiers (batch, tiers) and of sentiments (batch, sentiments).

        text (batch, tokens) int64, events (batch, events) int64 and ages (batch, events) hours, oldest first; lengths
        (batch, 1). Numbers of no table are read as unknown, lengths beyond the width as the width, ages that are
        negative or none as 0: they harm nobody else in the batch.
        """
        branches: list[Sequence] = []
        if self.text is not None:
            branches.append(self.text(text, text_lengths))
        if self.clicks is not None:
            branches.append(self.clicks(events, ages, event_lengths))
        for to_clicks, to_text in zip(self.to_clicks, self.to_text, strict=True):
            read, clicked = branches
            branches = [
                read._replace(x=to_clicks(read.x, clicked.x, clicked.mask)),
                clicked._replace(x=to_text(clicked.x, read.x, read.mask)),
            ]
        pooled = [pool(norm(each.x), each.meant) for norm, each in zip(self.norms, branches, strict=True)]
        joined = self.joined(torch.cat(pooled, dim=1))
        return self.tier(joined), self.sentiment(joined)


class TextBranch(nn.Module):
    def __init__(self, config: CustomerConfig) -> None:
        super().__init__()
        width = config.layer.width
        self.tokens = config.tokens
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.missing = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(Layer(config.layer) for _ in range(config.layers))
        nn.init.normal_(self.embedding.weight, std=0.5)

    def forward(self, text: Tensor, lengths: Tensor) -> Sequence:
        """text (batch, tokens), lengths (batch, 1)."""
        places = torch.arange(text.shape[1], device=text.device).clamp(max=self.tokens - 1)
        x = self.embedding(known(text, self.embedding.num_embeddings)) + self.positions[places]
        return through(self.layers, present(x, lengths, self.missing))


class PretrainedTextBranch(nn.Module):
    def __init__(self, config: CustomerConfig) -> None:
        super().__init__()
        self.encoder = PretrainedEncoder(Path(config.text_encoder), config.text_share, config.tokens)
        self.output = nn.Linear(self.encoder.width, config.layer.width)
        self.missing = nn.Parameter(0.02 * torch.randn(config.layer.width))

    def forward(self, text: Tensor, lengths: Tensor) -> Sequence:
        """text (batch, tokens), lengths (batch, 1)."""
        places = torch.arange(text.shape[1], device=text.device).unsqueeze(0)
        features = self.encoder(text, places < lengths.clamp(min=1))
        return present(self.output(features), lengths, self.missing)


class ClickBranch(nn.Module):
    knots: Tensor
    steepness: Tensor

    def __init__(self, config: CustomerConfig) -> None:
        super().__init__()
        width = config.layer.width
        self.embedding = nn.Embedding(config.event_types, width)
        self.time = nn.Linear(2 * RAMPS, width)
        self.missing = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(Layer(config.layer) for _ in range(config.layers))
        knots = torch.tensor(KNOTS_HOURS)
        self.register_buffer("knots", knots[:-1])
        self.register_buffer("steepness", 1 / knots.diff())
        nn.init.normal_(self.embedding.weight, std=0.5)

    def forward(self, events: Tensor, ages: Tensor, lengths: Tensor) -> Sequence:
        """events and ages (batch, events), lengths (batch, 1)."""
        ages = torch.where(ages >= 0, ages, 0.0).clamp(max=KNOTS_HOURS[-1])
        gaps = torch.cat([ages[:, :1], ages[:, :-1]], dim=1) - ages
        time = self.time(torch.cat([self.ramps(ages), self.ramps(gaps)], dim=2))
        x = self.embedding(known(events, self.embedding.num_embeddings)) + time
        return through(self.layers, present(x, lengths, self.missing))

    def ramps(self, hours: Tensor) -> Tensor:
        """hours (batch, events) to (batch, events, ramps): from 0 at a knot to 1 at the next."""
        return ((hours.unsqueeze(2) - self.knots) * self.steepness).clamp(0.0, 1.0)


def known(numbers: Tensor, size: int) -> Tensor:
    """Numbers of a table of that size, UNKNOWN instead of others."""
    return torch.where((numbers >= 0) & (numbers < size), numbers, UNKNOWN)


def present(x: Tensor, lengths: Tensor, missing: Tensor) -> Sequence:
    """x (batch, time, width), with ``missing`` as the one vector of a sequence of length 0."""
    places = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    empty = lengths <= 0
    x = torch.where((empty & (places == 0)).unsqueeze(2), missing, x)
    meant = places < lengths.clamp(min=1)
    return Sequence(x, meant, mask_of(meant))


def through(layers: nn.ModuleList, sequence: Sequence) -> Sequence:
    """The layers one after the other."""
    for layer in layers:
        sequence = sequence._replace(x=layer(sequence.x, sequence.mask))
    return sequence


def pool(x: Tensor, meant: Tensor) -> Tensor:
    """x (batch, time, width) to (batch, 2 width): the mean says what there is, the sum also how much.

    The sum is a product, which adds in the same order in any company; ReduceSum does not.
    """
    share = meant.unsqueeze(1).to(x.dtype)
    total = (share @ x).squeeze(1)
    return torch.cat([total / share.sum(2), total / MANY], dim=1)
