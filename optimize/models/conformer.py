"""A streaming Conformer: PCM in chunks to words, exactly as the whole recording would have given them.

    outputs = model(pcm, lengths)                           # whole utterances, padded
    state = model.initial_state(batch)
    outputs, state = model.forward_chunk(pcm, lengths, state)

Both calls are ``_advance``: a chunk is a short recording that has a past, and a recording is a long chunk whose mask
keeps every frame from looking beyond the end of its own chunk. A frame is 40 ms. It attends to all frames of its chunk
and to the ``left_context`` frames before the chunk; convolutions look back only. So nothing looks ahead of
the chunk, and the end of a recording needs no flush.

``speech_encoder`` tells the interface, and what is before and after the blocks. Only the last chunk of a recording may
be short; were the stream to go on after it, the gap would count as frames that nobody may attend to.

The encoder is that of Gulati et al. (2020), see ``conformer_block``, trained with chunks of changing size as in Zhang
et al. (2020).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from optimize.models.conformer_block import CHUNK_FRAMES, MASKED, ConformerBlock, ConformerConfig, RelativePositions
from optimize.models.speech_encoder import (
    FRAME_SAMPLES,
    CTCOutputs,
    SpeechEncoder,
    check_chunk,
    features_spec,
    pad_to_chunks,
    samples_spec,
    token_spec,
    trim_to_samples,
    zeros,
)
from optimize.specs import StateSpec


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


class Conformer(SpeechEncoder):
    """Front end, subsampling to frames of 40 ms, Conformer blocks, output."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config.front_end, config.width)
        self.config = config
        self.positions = RelativePositions(config.heads, config.left_context)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))
        self.output = nn.Linear(config.width, config.vocabulary)

    def initial_state(self, batch_size: int) -> ConformerState:
        """The state of streams that have heard nothing: zeros."""
        return ConformerState(*zeros(state_specs(self.config), batch_size, self.output.weight.device))

    def forward(self, pcm: Tensor, lengths: Tensor) -> CTCOutputs:
        """Whole utterances, pcm (batch, samples) int16 and lengths (batch, 1) in samples.

        In training, each call draws one of the chunk sizes; else it is the configuration's. The answer has a frame for
        every 640 samples begun, whatever the chunk.
        """
        chunk = self.config.chunk
        if self.training:
            chunk = CHUNK_FRAMES[int(torch.randint(len(CHUNK_FRAMES), ()))]
        outputs, _ = self._advance(pad_to_chunks(pcm, chunk), lengths, self.initial_state(pcm.shape[0]), chunk)
        return trim_to_samples(outputs, pcm)

    def forward_chunk(self, pcm: Tensor, lengths: Tensor, state: ConformerState) -> tuple[CTCOutputs, ConformerState]:
        """One chunk of every stream, pcm (batch, samples) int16 and lengths (batch, 1), and the states.

        Raises UserError: samples are no whole number of frames, or more than the longest chunk.
        """
        samples = int(pcm.shape[1])
        check_chunk(samples, max(CHUNK_FRAMES))
        return self._advance(pcm, lengths, state, samples // FRAME_SAMPLES)

    def _advance(
        self, pcm: Tensor, lengths: Tensor, state: ConformerState, chunk: int
    ) -> tuple[CTCOutputs, ConformerState]:
        """(batch, frames * 640) samples, to be seen in chunks of ``chunk`` frames."""
        frames = self.hear(pcm, lengths, state.samples, state.features)
        x = self.subsampling(frames.features)

        valid = torch.cat([state.valid, frames.heard.float()], dim=1)
        bias = self.positions(int(x.shape[1]), chunk) + ((1 - valid) * MASKED)[:, None, None]
        attention, convolution = [], []
        attention_caches = torch.split(state.attention, self.config.heads, dim=1)
        convolution_caches = torch.split(state.convolution, self.config.width, dim=2)
        caches = zip(attention_caches[::2], attention_caches[1::2], convolution_caches, strict=True)
        for block, cache in zip(self.blocks, caches, strict=True):
            x, keys, values, convolved = block(x, bias, *cache)
            attention += [keys, values]
            convolution.append(convolved)

        outputs, token = self.recognise(x, frames.heard, state.token)
        return outputs, ConformerState(
            samples=frames.last_samples,
            features=frames.last_features,
            valid=valid[:, -self.config.left_context :],
            attention=_latest(state.attention, torch.cat(attention, dim=1), dim=2),
            convolution=_latest(state.convolution, torch.cat(convolution, dim=2), dim=1),
            token=token,
        )


def state_specs(config: ConformerConfig) -> tuple[StateSpec, ...]:
    """The tensors of ``ConformerState``, in its order, without the batch axis."""
    head = config.width // config.heads
    return (
        samples_spec(),
        features_spec(config.front_end),
        StateSpec("valid", "float32", (config.left_context,)),
        StateSpec("attention", "float32", (config.layers * 2 * config.heads, config.left_context, head)),
        StateSpec("convolution", "float32", (config.kernel - 1, config.layers * config.width)),
        token_spec(),
    )


def _latest(cache: Tensor, new: Tensor, dim: int) -> Tensor:
    """The last frames of cache and new together, as many as the cache holds."""
    capacity, frames = int(cache.shape[dim]), int(new.shape[dim])
    if frames >= capacity:
        return new.narrow(dim, frames - capacity, capacity)
    return torch.cat([cache.narrow(dim, frames, capacity - frames), new], dim=dim)
