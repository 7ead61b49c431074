"""Recordings, synthesised speech and the strings made of them: no leak between splits, the same every time."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from optimize.data import speech
from optimize.data.audio import read_wav, telephone_band, trim
from optimize.data.espeak import ACCENTS, SPEAKERS, Synthesiser, Voice
from optimize.data.speech import parts_of, read_manifest, spoken_digits
from optimize.data.strings import Pool, Segment, connected
from optimize.data.vocabulary import text_of, tokens_of
from optimize.errors import UserError
from optimize.recipes.speech import WER

FEW = SPEAKERS[:6]


def write_wav(
    path: Path, samples: NDArray[np.float64], rate_hz: int = 8_000, width: int = 2, channels: int = 1
) -> Path:
    """Floats in [-1, 1] as integers of ``width`` bytes."""
    scaled = np.rint(samples * (2 ** (8 * width - 1) - 1)).astype(np.int32)
    if width == 1:
        scaled += 128
    content = scaled.astype("<i4").tobytes() if width == 4 else scaled.astype("<i4").reshape(-1, 1).view(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate_hz, 0, "NONE", ""))
        file.writeframes(content if width == 4 else content[:, :width].tobytes())
    return path


def tone(hz: float, seconds: float = 0.3, rate_hz: int = 8_000) -> NDArray[np.float64]:
    samples: NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)
    return samples


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_recording_of_any_depth_is_read(width: int, tmp_path: Path) -> None:
    samples, rate_hz = read_wav(write_wav(tmp_path / "tone.wav", tone(440), 11_025, width))
    assert rate_hz == 11_025
    np.testing.assert_allclose(samples, tone(440), atol=2.0 ** (2 - 8 * width) + 1e-6)


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([tone(440), -tone(440)], axis=1).reshape(-1)
    samples, _ = read_wav(write_wav(tmp_path / "stereo.wav", both, channels=2))
    assert np.abs(samples).max() < 1e-3


@pytest.mark.parametrize("content", [None, b"", b"RIFF of nothing"])
def test_what_is_no_recording_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_wav(path)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 48_000])
def test_any_rate_becomes_16_khz_without_what_is_above_4(rate_hz: int) -> None:
    heard = telephone_band(tone(1_000, 0.5, rate_hz).astype(np.float32), rate_hz)
    assert len(heard) == pytest.approx(8_000, abs=4)
    assert np.argmax(np.abs(np.fft.rfft(heard))) * 16_000 / len(heard) == pytest.approx(1_000, abs=5)
    if rate_hz > 12_000:
        high = telephone_band(tone(5_500, 0.5, rate_hz).astype(np.float32), rate_hz)
        assert np.abs(high[500:-500]).max() < 0.005


def test_silence_around_a_word_is_trimmed_and_silence_alone_is_kept() -> None:
    padded = np.concatenate([np.zeros(4000), tone(440, 0.1, 16_000), np.zeros(3000)]).astype(np.float32)
    assert len(trim(padded)) == pytest.approx(1600 + 640, abs=40)
    assert len(trim(np.zeros(500, np.float32))) == 500


def test_a_new_synthesiser_says_the_same_and_voices_differ() -> None:
    voices = (Voice("f2"), Voice("m3", ACCENTS[2]), Voice("f2", words_per_minute=250))
    synthesiser, other = Synthesiser(), Synthesiser()
    first = [synthesiser.speak("three", voice) for voice in voices]
    for found, expected in zip([other.speak("three", voice) for voice in voices], first, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert all(0.1 < len(samples) / synthesiser.rate_hz < 1.5 for samples in first)
    assert np.abs(first[0][:5000] - first[1][:5000]).max() > 0.05
    assert len(first[2]) < len(first[0])
    with pytest.raises(UserError, match=r"no voice 'en-us\+nobody'"):
        Voice("nobody")


@pytest.mark.parametrize(
    ("text", "tokens"), [("three five", (4, 6)), ("3 5", (4, 6)), ("35", (4, 6)), (" Zero\t09 ", (1, 1, 10))]
)
def test_words_and_digits_become_tokens(text: str, tokens: tuple[int, ...]) -> None:
    assert tokens_of(text) == tokens
    assert tokens_of(text_of((0, *tokens, 0))) == tokens


@pytest.mark.parametrize("text", ["", "ten", "three fife", "٣"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="the words are zero, one"):
        tokens_of(text)


def test_no_take_is_in_two_splits_and_the_unseen_speakers_in_none() -> None:
    parts = parts_of(spoken_digits(FEW), unseen=FEW[-1:], test_takes=1, validation_takes=1)
    takes = [{(segment.speaker, segment.take) for segment in part} for part in parts]
    assert sum(map(len, takes)) == len(set.union(*takes)) == len(FEW) * 5
    assert {speaker for speaker, _ in takes[3]} == {f"eSpeak {FEW[-1]}"}
    for part in parts[:3]:
        assert len({segment.speaker for segment in part}) == len(FEW) - 1
        assert {word for segment in part for word in segment.words} == set(range(1, 11))


def test_training_strings_are_new_in_every_epoch_and_the_same_for_a_seed() -> None:
    pool = Pool(spoken_digits(FEW), [])
    first, again, other = pool.strings(24, seed=(1,)), pool.strings(24, seed=(1,)), pool.strings(24, seed=(2,))
    np.testing.assert_array_equal(first.inputs["pcm"], again.inputs["pcm"])
    assert not np.array_equal(first.targets["words"], other.targets["words"])
    assert first.inputs["pcm"].dtype == np.int16
    assert first.inputs["pcm"].shape[1] <= 4 * 16_000
    for pcm, (length,), words, count in zip(
        *first.inputs.values(), *first.targets.values(), strict=True
    ):  # what is beyond the end is empty
        assert not pcm[length:].any()
        assert (words[:count] > 0).all()
        assert not words[count:].any()


def test_groups_share_no_recording() -> None:
    """Every segment is one constant of its own, so that the strings show what they were made of."""
    segments = [
        Segment(np.full(200, 0.1 + 0.01 * word, np.float32), (word,), speaker, take)
        for speaker in "ab"
        for take in range(3)
        for word in range(1, 11)
    ]
    split = connected(segments, repeats=2, seed=0)
    assert len(set(split.groups.tolist())) == 6
    for group in range(6):
        words = split.targets["words"][split.groups == group]
        counts = np.bincount(words[words > 0], minlength=11)
        assert counts.tolist() == [0] + [2] * 10
    assert split.targets["word_lengths"].max() <= 7


def test_without_the_folder_espeak_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(speech, "SPEAKERS", FEW)
    monkeypatch.setattr(speech, "SAMPLE_STRINGS", 16)
    dataset = speech.load()
    assert dataset.source.startswith("eSpeak NG, seed")
    assert len(dataset.train) == 16
    assert set(dataset.others) == {"unseen_speaker"}
    assert dataset.sha256 == speech.load().sha256


def test_a_folder_of_digits_is_used_and_its_unseen_speaker_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(speech, "SPEAKERS", FEW)
    monkeypatch.setattr(speech, "SAMPLE_STRINGS", 16)
    for speaker in ("george", "theo"):
        for take in (0, 12, 17, 18):
            for digit in range(10):
                path = tmp_path / speech.FOLDER / f"{digit}_{speaker}_{take}.wav"
                write_wav(path, tone(300 + 40 * digit + 7 * take))
    dataset = speech.load()
    assert dataset.source.startswith("Free Spoken Digit Dataset")
    words = [split.targets["word_lengths"].sum() for split in (dataset.test, dataset.validation)]
    assert words == [10 * 5, 10 * 3]
    assert dataset.others["unseen_speaker"].targets["word_lengths"].sum() == 4 * 10 * 2
    (tmp_path / speech.FOLDER / "nine.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"nine\.wav' is not named <digit>_<speaker>_<take>"):
        speech.load()


def manifest(folder: Path, lines: list[str]) -> Path:
    for index in range(10):
        write_wav(folder / f"{index}.wav", tone(300 + 40 * index))
    path = folder / "manifest.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_recordings_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "SPEAKERS", FEW)
    monkeypatch.setattr(speech, "SAMPLE_STRINGS", 16)
    dataset = speech.load(manifest(tmp_path, [f"{index}.wav\t{index} seven" for index in range(10)]))
    assert dataset.source.startswith("the recordings of manifest.tsv")
    assert (len(dataset.test), len(dataset.validation)) == (2, 1)
    assert dataset.test.targets["word_lengths"].tolist() == [2, 2]
    assert not dataset.others


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0.wav three"], "line 1: expected path<TAB>words"),
        (["0.wav\tthree", "1.wav\tfife"], "line 2: 'fife' holds fife"),
        (["none.wav\tthree"], r"none\.wav' cannot be read"),
        (["0.wav\tthree", "1.wav\tone"], "names 2 recordings"),
    ],
)
def test_a_bad_manifest_is_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_manifest(manifest(tmp_path, lines))
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "none.tsv")


def test_word_error_rate_counts_words_within_the_meant_frames() -> None:
    segments = [Segment(np.ones(100, np.float32), (4,), "a", 0), Segment(np.ones(100, np.float32), (6,), "a", 0)]
    split = connected(segments, repeats=1, seed=1)
    said = split.targets["words"]
    outputs = {"tokens": said.copy(), "output_lengths": np.full((len(said), 1), said.shape[1])}
    assert WER(outputs, split) == 0
    outputs["output_lengths"] -= said.shape[1]
    assert WER(outputs, split) == 100
