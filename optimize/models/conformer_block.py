"""One block of the Conformer, Gulati et al. (2020), for frames that come with caches of what was before them.

It differs from the paper: LayerNorm instead of batch normalisation; positions are a learned bias for every head and
distance, one table for all blocks (Raffel et al., 2020), which costs nothing since it is added to the mask; the halves
of the feed-forward residuals are left to the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from optimize.errors import UserError
from optimize.models.frontend import FrontEndConfig

CHUNK_FRAMES = (4, 8, 16)  # the chunk sizes of training: 160, 320 and 640 ms
MASKED = -3e4  # added to a score that must not count: exp() of it is 0, and half precision can hold it


@dataclass(frozen=True)
class ConformerConfig:
    """layers, width (a multiple of 16 for every head), heads, feed_forward: inner width.

    kernel: frames that a convolution sees. left_context: frames before the chunk that attention sees. chunk: frames
    of a chunk when whole utterances are evaluated. vocabulary: words, the blank included. dropout: in training only.
    """

    layers: int
    width: int
    heads: int
    feed_forward: int
    kernel: int = 9
    left_context: int = 32
    chunk: int = 8
    vocabulary: int = 11
    dropout: float = 0.1
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.feed_forward, self.chunk, self.left_context) < 1:
            raise UserError(f"{self}: every size must be positive")
        if self.width % (16 * self.heads) or self.feed_forward % 16:
            raise UserError(f"{self}: the width of a head and feed_forward must be multiples of 16")
        if self.kernel < 2 or self.chunk > max(CHUNK_FRAMES) or self.vocabulary < 2:
            raise UserError(
                f"{self}: expected kernel and vocabulary of at least 2, chunk of at most {CHUNK_FRAMES[-1]}"
            )


class ConformerBlock(nn.Module):
    """Feed-forward, attention, convolution, feed-forward, each added to what it was given.

    At first they add little, so that a deep stack learns from the first step (as ReZero: Bachlechner et al., 2020).
    At a learning rate of 1.5e-3, eight layers reached a loss in one epoch that they had not reached in five without.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.feed_forward_1 = _feed_forward(config)
        self.attention = ChunkAttention(config)
        self.convolution = CausalConvolution(config)
        self.feed_forward_2 = _feed_forward(config)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        for last in (self.feed_forward_1[-1], self.attention.output, self.convolution.output, self.feed_forward_2[-1]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.bias)
            with torch.no_grad():
                last.weight.mul_(0.1)

    def forward(
        self, x: Tensor, bias: Tensor, key_cache: Tensor, value_cache: Tensor, convolution_cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (batch, frames, width) to the same, and what the caches gain: keys, values, convolution inputs."""
        x = x + self.dropout(self.feed_forward_1(x))
        attended, keys, values = self.attention(x, bias, key_cache, value_cache)
        x = x + self.dropout(attended)
        mixed, convolved = self.convolution(x, convolution_cache)
        x = x + self.dropout(mixed)
        x = x + self.dropout(self.feed_forward_2(x))
        return self.norm(x), keys, values, convolved


class ChunkAttention(nn.Module):
    """Multi-head attention of the new frames to the cached frames and to each other, under a bias."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads, self.head = config.heads, config.width // config.heads
        self.norm = nn.LayerNorm(config.width)
        self.queries_keys_values = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, bias: Tensor, key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, frames, width), bias (batch, heads, frames, keys), caches (batch, heads, left_context, head)."""
        frames = int(x.shape[1])
        projected = self.queries_keys_values(self.norm(x)).reshape(-1, frames, 3 * self.heads, self.head)
        queries, keys, values = torch.split(projected.transpose(1, 2), self.heads, dim=1)
        scores = (queries * self.head**-0.5) @ torch.cat([key_cache, keys], dim=2).transpose(2, 3) + bias
        attended = torch.softmax(scores, dim=-1) @ torch.cat([value_cache, values], dim=2)
        return self.output(attended.transpose(1, 2).reshape(-1, frames, self.heads * self.head)), keys, values


class CausalConvolution(nn.Module):
    """The Conformer's convolution module; the depthwise convolution sees this frame and ``kernel - 1`` before.

    It is written as that of a picture one pixel high: ONNX Runtime 1.31 has a vectorised depthwise kernel for two
    dimensions only. With its transposes, 8 frames of 96 or 144 channels: 9-12 -> 4 us alone, 56-79 -> 9-15 us for 8.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.gate = nn.Linear(config.width, 2 * config.width)
        self.depthwise = nn.Conv2d(config.width, config.width, (1, config.kernel), groups=config.width)
        self.norm_inner = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, frames, width) and cache (batch, kernel - 1, width)."""
        new = nn.functional.glu(self.gate(self.norm(x)), dim=-1)
        seen = torch.cat([cache, new], dim=1)
        mixed = self.depthwise(seen.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        return self.output(nn.functional.silu(self.norm_inner(mixed))), new


class RelativePositions(nn.Module):
    """What every head thinks of a distance in frames, and the mask of what a chunk may see."""

    def __init__(self, heads: int, left_context: int) -> None:
        super().__init__()
        self.left_context, self.future = left_context, max(CHUNK_FRAMES) - 1
        self.table = nn.Parameter(torch.zeros(heads, left_context + 2 * self.future + 1))

    def forward(self, frames: int, chunk: int) -> Tensor:
        """(heads, frames, left_context + frames), ready to be added to the scores of queries by keys."""
        query = torch.arange(frames, device=self.table.device)[:, None]
        key = torch.arange(-self.left_context, frames, device=self.table.device)[None]
        start = query // chunk * chunk
        seen = (key >= start - self.left_context) & (key < start + chunk)
        distance = (query - key).clamp(-self.future, self.left_context + self.future)
        return torch.where(seen, self.table[:, distance + self.future], MASKED)


def _feed_forward(config: ConformerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(config.width),
        nn.Linear(config.width, config.feed_forward),
        nn.SiLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.feed_forward, config.width),
    )
