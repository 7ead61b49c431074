"""Connected digits: recordings of words strung together, with gaps, noise and changes of speed and loudness.

The words come from the Free Spoken Digit Dataset (``speech/fsdd/<digit>_<speaker>_<take>.wav``), from eSpeak NG, and
from a user's manifest, ``--data manifest.tsv`` with a line ``path<TAB>words`` for each recording. Some takes of every
speaker are kept for test and some for validation, and one speaker is kept out entirely, for a second figure. Training
strings are made anew for every epoch; test strings are fixed. The bootstrap's unit is one take of one speaker: the
strings of one group share no recording with those of another.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from optimize.data.audio import SAMPLE_RATE_HZ, Samples, read_wav, resample, telephone_band, trim
from optimize.data.dataset import Dataset, Split
from optimize.data.espeak import ACCENTS, SPEAKERS, Synthesiser, Voice
from optimize.errors import UserError

FOLDER = "speech/fsdd"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOCABULARY = ("", *WORDS)  # by token; 0 is the CTC blank
SEED = 16
EPOCH_STRINGS, SAMPLE_STRINGS = 4_096, 512
TRAIN_SECONDS, TRAIN_WORDS, TEST_WORDS = 4.0, 12, 7  # the most of one string
REAL_SHARE = 0.6  # of the training strings, the rest is eSpeak NG


@dataclass(frozen=True, eq=False)
class Segment:
    """A recording at 16 kHz of one or more words (as tokens), by whom, and which of their takes."""

    samples: Samples
    words: tuple[int, ...]
    speaker: str
    take: int


class Parts(NamedTuple):
    """Segments by use; no recording is in two, and no take is torn apart."""

    train: list[Segment]
    validation: list[Segment]
    test: list[Segment]
    unseen_speaker: list[Segment]


@dataclass(frozen=True)
class Treatment:
    """How strings are made of segments; pairs are ranges, drawn uniformly.

    speeds: in sixteenths, changing the pitch too. gap_s: of most gaps; one in five is up to three times longer.
    level_db: of the speech, below full scale. noise_db: signal-to-noise ratio. clean: share of strings without noise.
    tilt: strength of a first-order filter, for other microphones. mixed: share of strings with several speakers.
    """

    speeds: tuple[int, ...] = (16,)
    gap_s: tuple[float, float] = (0.02, 0.35)
    level_db: tuple[float, float] = (-30.0, -18.0)
    noise_db: tuple[float, float] = (20.0, 40.0)
    clean: float = 0.2
    tilt: float = 0.0
    mixed: float = 0.0


TRAINING = Treatment((14, 15, 16, 17, 18), (0.0, 0.35), (-38.0, -14.0), (5.0, 40.0), 0.1, 0.4, 0.3)
TESTING = Treatment()


def load(data: Path | None = None) -> Dataset:
    """Strings of digits: from a manifest if one is given, else from the data set, else from eSpeak NG alone.

    Raises UserError for a manifest or a recording that cannot be used.
    """
    folder = Path(os.environ.get("DATA_DIR") or "data") / FOLDER
    spoken = parts_of(spoken_digits(SPEAKERS), unseen=SPEAKERS[-4:], test_takes=1, validation_takes=1)
    if data is not None:
        return _manifest_dataset(data, spoken.train)
    if folder.is_dir():
        parts = parts_of(read_digits(folder), unseen=("theo",), test_takes=12, validation_takes=5)
        pool, source = Pool(parts.train, spoken.train), "Free Spoken Digit Dataset; eSpeak NG in training only"
    else:
        parts, pool = spoken, Pool(spoken.train, [])
        source = f"eSpeak NG, seed {SEED} (no {FOLDER} under $DATA_DIR or ./data)"
    return _dataset(
        pool,
        validation=connected(parts.validation, repeats=3, seed=SEED + 1),
        test=connected(parts.test, repeats=5, seed=SEED + 2),
        others={"unseen_speaker": connected(parts.unseen_speaker, repeats=2, seed=SEED + 3)},
        source=source,
    )


def read_digits(folder: Path) -> list[Segment]:
    """The Free Spoken Digit Dataset: one segment for every file."""
    segments = []
    for path in sorted(folder.glob("*.wav")):
        try:
            digit, speaker, take = path.stem.split("_")
            segments.append(Segment(_prepare(*read_wav(path)), (int(digit) + 1,), speaker, int(take)))
        except ValueError:
            raise UserError(f"'{path}' is not named <digit>_<speaker>_<take>.wav") from None
    if not segments:
        raise UserError(f"'{folder}' holds no .wav files; expected <digit>_<speaker>_<take>.wav")
    return segments


def read_manifest(path: Path) -> list[Segment]:
    """A user's recordings: lines ``path<TAB>words``, paths relative to the file, words as in "three five" or "35".

    Raises UserError: no such file, a line without a tab, a word that is no digit, a recording that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"data file '{path}' does not exist or is not a file; check --data")
    segments = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, tab, text = line.partition("\t")
        if not line.strip():
            continue
        if not tab:
            raise UserError(f"'{path}' line {number}: expected path<TAB>words, got '{line}'")
        try:
            words = tokens_of(text)
        except UserError as error:
            raise UserError(f"'{path}' line {number}: {error}") from None
        segments.append(Segment(_prepare(*read_wav(path.parent / name)), words, name, 0))
    if len(segments) < 3:
        raise UserError(f"'{path}' names {len(segments)} recordings; training, validation and test need one each")
    return segments


@functools.cache
def spoken_digits(speakers: tuple[str, ...], takes: int = 4, phrases: int = 20) -> list[Segment]:
    """eSpeak NG: for every speaker some takes of the ten digits, and phrases of two to four in one breath, seeded."""
    random, synthesiser = np.random.default_rng(SEED), Synthesiser()
    segments = []
    for speaker in speakers:
        texts = [((digit,), take) for take in range(takes) for digit in range(1, len(VOCABULARY))]
        for _ in range(phrases):
            texts.append((tuple(random.integers(1, len(VOCABULARY), random.integers(2, 5)).tolist()), takes))
        for words, take in texts:
            voice = Voice(
                speaker,
                accent=ACCENTS[random.integers(len(ACCENTS))],
                words_per_minute=int(random.integers(110, 210)),
                pitch=int(random.integers(25, 75)),
                expression=int(random.integers(20, 80)),
            )
            samples = synthesiser.speak(" ".join(VOCABULARY[word] for word in words), voice)
            segments.append(Segment(_prepare(samples, synthesiser.rate_hz), words, f"eSpeak {speaker}", take))
    return segments


def parts_of(segments: Sequence[Segment], unseen: Sequence[str], test_takes: int, validation_takes: int) -> Parts:
    """The first takes of every speaker test, the next validate, the others train; unseen speakers do none of these."""
    parts = Parts([], [], [], [])
    for segment in segments:
        if segment.speaker.removeprefix("eSpeak ") in unseen:
            parts.unseen_speaker.append(segment)
        elif segment.take < test_takes:
            parts.test.append(segment)
        elif segment.take < test_takes + validation_takes:
            parts.validation.append(segment)
        else:
            parts.train.append(segment)
    return parts


def connected(segments: Sequence[Segment], repeats: int, seed: int, treatment: Treatment = TESTING) -> Split:
    """Fixed strings of 1 to 7 segments: every take's segments, shuffled, ``repeats`` times."""
    takes: dict[tuple[str, int], list[Segment]] = defaultdict(list)
    for segment in segments:
        takes[segment.speaker, segment.take].append(segment)
    strings: list[tuple[Samples, tuple[int, ...]]] = []
    groups = []
    random = np.random.default_rng(seed)
    for group, take in enumerate(takes.values()):
        for _ in range(repeats):
            left = [take[index] for index in random.permutation(len(take))]
            while left:
                count = int(random.integers(1, TEST_WORDS + 1))
                strings.append(_string(left[:count], treatment, random))
                left = left[count:]
                groups.append(group)
    return _split(strings, groups)


class Pool:
    """Segments to train on; ``strings`` makes as many strings of them as are asked for."""

    def __init__(self, real: Sequence[Segment], spoken: Sequence[Segment]) -> None:
        self.sources = []
        for segments in (real, spoken):
            speakers: dict[str, list[Segment]] = defaultdict(list)
            for segment in segments:
                if len(segment.samples) < (TRAIN_SECONDS - 0.5) * SAMPLE_RATE_HZ:
                    speakers[segment.speaker].append(segment)
            if speakers:
                self.sources.append(list(speakers.values()))
        if not self.sources:
            raise UserError(f"no recording is shorter than {TRAIN_SECONDS - 0.5} s; cut the recordings at pauses")

    def strings(self, count: int, seed: int, treatment: Treatment = TRAINING) -> Split:
        """``count`` strings of at most 4 s, the last word always complete; one in twenty holds no word."""
        random = np.random.default_rng((SEED, seed))
        return _split([self._string(treatment, random) for _ in range(count)], range(count))

    def _string(self, treatment: Treatment, random: np.random.Generator) -> tuple[Samples, tuple[int, ...]]:
        source = self.sources[0 if random.random() < REAL_SHARE else -1]
        speakers = [source[random.integers(len(source))]]
        if random.random() < treatment.mixed:
            speakers = source
        most = 0 if random.random() < 0.05 else TRAIN_WORDS
        chosen: list[Segment] = []
        words, seconds, limit = 0, 0.0, TRAIN_SECONDS * random.uniform(0.7, 1.3)
        while True:
            speaker = speakers[random.integers(len(speakers))]
            segment = speaker[random.integers(len(speaker))]
            words += len(segment.words)
            seconds += len(segment.samples) / SAMPLE_RATE_HZ + treatment.gap_s[1] / 2
            if words > most or (seconds > limit and chosen):
                return _string(chosen, treatment, random, int(TRAIN_SECONDS * SAMPLE_RATE_HZ))
            chosen.append(segment)


def tokens_of(text: str) -> tuple[int, ...]:
    """Words or digits to tokens: "three five", "3 5" and "35" are (4, 6).

    Raises UserError: nothing there, or a word that is no digit.
    """
    words: list[str] = []
    for word in text.lower().split():
        words += [WORDS[int(digit)] for digit in word] if word.isascii() and word.isdigit() else [word]
    unknown = sorted(set(words) - set(WORDS))
    if unknown or not words:
        raise UserError(f"'{text.strip()}' holds {', '.join(unknown) or 'no words'}; the words are {', '.join(WORDS)}")
    return tuple(VOCABULARY.index(word) for word in words)


def text_of(tokens: Sequence[int] | NDArray[np.generic]) -> str:
    """The words of the tokens; blanks and padding are passed over."""
    return " ".join(VOCABULARY[int(token)] for token in tokens if token)


def _manifest_dataset(path: Path, spoken: Sequence[Segment]) -> Dataset:
    """Recordings split by a hash of their names, tested as they are; training strings them together."""
    segments = sorted(read_manifest(path), key=lambda segment: hashlib.sha256(segment.speaker.encode()).digest())
    tests, validations = max(len(segments) // 5, 1), max(len(segments) // 10, 1)
    test, validation = segments[:tests], segments[tests : tests + validations]
    return _dataset(
        Pool([replace(segment, speaker="manifest") for segment in segments[tests + validations :]], spoken),
        validation=_split([(segment.samples, segment.words) for segment in validation], range(len(validation))),
        test=_split([(segment.samples, segment.words) for segment in test], range(len(test))),
        others={},
        source=f"the recordings of {path.name}; eSpeak NG in training too",
    )


def _dataset(pool: Pool, validation: Split, test: Split, others: dict[str, Split], source: str) -> Dataset:
    train = pool.strings(SAMPLE_STRINGS, seed=0)
    digest = hashlib.sha256()
    for split in (train, validation, test, *others.values()):
        digest.update(split.inputs["pcm"].tobytes())
    return Dataset(
        train=train,
        validation=validation,
        test=test,
        source=source,
        sha256=digest.hexdigest(),
        others=others,
        fresh=lambda epoch: pool.strings(EPOCH_STRINGS, seed=epoch),
    )


def _string(
    segments: Sequence[Segment], treatment: Treatment, random: np.random.Generator, most: int | None = None
) -> tuple[Samples, tuple[int, ...]]:
    """Segments with gaps around them, treated: samples (time,), at most ``most``, and the words in them."""
    speed = int(random.choice(treatment.speeds))
    pieces, words = [_gap(treatment, random, 1.0 if segments else 10.0)], list[int]()
    for segment in segments:
        spoken = resample(segment.samples, 16, speed) * 10 ** (random.uniform(-2, 2) / 20)
        if most is not None and sum(map(len, pieces)) + len(spoken) > most:
            break
        pieces += [spoken, _gap(treatment, random)]
        words += segment.words
    samples = np.concatenate(pieces)[:most]
    if treatment.tilt:
        samples = lfilter([1, random.uniform(-treatment.tilt, treatment.tilt)], [1], samples)
    power = float(np.square(samples).sum() / max(np.count_nonzero(samples), 1))
    level = 10 ** (random.uniform(*treatment.level_db) / 20)
    samples = samples * (level / max(power, 1e-12) ** 0.5)
    if random.random() >= treatment.clean:
        colour = random.uniform(-0.9, 0.5)  # from rumble to hiss
        noise = lfilter([1], [1, colour], random.standard_normal(len(samples) + 100, np.float32))[100:]
        samples = samples + noise * (level * 10 ** (-random.uniform(*treatment.noise_db) / 20) / noise.std())
    return samples.astype(np.float32), tuple(words)


def _gap(treatment: Treatment, random: np.random.Generator, longer: float = 1.0) -> Samples:
    seconds = longer * random.uniform(*treatment.gap_s) * (random.uniform(1, 3) if random.random() < 0.2 else 1)
    return np.zeros(int(seconds * SAMPLE_RATE_HZ) + 1, np.float32)


def _split(strings: Sequence[tuple[Samples, tuple[int, ...]]], groups: Sequence[int]) -> Split:
    """Strings padded to the longest.

    Inputs: pcm (items, samples) int16, lengths (items, 1) int32. Targets: words (items, most), word_lengths (items,).
    """
    count = len(strings)
    pcm = np.zeros((count, max(len(samples) for samples, _ in strings)), np.int16)
    tokens = np.zeros((count, max(max(len(words) for _, words in strings), 1)), np.int64)
    for row, (samples, words) in enumerate(strings):
        pcm[row, : len(samples)] = np.clip(np.rint(samples * 32768), -32768, 32767)
        tokens[row, : len(words)] = words
    return Split(
        inputs={"pcm": pcm, "lengths": np.array([[len(samples)] for samples, _ in strings], np.int32)},
        targets={"words": tokens, "word_lengths": np.array([len(words) for _, words in strings], np.int64)},
        groups=np.asarray(groups, np.int64),
    )


def _prepare(samples: Samples, rate_hz: int) -> Samples:
    """A recording in the telephone band, without the silence around it, its ends faded over 5 ms."""
    prepared = trim(telephone_band(samples, rate_hz)).copy()
    ramp = np.linspace(0, 1, 80, dtype=np.float32)[: len(prepared)]
    prepared[: len(ramp)] *= ramp
    prepared[len(prepared) - len(ramp) :] *= ramp[::-1]
    return prepared
