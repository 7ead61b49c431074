"""From PCM samples to normalised log-mel features, in a form that a graph can hold and a stream can cut.

One strided convolution is framing, window and Fourier transform at once: its 400-sample kernels are sines and
cosines under a Hann window, with the frame's mean removed and the treble raised before that, since both are linear.
Squares, a matrix of triangular mel filters and a logarithm follow. Only the telephone band is looked at, so that
recordings of any bandwidth look alike. Frames are causal: frame t ends with sample 160 (t + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.errors import UserError

SAMPLE_RATE_HZ = 16_000
WINDOW, HOP = 400, 160  # samples: 25 ms every 10 ms
TAIL = WINDOW - HOP  # samples that the first frame of a chunk borrows from the chunk before
PRE_EMPHASIS = 0.97
POWER_FLOOR = 1e-6  # a little above the noise of 16-bit rounding, so that digital silence is nothing special


@dataclass(frozen=True)
class FrontEndConfig:
    """bins: frequencies of the Fourier transform, evenly up to 4 kHz. mels: filters between low_hz and high_hz."""

    bins: int = 128
    mels: int = 48
    low_hz: float = 60.0
    high_hz: float = 3_800.0

    def __post_init__(self) -> None:
        if self.bins < 16 or self.bins % 16 or self.mels < 16 or self.mels % 16:
            raise UserError(f"{self}: bins and mels must be positive multiples of 16")
        if not 0 <= self.low_hz < self.high_hz <= SAMPLE_RATE_HZ / 4:
            raise UserError(f"{self}: expected 0 <= low_hz < high_hz <= {SAMPLE_RATE_HZ // 4}")


class LogMel(nn.Module):
    """Log-mel energies, normalised by constants that were measured on training data, never on the utterance."""

    kernels: Tensor
    filters: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.register_buffer("kernels", torch.from_numpy(fourier_kernels(config.bins)), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(config)), persistent=False)
        self.register_buffer("mean", torch.zeros(config.mels))
        self.register_buffer("scale", torch.ones(config.mels))

    def normalise(self, samples: Tensor) -> None:
        """Take the constants from training audio (items, samples) in [-1, 1]."""
        self.mean.zero_()
        self.scale.fill_(1)
        energies = self(samples).flatten(0, 1)
        self.mean.copy_(energies.mean(0))
        self.scale.copy_(energies.std(0))

    def forward(self, samples: Tensor) -> Tensor:
        """(batch, 240 + 160 frames) in [-1, 1], the first 240 from the chunk before, to (batch, frames, mels)."""
        spectrum = nn.functional.conv1d(samples.unsqueeze(1), self.kernels, stride=HOP).transpose(1, 2)
        energies = torch.log(spectrum.square() @ self.filters + POWER_FLOOR)
        return (energies - self.mean) / self.scale


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


def fourier_kernels(bins: int) -> NDArray[np.float32]:
    """(2 bins, 1, 400): real parts, then imaginary ones, of mean removal, pre-emphasis, Hann window and DFT."""
    time = np.arange(WINDOW)
    centre = np.eye(WINDOW) - 1 / WINDOW
    emphasis = np.eye(WINDOW) - PRE_EMPHASIS * np.eye(WINDOW, k=-1)
    emphasis[0, 0] = 1 - PRE_EMPHASIS  # the sample before the first is taken to be equal to it
    phase = 2 * np.pi * np.outer(_frequencies_hz(bins) / SAMPLE_RATE_HZ, time)
    waves = np.concatenate([np.cos(phase), np.sin(phase)]) * np.hanning(WINDOW)
    kernels: NDArray[np.float32] = (waves @ emphasis @ centre).astype(np.float32)
    return kernels[:, None]


def mel_filters(config: FrontEndConfig) -> NDArray[np.float32]:
    """(2 bins, mels): triangles evenly spaced in mel (O'Shaughnessy, 1987), none narrower than the bins are apart."""
    mels = np.linspace(_mel(config.low_hz), _mel(config.high_hz), config.mels + 2)
    edges = 700 * (np.exp(mels / 1127) - 1)
    frequencies = _frequencies_hz(config.bins)
    step = frequencies[1] - frequencies[0]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rise = 1 - (centre - frequencies[:, None]) / np.maximum(centre - left, step)
    fall = 1 - (frequencies[:, None] - centre) / np.maximum(right - centre, step)
    triangles = np.maximum(np.minimum(rise, fall), 0)
    filters: NDArray[np.float32] = np.concatenate([triangles, triangles]).astype(np.float32)
    return filters


def _frequencies_hz(bins: int) -> NDArray[np.float64]:
    return np.arange(1, bins + 1) * (SAMPLE_RATE_HZ / 4 / bins)


def _mel(hz: float) -> float:
    return 1127 * float(np.log(1 + hz / 700))


def _stretches(batch: int, size: int, count: int, longest: int) -> Tensor:
    """(batch, size) true inside ``count`` random stretches of up to ``longest``."""
    length = torch.randint(longest + 1, (batch, count, 1))
    start = (torch.rand(batch, count, 1) * (size - length)).long()
    place = torch.arange(size)
    return ((place >= start) & (place < start + length)).any(dim=1)
