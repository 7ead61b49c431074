"""What every speech encoder here has around its layers: PCM to frames of 40 ms, and frames to words.

    frames = self.hear(pcm, lengths, state.samples, state.features)   # features of this frame and the last one
    x = ...self.subsampling(frames.features)...                       # the encoder's own layers, its own state
    outputs, token = self.recognise(x, frames.heard, state.token)

The interface. ``pcm`` is int16 at 16 kHz, a whole number of frames long. ``lengths`` says how many of its samples are
meant; what follows them is ignored. Only the last chunk of a recording may be short, or even empty. Of the outputs, the
first ``output_lengths`` frames are meant. ``tokens`` holds a word where one is recognised, and 0 elsewhere. The output
is CTC (Graves et al., 2006), decoded greedily.

An encoder calls both methods from one function, which a recording and a chunk share: a chunk is a short recording
that has a past, and that past is three tensors here, whatever else the layers remember.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from optimize.errors import UserError
from optimize.models.frontend import HOP, TAIL, FeatureMasks, FrontEndConfig, LogMel
from optimize.specs import StateSpec

SUBSAMPLING = 4
FRAME_SAMPLES = SUBSAMPLING * HOP  # 640 samples, 40 ms
BLANK = 0


class CTCOutputs(NamedTuple):
    """log_probs: (batch, frames, vocabulary). tokens: (batch, frames) int64, 0 where no new word. output_lengths:
    (batch, 1) int64, how many frames are meant."""

    log_probs: Tensor
    tokens: Tensor
    output_lengths: Tensor


class Frames(NamedTuple):
    """features: (batch, frames, 8 mels). heard: (batch, frames), whether a frame has begun before the end. The rest is
    for the next chunk: last_samples (batch, 240), last_features (batch, 1, 4 mels)."""

    features: Tensor
    heard: Tensor
    last_samples: Tensor
    last_features: Tensor


class SpeechEncoder(nn.Module):
    """Front end and subsampling; a subclass adds its layers and, after them, ``output``: width to vocabulary."""

    output: nn.Linear

    def __init__(self, front_end: FrontEndConfig, width: int) -> None:
        super().__init__()
        self.front_end = LogMel(front_end)
        self.mask_features = FeatureMasks()
        inputs = 2 * SUBSAMPLING * front_end.mels  # this frame's features and the last one's
        self.subsampling = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def hear(self, pcm: Tensor, lengths: Tensor, last_samples: Tensor, last_features: Tensor) -> Frames:
        """pcm (batch, frames * 640), lengths (batch, 1) in samples, and what is left of the chunk before."""
        frames = pcm.shape[1] // FRAME_SAMPLES
        meant = torch.arange(frames * FRAME_SAMPLES, device=pcm.device, dtype=lengths.dtype) < lengths
        samples = torch.cat([last_samples, pcm.float() * (1 / 32768) * meant], dim=1)
        with torch.autocast(pcm.device.type, enabled=False):
            mels = self.mask_features(self.front_end(samples))
        features = torch.cat([last_features, mels.reshape(-1, frames, int(last_features.shape[2]))], dim=1)
        return Frames(
            features=torch.cat([features[:, :-1], features[:, 1:]], dim=2),
            heard=meant[:, ::FRAME_SAMPLES],
            last_samples=samples[:, -TAIL:],
            last_features=features[:, -1:],
        )

    def recognise(self, x: Tensor, heard: Tensor, last_token: Tensor) -> tuple[CTCOutputs, Tensor]:
        """x (batch, frames, width) and the best label (batch, 1) of the frame before to the outputs and that of now.

        A label that lasts is one word, across the boundary of chunks too.
        """
        log_probs = torch.log_softmax(self.output(x).float(), dim=-1)
        labels = log_probs.argmax(dim=-1) * heard
        before = torch.cat([last_token, labels[:, :-1]], dim=1)
        outputs = CTCOutputs(log_probs, labels * (labels != before), heard.sum(dim=1, keepdim=True))
        return outputs, labels[:, -1:]


def samples_spec() -> StateSpec:
    """The tail that the next frame overlaps."""
    return StateSpec("samples", "float32", (TAIL,))


def features_spec(front_end: FrontEndConfig) -> StateSpec:
    """The last frame's, before subsampling."""
    return StateSpec("features", "float32", (1, SUBSAMPLING * front_end.mels))


def token_spec() -> StateSpec:
    """The last frame's best label."""
    return StateSpec("token", "int64", (1,))


def zeros(specs: Iterable[StateSpec], batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
    """The state of streams that have heard nothing, (batch, ...) each."""
    return tuple(
        torch.zeros(batch_size, *spec.shape, dtype=getattr(torch, spec.dtype), device=device) for spec in specs
    )


def pad_to_chunks(pcm: Tensor, chunk: int) -> Tensor:
    """pcm (batch, samples), silent up to the end of its last chunk of ``chunk`` frames; one chunk at least.

    Sizes stay what they are here and below, so that a graph of whole recordings takes any number of samples.
    """
    samples, size = pcm.shape[1], chunk * FRAME_SAMPLES
    if not torch.onnx.is_in_onnx_export() and samples and not samples % size:
        return pcm
    missing = -samples % size if torch.onnx.is_in_onnx_export() or samples else size
    return torch.cat([pcm, pcm.new_zeros(pcm.shape[0], missing)], dim=1)


def trim_to_samples(outputs: CTCOutputs, pcm: Tensor) -> CTCOutputs:
    """A frame for every 640 of pcm's samples begun, and one at least: what padding to whole chunks added is dropped."""
    samples = pcm.shape[1]
    frames = (samples - 1) // FRAME_SAMPLES + 1 if torch.onnx.is_in_onnx_export() or samples else 1
    return outputs._replace(log_probs=outputs.log_probs[:, :frames], tokens=outputs.tokens[:, :frames])


def check_chunk(samples: int, most_frames: int | None = None) -> None:
    """Raises UserError: samples are no whole number of frames, or more than the longest chunk."""
    most = most_frames * FRAME_SAMPLES if most_frames else samples
    if samples % FRAME_SAMPLES or not 0 < samples <= most:
        limit = f", at most {most}" if most_frames else ""
        raise UserError(
            f"a chunk of {samples} samples: expected a multiple of {FRAME_SAMPLES}{limit}; "
            "pad it and say in lengths how many are meant"
        )
