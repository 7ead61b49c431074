"""Recordings as the recipe wants them: one channel, 16 kHz, the telephone band only.

Everything passes through 8 kHz, whatever its own rate, so that no model can tell where a recording came from by the
band above 4 kHz.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly

from optimize.errors import UserError

SAMPLE_RATE_HZ, NARROW_RATE_HZ = 16_000, 8_000

Samples = NDArray[np.float32]


def read_wav(path: Path) -> tuple[Samples, int]:
    """Samples (time,) in [-1, 1], channels averaged, and their rate in hertz; 8 to 32 bit integers or floats.

    Raises UserError for a file that is missing, empty or no such WAV.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of metadata
            rate_hz, samples = wavfile.read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"recording '{path}' cannot be read ({error}); expected a WAV file of PCM or floats") from None
    if samples.size == 0:
        raise UserError(f"recording '{path}' is empty")
    if samples.dtype == np.uint8:
        floats = (samples.astype(np.float32) - 128) / 128
    elif np.issubdtype(samples.dtype, np.integer):
        floats = samples.astype(np.float32) / (np.iinfo(samples.dtype).max + 1)
    else:
        floats = samples.astype(np.float32)
    if not np.isfinite(floats).all():
        raise UserError(f"recording '{path}' holds NaN or infinite samples")
    return floats.mean(axis=1) if floats.ndim == 2 else floats, int(rate_hz)


def telephone_band(samples: Samples, rate_hz: int) -> Samples:
    """The same recording at 16 kHz, by way of 8 kHz."""
    narrow = resample(samples, NARROW_RATE_HZ, rate_hz)
    return resample(narrow, SAMPLE_RATE_HZ, NARROW_RATE_HZ)


def resample(samples: Samples, up: int, down: int) -> Samples:
    """Polyphase resampling by up / down, (time,) to (ceil(time * up / down),)."""
    divisor = math.gcd(up, down)
    resampled: Samples = resample_poly(samples, up // divisor, down // divisor).astype(np.float32)
    return resampled


def trim(samples: Samples, threshold: float = 0.01, margin: int = 320) -> Samples:
    """Without the silence before and after: what stays under ``threshold`` of the peak; ``margin`` samples are kept."""
    loud = np.flatnonzero(np.abs(samples) > threshold * np.abs(samples).max())
    return samples[max(loud[0] - margin, 0) : loud[-1] + 1 + margin] if loud.size else samples
