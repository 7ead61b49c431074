"""A streaming Conformer: PCM in chunks to words, exactly as the whole recording would have given them.

    outputs = model(pcm, lengths)                           # whole utterances, padded
    state = model.initial_state(batch)
    outputs, state = model.forward_chunk(pcm, lengths, state)

Both calls are ``_advance``: a chunk is a short recording that has a past, and a recording is a long chunk whose mask
keeps every frame from looking beyond the end of its own chunk. A frame is 40 ms. It attends to all frames of its chunk
and to the ``left_context`` frames before the chunk; convolutions look back only. So nothing looks ahead of
the chunk, and the end of a recording needs no flush.

The interface. ``pcm`` is int16 at 16 kHz, a chunk a whole number of frames long. ``lengths`` says how many of its
samples are meant; what follows them is ignored. Only the last chunk of a recording may be short, or even empty; were
the stream to go on after it, the gap would count as frames that nobody may attend to. Of the outputs, the first
``output_lengths`` frames are meant. ``tokens`` holds a word where one is recognised, and 0 elsewhere.

The architecture is Gulati et al. (2020) with these differences. LayerNorm instead of batch normalisation. Positions
are a learned bias for every head and distance, one table for all layers (Raffel et al., 2020): added to the mask, they
cost nothing. The halves of the feed-forward residuals are left to the weights. Chunks: Zhang et al. (2020), dynamic
chunk training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from optimize.errors import UserError
from optimize.models.frontend import HOP, TAIL, FrontEndConfig, LogMel
from optimize.specs import StateSpec

SUBSAMPLING = 4
FRAME_SAMPLES = SUBSAMPLING * HOP  # 640 samples, 40 ms
CHUNK_FRAMES = (4, 8, 16)  # the chunk sizes of training: 160, 320 and 640 ms
MASKED = -3e4  # added to a score that must not count: exp() of it is 0, and half precision can hold it
BLANK = 0


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


class ConformerState(NamedTuple):
    """All that one stream carries from chunk to chunk; zeros at the start.

    samples: (batch, 240) the tail that the next frame overlaps. features: (batch, 1, 4 mels) the last frame's, before
    subsampling. valid: (batch, left_context) 1 for frames in the cache that may be attended to. attention: (batch,
    layers, 2 heads, left_context, head) keys, then values. convolution: (batch, layers, kernel - 1, width).
    token: (batch, 1) int64, the last frame's best label, so that a word across a boundary is given once.
    """

    samples: Tensor
    features: Tensor
    valid: Tensor
    attention: Tensor
    convolution: Tensor
    token: Tensor


class ConformerOutputs(NamedTuple):
    """log_probs: (batch, frames, vocabulary). tokens: (batch, frames) int64, 0 where no new word. output_lengths:
    (batch, 1) int64, how many frames are meant."""

    log_probs: Tensor
    tokens: Tensor
    output_lengths: Tensor


class Conformer(nn.Module):
    """Front end, subsampling to 40 ms, Conformer blocks and a CTC output (Graves et al., 2006), decoded greedily."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = LogMel(config.front_end)
        self.mask_features = FeatureMasks()
        inputs = 2 * SUBSAMPLING * config.front_end.mels  # this frame's features and the last one's
        self.subsampling = nn.Sequential(
            nn.Linear(inputs, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.positions = RelativePositions(config.heads, config.left_context)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))
        self.output = nn.Linear(config.width, config.vocabulary)

    def initial_state(self, batch_size: int) -> ConformerState:
        """The state of streams that have heard nothing: zeros."""
        specs = state_specs(self.config)
        device = self.output.weight.device
        return ConformerState(
            *(torch.zeros(batch_size, *spec.shape, dtype=getattr(torch, spec.dtype), device=device) for spec in specs)
        )

    def forward(self, pcm: Tensor, lengths: Tensor) -> ConformerOutputs:
        """Whole utterances, pcm (batch, samples) int16 and lengths (batch, 1) in samples.

        In training, each call draws one of the chunk sizes; else it is the configuration's.
        """
        chunk = self.config.chunk
        if self.training:
            chunk = CHUNK_FRAMES[int(torch.randint(len(CHUNK_FRAMES), ()))]
        samples = max(int(pcm.shape[1]), 1)
        whole = -(-samples // (chunk * FRAME_SAMPLES)) * chunk * FRAME_SAMPLES
        padded = nn.functional.pad(pcm, (0, whole - int(pcm.shape[1])))
        outputs, _ = self._advance(padded, lengths, self.initial_state(len(pcm)), chunk)
        return outputs

    def forward_chunk(
        self, pcm: Tensor, lengths: Tensor, state: ConformerState
    ) -> tuple[ConformerOutputs, ConformerState]:
        """One chunk of every stream, pcm (batch, samples) int16 and lengths (batch, 1), and the states.

        Raises UserError: samples are no whole number of frames, or more than the longest chunk.
        """
        samples = int(pcm.shape[1])
        if samples % FRAME_SAMPLES or not 0 < samples <= max(CHUNK_FRAMES) * FRAME_SAMPLES:
            raise UserError(
                f"a chunk of {samples} samples: expected a multiple of {FRAME_SAMPLES}, at most "
                f"{max(CHUNK_FRAMES) * FRAME_SAMPLES}; pad it and say in lengths how many are meant"
            )
        return self._advance(pcm, lengths, state, samples // FRAME_SAMPLES)

    def _advance(
        self, pcm: Tensor, lengths: Tensor, state: ConformerState, chunk: int
    ) -> tuple[ConformerOutputs, ConformerState]:
        """(batch, frames * 640) samples, to be seen in chunks of ``chunk`` frames."""
        frames = int(pcm.shape[1]) // FRAME_SAMPLES
        meant = torch.arange(frames * FRAME_SAMPLES, device=pcm.device, dtype=lengths.dtype) < lengths
        samples = torch.cat([state.samples, pcm.float() * (1 / 32768) * meant], dim=1)
        with torch.autocast(pcm.device.type, enabled=False):
            mels = self.mask_features(self.front_end(samples))
        features = torch.cat([state.features, mels.reshape(-1, frames, state.features.shape[2])], dim=1)
        x = self.subsampling(torch.cat([features[:, :-1], features[:, 1:]], dim=2))

        heard = meant[:, ::FRAME_SAMPLES]
        valid = torch.cat([state.valid, heard.float()], dim=1)
        bias = self.positions(frames, chunk) + ((1 - valid) * MASKED)[:, None, None]
        attention, convolution = [], []
        for index, block in enumerate(self.blocks):
            x, keys_values, convolved = block(x, bias, state.attention[:, index], state.convolution[:, index])
            attention.append(keys_values)
            convolution.append(convolved)

        log_probs = torch.log_softmax(self.output(x).float(), dim=-1)
        labels = log_probs.argmax(dim=-1) * heard
        before = torch.cat([state.token, labels[:, :-1]], dim=1)
        outputs = ConformerOutputs(log_probs, labels * (labels != before), heard.sum(dim=1, keepdim=True))
        return outputs, ConformerState(
            samples=samples[:, -TAIL:],
            features=features[:, -1:],
            valid=valid[:, -self.config.left_context :],
            attention=_latest(state.attention, torch.stack(attention, dim=1), dim=3),
            convolution=_latest(state.convolution, torch.stack(convolution, dim=1), dim=2),
            token=labels[:, -1:],
        )


class ConformerBlock(nn.Module):
    """Feed-forward, attention, convolution, feed-forward, each added to what it was given."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.feed_forward_1 = _feed_forward(config)
        self.attention = ChunkAttention(config)
        self.convolution = CausalConvolution(config)
        self.feed_forward_2 = _feed_forward(config)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, bias: Tensor, attention_cache: Tensor, convolution_cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, frames, width) to the same, and what the caches gain: keys and values, convolution inputs."""
        x = x + self.dropout(self.feed_forward_1(x))
        attended, keys_values = self.attention(x, bias, attention_cache)
        x = x + self.dropout(attended)
        mixed, convolved = self.convolution(x, convolution_cache)
        x = x + self.dropout(mixed)
        x = x + self.dropout(self.feed_forward_2(x))
        return self.norm(x), keys_values, convolved


class ChunkAttention(nn.Module):
    """Multi-head attention of the new frames to the cached frames and to each other, under a bias."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads, self.head = config.heads, config.width // config.heads
        self.norm = nn.LayerNorm(config.width)
        self.queries_keys_values = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, bias: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, frames, width), bias (batch, heads, frames, keys), cache (batch, 2 heads, left_context, head)."""
        frames = int(x.shape[1])
        projected = self.queries_keys_values(self.norm(x)).reshape(-1, frames, 3 * self.heads, self.head)
        queries, new = torch.split(projected.transpose(1, 2), [self.heads, 2 * self.heads], dim=1)
        keys, values = torch.split(torch.cat([cache, new], dim=2), self.heads, dim=1)
        scores = (queries * self.head**-0.5) @ keys.transpose(2, 3) + bias
        attended = torch.softmax(scores, dim=-1) @ values
        return self.output(attended.transpose(1, 2).reshape(-1, frames, self.heads * self.head)), new


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


class FeatureMasks(nn.Module):
    """In training, hide bands of frequency and moments of time: SpecAugment (Park et al., 2019)."""

    def __init__(self, bands: int = 2, band_mels: int = 8, moments: int = 3, moment_frames: int = 12) -> None:
        super().__init__()
        self.bands, self.band_mels, self.moments, self.moment_frames = bands, band_mels, moments, moment_frames

    def forward(self, features: Tensor) -> Tensor:
        """(batch, frames, mels), normalised, so that 0 is the mean."""
        if not self.training:
            return features
        batch, frames, mels = features.shape
        hidden = _stretches(batch, mels, self.bands, self.band_mels)[:, None]
        hidden = hidden | _stretches(batch, frames, self.moments, self.moment_frames)[:, :, None]
        return features.masked_fill(hidden, 0.0)


class ConformerStep(nn.Module):
    """``forward_chunk`` with the state as plain arguments and results, in the order of ``state_specs``: for export."""

    def __init__(self, conformer: Conformer) -> None:
        super().__init__()
        self.conformer = conformer

    def forward(self, pcm: Tensor, lengths: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        outputs, next_state = self.conformer.forward_chunk(pcm, lengths, ConformerState(*state))
        return (*outputs, *next_state)


def state_specs(config: ConformerConfig) -> tuple[StateSpec, ...]:
    """The tensors of ``ConformerState``, in its order, without the batch axis."""
    head = config.width // config.heads
    return (
        StateSpec("samples", "float32", (TAIL,)),
        StateSpec("features", "float32", (1, SUBSAMPLING * config.front_end.mels)),
        StateSpec("valid", "float32", (config.left_context,)),
        StateSpec("attention", "float32", (config.layers, 2 * config.heads, config.left_context, head)),
        StateSpec("convolution", "float32", (config.layers, config.kernel - 1, config.width)),
        StateSpec("token", "int64", (1,)),
    )


def _feed_forward(config: ConformerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(config.width),
        nn.Linear(config.width, config.feed_forward),
        nn.SiLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.feed_forward, config.width),
    )


def _latest(cache: Tensor, new: Tensor, dim: int) -> Tensor:
    """The last frames of cache and new together, as many as the cache holds."""
    capacity, frames = int(cache.shape[dim]), int(new.shape[dim])
    if frames >= capacity:
        return new.narrow(dim, frames - capacity, capacity)
    return torch.cat([cache.narrow(dim, frames, capacity - frames), new], dim=dim)


def _stretches(batch: int, size: int, count: int, longest: int) -> Tensor:
    """(batch, size) true inside ``count`` random stretches of up to ``longest``."""
    length = torch.randint(longest + 1, (batch, count, 1))
    start = (torch.rand(batch, count, 1) * (size - length)).long()
    place = torch.arange(size)
    return ((place >= start) & (place < start + length)).any(dim=1)
