"""What real-time streams say: 16 kHz mono PCM, from a WAV file or seeded bursts of noise.

What a server computes does not depend on the values, so noise with pauses serves as well as speech for load; a file
serves where the answers matter too.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimize.errors import UserError

RATE_HZ = 16_000
LENGTH_S = 30.0

Samples = NDArray[np.int16]


def load(file: Path | None, seed: int = 0) -> Samples:
    """The file's samples, or bursts. Raises UserError for anything but 16 kHz, 16-bit, one channel."""
    return bursts(seed) if file is None else read(file)


def bursts(seed: int = 0, length_s: float = LENGTH_S) -> Samples:
    """Syllables of noise of 80 to 400 ms, loud and soft, with pauses between them."""
    random = np.random.default_rng(seed)
    samples = np.zeros(round(length_s * RATE_HZ))
    place = 0
    while place < len(samples):
        voiced, pause = (int(random.uniform(*span) * RATE_HZ) for span in ((0.08, 0.4), (0.02, 0.3)))
        burst = samples[place : place + voiced]
        burst += random.normal(0, random.uniform(500, 6000), len(burst)) * np.hanning(voiced)[: len(burst)]
        place += voiced + pause
    return samples.clip(-32768, 32767).astype(np.int16)


def read(file: Path) -> Samples:
    """The samples of a WAV file."""
    try:
        with wave.open(str(file)) as audio:
            form = audio.getframerate(), audio.getsampwidth() * 8, audio.getnchannels()
            samples = np.frombuffer(audio.readframes(audio.getnframes()), f"<i{audio.getsampwidth()}")
    except (OSError, wave.Error, EOFError, TypeError) as error:  # TypeError: 24 bits are no integer of numpy's
        raise UserError(f"'{file}' cannot be read as a WAV file: {error}") from error
    if form != (RATE_HZ, 16, 1):
        raise UserError(
            f"'{file}': expected 16000 Hz, 16 bits and one channel, got {form[0]} Hz, {form[1]} bits and {form[2]}; "
            f"convert it with: ffmpeg -i '{file}' -ar 16000 -ac 1 -c:a pcm_s16le converted.wav"
        )
    if not len(samples):
        raise UserError(f"'{file}' holds no samples")
    return samples.astype(np.int16)
