"""Transformer layers for padded sequences, attending to their own or to another one (Vaswani et al., 2017,
https://arxiv.org/abs/1706.03762).

    mask = mask_of(meant)                         # (batch, time), true where a position counts, which one at least does
    x = Layer(config)(x, mask)                    # (batch, time, width)
    x = Layer(config, crossing=True)(x, other, mask_of(other_meant))

The norm comes first (Xiong et al., 2020, https://arxiv.org/abs/2002.04745). Padding changes no answer: its keys get a
weight of exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optimize.errors import UserError

MASKED = -3e4  # added to a score that must not count: exp() of it is 0, and half precision can hold it


@dataclass(frozen=True)
class LayerConfig:
    """width: a multiple of 16 for every head. feed_forward: inner width. dropout: in training only."""

    width: int
    heads: int
    feed_forward: int
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.feed_forward) < 1 or self.width % (16 * self.heads):
            raise UserError(f"{self}: sizes must be positive and the width of a head a multiple of 16")
        if self.feed_forward % 16:
            raise UserError(f"{self}: feed_forward must be a multiple of 16")


class Layer(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: LayerConfig, crossing: bool = False) -> None:
        super().__init__()
        width = config.width
        self.attention = CrossAttention(config) if crossing else SelfAttention(config)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.feed_forward),
            nn.GELU(),
            nn.Linear(config.feed_forward, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *seen: Tensor) -> Tensor:
        """x (batch, time, width); seen: what attention takes besides x. Returns (batch, time, width)."""
        x = x + self.dropout(self.attention(x, *seen))
        answer: Tensor = x + self.dropout(self.feed_forward(x))
        return answer


class SelfAttention(nn.Module):
    """Of every position to all that are meant."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.query, self.key, self.value, self.output = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (batch, time, width), mask (batch, 1, 1, time)."""
        x = self.norm(x)
        attended: Tensor = self.output(attend(self.query(x), self.key(x), self.value(x), mask, self.heads))
        return attended


class CrossAttention(SelfAttention):
    """Of every position to those of another sequence that are meant."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.norm_other = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """x (batch, time, width), other (batch, other time, width), mask (batch, 1, 1, other time)."""
        x, other = self.norm(x), self.norm_other(other)
        attended: Tensor = self.output(attend(self.query(x), self.key(other), self.value(other), mask, self.heads))
        return attended


def mask_of(meant: Tensor) -> Tensor:
    """What is added to the scores: meant (batch, time) bool to (batch, 1, 1, time)."""
    return torch.where(meant, 0.0, MASKED)[:, None, None, :]


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, heads: int) -> Tensor:
    """queries (batch, time, width), keys and values (batch, keys, width), mask (batch, 1, 1, keys); as the queries."""
    batch, width = queries.shape[0], queries.shape[2]
    queries, keys, values = (
        each.reshape(batch, each.shape[1], heads, width // heads).transpose(1, 2) for each in (queries, keys, values)
    )
    scores = (queries * (width // heads) ** -0.5) @ keys.transpose(2, 3)
    weights = torch.softmax(scores + mask, dim=-1)
    return (weights.to(values.dtype) @ values).transpose(1, 2).reshape(batch, queries.shape[2], width)
