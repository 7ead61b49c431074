"""A recurrent speech encoder, LSTM or GRU: PCM in chunks to words, exactly as the whole recording would have given.

    outputs = model(pcm, lengths)                           # whole utterances, padded
    state = model.initial_state(batch)
    outputs, state = model.forward_chunk(pcm, lengths, state)

Both calls are ``_advance``; ``speech_encoder`` tells the interface. A frame is 40 ms and depends on nothing after it,
so chunks may have any number of frames. Every layer adds what it remembers to what it was given:

    x_t  ->  x_t + h_t,  h_t = cell(LayerNorm(x_t), h_{t-1})

LSTM: Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000). GRU: Cho et al. (2014), the reset gate
after the product, as cuDNN and ``linear_before_reset`` in ONNX have it. The cells are ``nn.LSTM`` and ``nn.GRU``, one
layer each, so that they become one operator each in ONNX.

A bidirectional encoder adds the memory of a second cell, which reads every utterance from its own last frame to the
first (Schuster & Paliwal, 1997; summed as in Amodei et al., 2016). It hears the future, so it answers whole utterances
only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from optimize.errors import UserError
from optimize.models.frontend import FrontEndConfig
from optimize.models.speech_encoder import (
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

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True)
class RecurrentConfig:
    """cell: "lstm" or "gru". width: of every layer, a multiple of 16. bidirectional: hears the future, never streams.

    vocabulary: words, the blank included. dropout: of what every layer adds, in training only.
    """

    cell: str
    layers: int
    width: int
    bidirectional: bool = False
    vocabulary: int = 11
    dropout: float = 0.0
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise UserError(f"{self}: no cell '{self.cell}'; choose from {', '.join(CELLS)}")
        if self.layers < 1 or self.width < 16 or self.width % 16 or self.vocabulary < 2:
            raise UserError(
                f"{self}: expected layers of at least 1, width a positive multiple of 16, vocabulary of at least 2"
            )


class LSTMState(NamedTuple):
    """All that one stream carries from chunk to chunk; zeros at the start.

    samples: (batch, 240) the tail that the next frame overlaps. features: (batch, 1, 4 mels) the last frame's, before
    subsampling. hidden, cell: (batch, layers, width). token: (batch, 1) int64, the last frame's best label.
    """

    samples: Tensor
    features: Tensor
    hidden: Tensor
    cell: Tensor
    token: Tensor


class GRUState(NamedTuple):
    """``LSTMState`` without a cell."""

    samples: Tensor
    features: Tensor
    hidden: Tensor
    token: Tensor


RecurrentState = LSTMState | GRUState


class RecurrentEncoder(SpeechEncoder):
    """Front end, subsampling to frames of 40 ms, recurrent layers, output."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config.front_end, config.width)
        self.config = config
        self.layers = nn.ModuleList(RecurrentLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.vocabulary)

    def initial_state(self, batch_size: int) -> RecurrentState:
        """The state of streams that have heard nothing: zeros."""
        tensors = zeros(state_specs(self.config), batch_size, self.output.weight.device)
        return LSTMState(*tensors) if self.config.cell == "lstm" else GRUState(*tensors)

    def forward(self, pcm: Tensor, lengths: Tensor) -> CTCOutputs:
        """Whole utterances, pcm (batch, samples) int16 and lengths (batch, 1) in samples."""
        outputs, _ = self._advance(pad_to_chunks(pcm, 1), lengths, self.initial_state(pcm.shape[0]))
        return trim_to_samples(outputs, pcm)

    def forward_chunk(self, pcm: Tensor, lengths: Tensor, state: RecurrentState) -> tuple[CTCOutputs, RecurrentState]:
        """One chunk of every stream, pcm (batch, samples) int16 and lengths (batch, 1), and the states.

        Raises UserError: samples are no whole number of frames, or the encoder is bidirectional.
        """
        if self.config.bidirectional:
            raise UserError(
                f"{self.config} hears the future and cannot answer a chunk before the rest is there; "
                "give it whole utterances, or stream with bidirectional=False"
            )
        check_chunk(int(pcm.shape[1]))
        return self._advance(pcm, lengths, state)

    def _advance(self, pcm: Tensor, lengths: Tensor, state: RecurrentState) -> tuple[CTCOutputs, RecurrentState]:
        """(batch, frames * 640) samples. Inside the layers, time comes first, as the ONNX operators want it."""
        frames = self.hear(pcm, lengths, state.samples, state.features)
        x = self.subsampling(frames.features).transpose(0, 1)
        backwards = _backwards(frames.heard) if self.config.bidirectional else None
        parts = (state.hidden, state.cell) if isinstance(state, LSTMState) else (state.hidden,)
        memories = zip(*(torch.split(part.transpose(0, 1), 1) for part in parts), strict=True)
        remembered = []
        for layer, memory in zip(self.layers, memories, strict=True):
            x, after = layer(x, memory, backwards)
            remembered.append(after)
        outputs, token = self.recognise(self.norm(x).transpose(0, 1), frames.heard, state.token)
        hidden, *cell = (torch.cat(part).transpose(0, 1) for part in zip(*remembered, strict=True))
        if isinstance(state, LSTMState):
            return outputs, LSTMState(frames.last_samples, frames.last_features, hidden, cell[0], token)
        return outputs, GRUState(frames.last_samples, frames.last_features, hidden, token)


class RecurrentLayer(nn.Module):
    """x + cell(norm(x)), or the sum with a second cell that reads backwards."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.cell = CELLS[config.cell](config.width, config.width)
        self.backward_cell = CELLS[config.cell](config.width, config.width) if config.bidirectional else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, memory: tuple[Tensor, ...], backwards: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (frames, batch, width); memory (1, batch, width), one for a GRU and two for an LSTM; what they become.

        backwards: (frames, batch), for every frame the one that takes its place when the utterance is turned round.
        """
        inputs = self.norm(x)
        heard, after = _run(self.cell, inputs, memory)
        if self.backward_cell is not None:
            assert backwards is not None
            places = backwards[:, :, None].expand_as(inputs)
            future, _ = _run(self.backward_cell, inputs.gather(0, places), tuple(map(torch.zeros_like, memory)))
            heard = heard + future.gather(0, places)
        return x + self.dropout(heard), after


def state_specs(config: RecurrentConfig) -> tuple[StateSpec, ...]:
    """The tensors of ``LSTMState`` or ``GRUState``, in its order, without the batch axis."""
    remembered = ("hidden", "cell") if config.cell == "lstm" else ("hidden",)
    return (
        samples_spec(),
        features_spec(config.front_end),
        *(StateSpec(what, "float32", (config.layers, config.width)) for what in remembered),
        token_spec(),
    )


def _run(cell: nn.Module, x: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """An LSTM or a GRU of one layer over x (frames, batch, width)."""
    if isinstance(cell, nn.LSTM):
        hidden, after = cell(x, (memory[0], memory[1]))
        return hidden, after
    hidden, last = cell(x, memory[0])
    return hidden, (last,)


def _backwards(heard: Tensor) -> Tensor:
    """(frames, batch): row by row the meant frames in reverse, then the others, each in its place.

    A gather instead of a packed sequence: it says the same in ONNX and for every batch.
    """
    places = torch.arange(heard.shape[1], device=heard.device)
    return torch.where(heard, heard.sum(dim=1, keepdim=True) - 1 - places, places).transpose(0, 1)
