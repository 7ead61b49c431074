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

The encoder is that of Gulati et al. (2020), see ``conformer_block``, trained with chunks of changing size as in Zhang
et al. (2020); the output is CTC (Graves et al., 2006), decoded greedily.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from optimize.errors import UserError
from optimize.models.conformer_block import CHUNK_FRAMES, MASKED, ConformerBlock, ConformerConfig, RelativePositions
from optimize.models.frontend import HOP, TAIL, FeatureMasks, LogMel
from optimize.specs import StateSpec

SUBSAMPLING = 4
FRAME_SAMPLES = SUBSAMPLING * HOP  # 640 samples, 40 ms
BLANK = 0


class ConformerState(NamedTuple):
    """All that one stream carries from chunk to chunk; zeros at the start.

    samples: (batch, 240) the tail that the next frame overlaps. features: (batch, 1, 4 mels) the last frame's, before
    subsampling. valid: (batch, left_context) 1 for frames in the cache that may be attended to. attention: (batch,
    layers * 2 heads, left_context, head) keys and values of every layer. convolution: (batch, kernel - 1,
    layers * width). token: (batch, 1) int64, the last frame's best label, so that a word across a boundary is given
    once. The layers lie side by side in one tensor: one Split and one Concat, whatever their number.
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
    """Front end, subsampling to frames of 40 ms, Conformer blocks, output."""

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
        features = torch.cat([state.features, mels.reshape(-1, frames, int(state.features.shape[2]))], dim=1)
        x = self.subsampling(torch.cat([features[:, :-1], features[:, 1:]], dim=2))

        heard = meant[:, ::FRAME_SAMPLES]
        valid = torch.cat([state.valid, heard.float()], dim=1)
        bias = self.positions(frames, chunk) + ((1 - valid) * MASKED)[:, None, None]
        attention, convolution = [], []
        attention_caches = torch.split(state.attention, 2 * self.config.heads, dim=1)
        convolution_caches = torch.split(state.convolution, self.config.width, dim=2)
        for block, *caches in zip(self.blocks, attention_caches, convolution_caches, strict=True):
            x, keys_values, convolved = block(x, bias, *caches)
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
            attention=_latest(state.attention, torch.cat(attention, dim=1), dim=2),
            convolution=_latest(state.convolution, torch.cat(convolution, dim=2), dim=1),
            token=labels[:, -1:],
        )


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
        StateSpec("attention", "float32", (config.layers * 2 * config.heads, config.left_context, head)),
        StateSpec("convolution", "float32", (config.kernel - 1, config.layers * config.width)),
        StateSpec("token", "int64", (1,)),
    )


def _latest(cache: Tensor, new: Tensor, dim: int) -> Tensor:
    """The last frames of cache and new together, as many as the cache holds."""
    capacity, frames = int(cache.shape[dim]), int(new.shape[dim])
    if frames >= capacity:
        return new.narrow(dim, frames - capacity, capacity)
    return torch.cat([cache.narrow(dim, frames, capacity - frames), new], dim=dim)
