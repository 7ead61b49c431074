"""Sounds of every kind become the same 16 kHz samples."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clients.recording import SAMPLE_RATE_HZ, Pcm, Sound, open_file, open_raw
from optimize.errors import UserError

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
RATES_HZ = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000]


def whole(sound: Sound, samples: int = 1000) -> Pcm:
    return np.concatenate([part.pcm for part in sound.chunks(samples)])


def noise(length: int, seed: int = 0) -> Pcm:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, length).astype(np.int16)


def tone(frequency_hz: float, rate_hz: int, seconds: float = 0.5, level: float = 0.5) -> NDArray[np.float64]:
    samples: NDArray[np.float64] = np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz)
    return level * samples


def measured(pcm: Pcm, frequency_hz: float) -> tuple[float, float]:
    """The level of a tone in the middle of a sound, and of all else (root mean square)."""
    middle = pcm[800:-800] / 32_768
    angle = 2 * np.pi * frequency_hz * np.arange(len(middle)) / SAMPLE_RATE_HZ
    basis = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    amplitudes, *_ = np.linalg.lstsq(basis, middle, rcond=None)
    return float(np.hypot(*amplitudes)), float(np.sqrt(np.mean((middle - basis @ amplitudes) ** 2)))


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Write samples to a file; its path."""

    def write(samples: NDArray[Any], rate_hz: int = SAMPLE_RATE_HZ, name: str = "sound.wav", **options: str) -> Path:
        soundfile.write(tmp_path / name, samples, rate_hz, **options)
        return tmp_path / name

    return write


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_tone_keeps_its_frequency_and_level(written: Any, rate_hz: int) -> None:
    random = np.random.default_rng(rate_hz)
    for frequency_hz, level in zip(random.uniform(100, 3_400, 8), random.uniform(0.05, 0.9, 8), strict=True):
        pcm = whole(open_file(written(tone(frequency_hz, rate_hz, level=level), rate_hz)))
        assert abs(len(pcm) - SAMPLE_RATE_HZ // 2) <= 1
        found, rest = measured(pcm, frequency_hz)
        assert found == pytest.approx(level, rel=2e-3)
        assert rest < 1e-3 * level + 5e-5  # rounding to 16 bits, twice


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 48_000])
def test_what_16_khz_cannot_hold_does_not_fold_back(written: Any, rate_hz: int) -> None:
    pcm = whole(open_file(written(tone(9_500, rate_hz), rate_hz)))
    assert np.abs(pcm[800:-800]).max() <= 2


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_16"),
        ("a.wav", "PCM_24"),
        ("a.wav", "PCM_32"),
        ("a.wav", "FLOAT"),
        ("a.wav", "DOUBLE"),
        ("a.flac", "PCM_16"),
        ("a.flac", "PCM_24"),
        ("a.aiff", "PCM_16"),
    ],
)
def test_sixteen_bits_survive_every_container(written: Any, name: str, subtype: str) -> None:
    pcm = noise(40_000)
    samples = pcm / 32_768 if subtype in ("FLOAT", "DOUBLE") else pcm
    np.testing.assert_array_equal(whole(open_file(written(samples, name=name, subtype=subtype))), pcm)


def test_eight_bits_are_unsigned_in_a_file(written: Any) -> None:
    pcm = noise(5_000) // 256 * 256
    np.testing.assert_array_equal(whole(open_file(written(pcm, subtype="PCM_U8"))), pcm)


def test_ogg_is_near(written: Any) -> None:
    pcm = whole(open_file(written(tone(440, 44_100), 44_100, "a.ogg")))
    assert measured(pcm, 440)[0] == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_are_averaged(written: Any, channels: int) -> None:
    pcm = np.stack([noise(3_000, seed) for seed in range(channels)], axis=1)
    mean = pcm.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(whole(open_file(written(pcm))), mean, rtol=0, atol=0.51)  # rounded, not cut off


def test_louder_than_full_scale_is_clipped(written: Any) -> None:
    path = written(np.array([1.5, 1.0, -1.0, -3.0], np.float32), subtype="FLOAT")
    assert whole(open_file(path)).tolist() == [32_767, 32_767, -32_768, -32_768]


def test_floats_of_another_scale(written: Any) -> None:
    path = written(tone(440, 16_000) * 32_768, subtype="FLOAT")
    with pytest.raises(UserError, match=r"holds samples as large as 163\d\d; expected floats between -1 and 1"):
        whole(open_file(path))


def cut(samples: Pcm, sizes: list[int]) -> Iterator[NDArray[np.float32]]:
    """The samples as floats, in blocks of those sizes; the last block is the rest."""
    for block in np.split(samples, np.clip(np.cumsum(sizes), 0, len(samples))):
        yield block.astype(np.float32) / 32_768


@QUICK
@given(st.integers(1, 400), st.lists(st.integers(0, 90), max_size=12), st.integers(1, 70), st.booleans())
def test_chunks_are_the_sound(length: int, sizes: list[int], samples: int, live: bool) -> None:
    pcm = noise(length)
    parts = list(Sound("it", "it", SAMPLE_RATE_HZ, cut(pcm, sizes), live).chunks(samples))
    np.testing.assert_array_equal(np.concatenate([part.pcm for part in parts]), pcm)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {len(part.pcm) for part in parts[:-1]} <= {samples}
    assert (0 if live else 1) <= len(parts[-1].pcm) <= samples - live


def test_a_live_chunk_waits_for_nothing_behind_it() -> None:
    pulled = []

    def blocks() -> Iterator[NDArray[np.float32]]:
        for number in range(3):
            pulled.append(number)
            yield np.zeros(10, np.float32)

    chunks = Sound("it", "it", SAMPLE_RATE_HZ, blocks(), live=True).chunks(10)
    for number in range(3):
        assert not next(chunks).last
        assert pulled == list(range(number + 1))
    rest, last = next(chunks)
    assert (len(rest), last) == (0, True)


class Pieces(io.RawIOBase):
    """A pipe into which somebody writes a piece at a time."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def raw(pieces: list[bytes], rate_hz: int = SAMPLE_RATE_HZ) -> Sound:
    return open_raw(io.BufferedReader(Pieces(pieces)), "standard input", rate_hz)


@QUICK
@given(st.integers(1, 300), st.lists(st.integers(1, 100), max_size=12), st.binary(max_size=1))
def test_raw_samples_however_they_are_cut(length: int, sizes: list[int], half: bytes) -> None:
    pcm = noise(length)
    data = pcm.astype("<i2").tobytes() + half
    ends = [0, *np.cumsum(sizes).tolist(), len(data)]
    pieces = [data[start:end] for start, end in zip(ends, [*ends[1:-1], len(data)], strict=False)]
    np.testing.assert_array_equal(whole(raw(pieces), samples=64), pcm)


def test_raw_samples_of_another_rate_are_converted_as_a_file_is(written: Any) -> None:
    samples = (tone(700, 11_025) * 32_768).astype("<i2")
    pieces = [samples.tobytes()[start : start + 999] for start in range(0, 2 * len(samples), 999)]
    from_file = whole(open_file(written(samples, 11_025)))
    np.testing.assert_allclose(whole(raw(pieces, 11_025)), from_file, atol=1)


@pytest.mark.parametrize("pieces", [[], [b"\x07"]], ids=["nothing", "half a sample"])
def test_raw_samples_that_are_none(pieces: list[bytes]) -> None:
    with pytest.raises(UserError, match="standard input ended before its first sample"):
        whole(raw(pieces))


@pytest.mark.parametrize(("name", "kind"), [("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.ogg", "OGG")])
def test_a_file_with_a_header_is_not_raw(written: Any, name: str, kind: str) -> None:
    data = written(noise(3_000), name=name).read_bytes()
    for size in (len(data), 1, 2, 3):  # of what the pipe delivers first
        with pytest.raises(UserError, match=f"begins like an? {kind} file; expected raw samples"):
            whole(raw([data[:size], data[size : 2 * size], data[2 * size :]]))


@pytest.mark.parametrize("rate_hz", [0, -16_000, 999, 1_000_000])
def test_an_impossible_raw_rate(rate_hz: int) -> None:
    with pytest.raises(UserError, match=f"a rate of {rate_hz} Hz; expected 1000 to 768000 Hz"):
        raw([], rate_hz)


def test_files_that_are_no_recordings(tmp_path: Path, written: Any) -> None:
    header = written(np.empty(0, np.int16))
    slow = written(noise(100), rate_hz=10, name="slow.wav")
    (empty := tmp_path / "empty.wav").touch()
    (text := tmp_path / "text.wav").write_text("RIFF, said the guitar. " * 20)
    (headerless := tmp_path / "sound.raw").write_bytes(noise(100).tobytes())
    for path, words in (
        (tmp_path / "nothing.wav", "does not exist or is not a file"),
        (tmp_path, "does not exist or is not a file"),
        (empty, "is empty: the file has no bytes"),
        (header, "is empty: it has a header and no samples"),
        (text, "cannot be read"),
        (headerless, "is named like raw samples"),
        (slow, "a rate of 10 Hz; expected 1000"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_file(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(written: Any, wrong: float) -> None:
    samples = np.zeros((SAMPLE_RATE_HZ * 2, 2), np.float32)
    samples[20_000, 1] = samples[25_000, 0] = wrong
    with pytest.raises(UserError, match=r"holds NaN or infinite samples, the first at 1\.250 s"):
        whole(open_file(written(samples, subtype="FLOAT")))


def test_a_damaged_file(written: Any) -> None:
    path = written(noise(200_000), name="a.flac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged after \d+\.\d\d s"):
        whole(open_file(path))
