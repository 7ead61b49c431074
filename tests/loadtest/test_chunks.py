"""What streams send: the shape that the server describes, utterances, and audio files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from clients.signature import Signature, Tensor
from loadtest import audio
from loadtest.chunks import ChunkShape, Speaker
from optimize.errors import UserError

PCM, LENGTHS = Tensor("pcm", "INT16", (-1, 1600)), Tensor("lengths", "INT32", (-1, 1))


def signature(*inputs: Tensor, idle_limit_s: float | None = 1.0) -> Signature:
    return Signature("speech", "1", inputs, (), 8, idle_limit_s)


SHAPE = ChunkShape.of(signature(PCM, LENGTHS))


def write(file: Path, samples: audio.Samples, rate: int = 16_000, channels: int = 1) -> Path:
    with wave.open(str(file), "wb") as out:
        out.setframerate(rate)
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.writeframes(samples.tobytes())
    return file


def test_a_chunk_fits_the_signature() -> None:
    assert SHAPE.seconds == 0.1
    request = SHAPE.inputs(np.arange(1600, dtype=np.int16), meant=7)
    assert list(signature(PCM, LENGTHS).checked(request)) == ["pcm", "lengths"]
    assert request["lengths"].item() == 7
    assert list(ChunkShape.of(signature(PCM)).inputs(np.zeros(1600, np.int16))) == ["pcm"]


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (signature(PCM, idle_limit_s=None), "keeps no state"),
        (signature(LENGTHS), "expected an INT16 input"),
        (signature(PCM, Tensor("other", "FP32", (-1, 2))), "'other' FP32"),
        (signature(Tensor("pcm", "INT16", (-1, -1))), "a fixed number"),
    ],
)
def test_models_that_cannot_be_fed(described: Signature, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ChunkShape.of(described)


def test_a_speaker_without_end_says_the_audio_round_and_round() -> None:
    samples = np.arange(1, 4001, dtype=np.int16)  # two chunks and a half
    speaker = Speaker(SHAPE, samples, utterance_s=0, seed=1)
    said = [speaker.next() for _ in range(6)]
    assert not any(last for _, last in said)
    assert all(inputs["lengths"].item() == 1600 for inputs, _ in said)
    whole = np.concatenate([inputs["pcm"][0] for inputs, _ in said])
    start = list(np.flatnonzero(whole == 1))
    assert np.diff(start).tolist() == [4800] * (len(start) - 1)
    np.testing.assert_array_equal(whole[start[0] : start[0] + 4000], samples)


def test_utterances_have_the_mean_length_and_ragged_ends() -> None:
    speaker = Speaker(SHAPE, audio.bursts(), utterance_s=1.0, seed=3)
    said = [speaker.next() for _ in range(5000)]
    ends = [place for place, (_, last) in enumerate(said) if last]
    lengths = np.diff(ends)
    assert 9 < lengths.mean() < 11
    assert lengths.min() >= 5
    assert lengths.max() <= 15
    meant = {said[end][0]["lengths"].item() for end in ends}
    assert len(meant) > 100
    assert all(inputs["lengths"].item() == 1600 for inputs, last in said if not last)


def test_speakers_are_seeded_and_end_at_different_times() -> None:
    def first_end(seed: int) -> int:
        speaker = Speaker(SHAPE, audio.bursts(), 1.0, seed)
        return next(turn for turn in range(99) if speaker.next()[1])

    assert [first_end(seed) for seed in range(20)] == [first_end(seed) for seed in range(20)]
    assert len({first_end(seed) for seed in range(20)}) > 5


def test_the_default_audio_is_seeded_and_has_pauses() -> None:
    samples = audio.load(None, seed=4)
    assert samples.dtype == np.int16
    assert len(samples) == audio.LENGTH_S * audio.RATE_HZ
    np.testing.assert_array_equal(samples, audio.load(None, seed=4))
    assert not np.array_equal(samples, audio.load(None, seed=5))
    assert 0.1 < (samples == 0).mean() < 0.7


def test_an_audio_file(tmp_path: Path) -> None:
    samples = np.arange(-500, 500, dtype=np.int16)
    np.testing.assert_array_equal(audio.load(write(tmp_path / "good.wav", samples)), samples)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2)])
def test_audio_of_another_form(tmp_path: Path, rate: int, channels: int) -> None:
    file = write(tmp_path / "other.wav", np.zeros(100, np.int16), rate, channels)
    with pytest.raises(UserError, match=f"expected 16000 Hz, 16 bits and one channel, got {rate} Hz"):
        audio.load(file)


def test_files_that_are_no_audio(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    for file in (tmp_path / "text.wav", tmp_path / "none.wav"):
        with pytest.raises(UserError, match="cannot be read as a WAV file"):
            audio.load(file)
    with pytest.raises(UserError, match="no samples"):
        audio.load(write(tmp_path / "empty.wav", np.zeros(0, np.int16)))
