"""Any sound as the speech models want it: 16 kHz, one channel, int16, in chunks.

    sound = open_file(Path("three.flac"))                        # any rate, any number of channels
    sound = open_raw(sys.stdin.buffer, "standard input", 16_000) # as it comes: arecord -t raw ... | ...
    for part in sound.chunks(5120):
        part.pcm, part.last

Files are read by libsndfile: WAV (8 to 32 bit, floats), FLAC, OGG and more. Channels are averaged; other rates are
converted by soxr. All of it works block by block, so a long recording needs no more memory than a short one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from optimize.errors import UserError

SAMPLE_RATE_HZ = 16_000  # of every model that takes `pcm`
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000
FULL_SCALE = 32_768
LOUDEST = 16.0  # of floats, where 1 is full scale; beyond it they were meant on another scale and not to be clipped

_BLOCK_FRAMES = 16_384
_CONTAINERS = {b"RIFF": "a WAV file", b"fLaC": "a FLAC file", b"OggS": "an OGG file", b"ID3": "an MP3 file"}
_MAGIC_BYTES = max(map(len, _CONTAINERS))

Pcm = NDArray[np.int16]
Floats = NDArray[np.float32]


class Part(NamedTuple):
    """A chunk. pcm: (time,); the last one may be short. last: nothing follows."""

    pcm: Pcm
    last: bool


@dataclass(frozen=True)
class Sound:
    """Something to listen to, once.

    blocks: (time,) in [-1, 1] at ``rate_hz``, of any sizes. live: they come as they are spoken, so that a chunk must
    not wait to know whether it is the last one.
    """

    name: str
    description: str
    rate_hz: int
    blocks: Iterator[Floats]
    live: bool = False

    def chunks(self, samples: int) -> Iterator[Part]:
        """Parts of ``samples`` samples; the last is what is left, of a live sound perhaps nothing.

        Raises UserError where there is no sound at all, or it turns out to be unreadable.
        """
        held, total = np.empty(0, np.int16), 0
        for block in _converted(self.blocks, self.rate_hz):
            held, total = np.concatenate([held, block]), total + len(block)
            while len(held) > samples or (self.live and len(held) == samples):
                yield Part(held[:samples], last=False)
                held = held[samples:]
        if not total:
            raise UserError(f"{self.name} ended before its first sample: there is nothing to transcribe")
        yield Part(held, last=True)


def open_file(path: Path) -> Sound:
    """A recording. Raises UserError for a file that is missing, empty or no recording; later for damage within it."""
    name = f"recording '{path}'"
    if not path.is_file():
        raise UserError(f"{name} does not exist or is not a file; '-' reads raw samples from standard input")
    try:
        file = soundfile.SoundFile(path)
    except TypeError:  # a name that ends in .raw
        raise UserError(f"{name} is named like raw samples, which come on standard input: - < '{path}'") from None
    except (OSError, soundfile.SoundFileError) as error:
        if not path.stat().st_size:
            raise UserError(f"{name} is empty: the file has no bytes") from None
        raise UserError(
            f"{name} cannot be read ({_reason(error)}); expected WAV, FLAC, OGG or another format of libsndfile"
        ) from None
    _check_rate(file.samplerate, name)
    if not file.frames:
        raise UserError(f"{name} is empty: it has a header and no samples")
    channels = "1 channel" if file.channels == 1 else f"{file.channels} channels"
    description = f"{path.name}, {file.frames / file.samplerate:.2f} s, {file.samplerate} Hz, {channels}"
    return Sound(name, description, file.samplerate, _file_blocks(file, name))


def open_raw(stream: io.BufferedReader, name: str, rate_hz: int) -> Sound:
    """Raw int16 little-endian samples of one channel, each taken as soon as it is there. Half a sample at the end is
    left out. Raises UserError for a terminal or an impossible rate; later for what begins like a file with a header."""
    _check_rate(rate_hz, name)
    if stream.isatty():
        raise UserError(f"{name} is a terminal; pipe raw samples into it: arecord -t raw -f S16_LE -r {rate_hz}")
    return Sound(name, f"{name}, {rate_hz} Hz, raw", rate_hz, _raw_blocks(stream, name), live=True)


def _file_blocks(file: soundfile.SoundFile, name: str) -> Iterator[Floats]:
    read = 0
    with file:
        while True:
            try:
                block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                seconds = read / file.samplerate
                raise UserError(f"{name} is damaged after {seconds:.2f} s ({_reason(error)})") from None
            if not len(block):
                return
            if not np.isfinite(block).all():
                seconds = (read + int(np.argmin(np.isfinite(block).all(axis=1)))) / file.samplerate
                raise UserError(f"{name} holds NaN or infinite samples, the first at {seconds:.3f} s; mend it first")
            if np.abs(block).max() > LOUDEST:
                raise UserError(
                    f"{name} holds samples as large as {np.abs(block).max():.0f}; expected floats between -1 and 1: "
                    "write it again, scaled"
                )
            read += len(block)
            yield block.mean(axis=1)


def _raw_blocks(stream: io.BufferedReader, name: str) -> Iterator[Floats]:
    data, rest = stream.read(_MAGIC_BYTES), b""  # waits for all of them: a pipe may deliver a byte at a time
    _check_headerless(data, name)
    while data:
        data = rest + data
        whole = len(data) - len(data) % 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / FULL_SCALE
        data = stream.read1(2 * _BLOCK_FRAMES)


def _converted(blocks: Iterator[Floats], rate_hz: int) -> Iterator[Pcm]:
    """Blocks at 16 kHz. What is at 16 kHz already keeps its 16 bits unchanged."""
    if rate_hz == SAMPLE_RATE_HZ:
        yield from map(_pcm, blocks)
        return
    converter = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
    for block in blocks:
        yield _pcm(converter.resample_chunk(block))
    yield _pcm(converter.resample_chunk(np.empty(0, np.float32), last=True))


def _pcm(samples: Floats) -> Pcm:
    pcm: Pcm = np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return pcm


def _check_rate(rate_hz: int, name: str) -> None:
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise UserError(f"{name}: a rate of {rate_hz} Hz; expected {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz")


def _check_headerless(data: bytes, name: str) -> None:
    for magic, kind in _CONTAINERS.items():
        if data.startswith(magic):
            raise UserError(
                f"{name} begins like {kind}; expected raw samples (arecord -t raw, ffmpeg -f s16le): give a file its "
                "name instead of '-'"
            )


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".")
