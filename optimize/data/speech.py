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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optimize.data.audio import Samples, read_wav, telephone_band, trim
from optimize.data.dataset import Dataset, Split, data_folder
from optimize.data.espeak import ACCENTS, SPEAKERS, Synthesiser, Voice
from optimize.data.strings import Pool, Segment, connected, padded
from optimize.data.vocabulary import VOCABULARY, tokens_of
from optimize.errors import UserError

FOLDER = "speech/fsdd"
SEED = 16
EPOCH_STRINGS, SAMPLE_STRINGS = 4_096, 512


class Parts(NamedTuple):
    """Segments by use; no recording is in two, and no take is torn apart."""

    train: list[Segment]
    validation: list[Segment]
    test: list[Segment]
    unseen_speaker: list[Segment]


def load(data: Path | None = None) -> Dataset:
    """Strings of digits: from a manifest if one is given, else from the data set, else from eSpeak NG alone.

    Raises UserError for a manifest or a recording that cannot be used.
    """
    folder = data_folder() / FOLDER
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


def _manifest_dataset(path: Path, spoken: Sequence[Segment]) -> Dataset:
    """Recordings split by a hash of their names, tested as they are; training strings them together."""
    segments = sorted(read_manifest(path), key=lambda segment: hashlib.sha256(segment.speaker.encode()).digest())
    tests, validations = max(len(segments) // 5, 1), max(len(segments) // 10, 1)
    test, validation = segments[:tests], segments[tests : tests + validations]
    return _dataset(
        Pool([replace(segment, speaker="manifest") for segment in segments[tests + validations :]], spoken),
        validation=padded([(segment.samples, segment.words) for segment in validation], range(len(validation))),
        test=padded([(segment.samples, segment.words) for segment in test], range(len(test))),
        others={},
        source=f"the recordings of {path.name}; eSpeak NG in training too",
    )


def _dataset(pool: Pool, validation: Split, test: Split, others: dict[str, Split], source: str) -> Dataset:
    train = pool.strings(SAMPLE_STRINGS, seed=(SEED, 0))
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
        fresh=lambda epoch: pool.strings(EPOCH_STRINGS, seed=(SEED, epoch)),
    )


def _prepare(samples: Samples, rate_hz: int) -> Samples:
    """A recording in the telephone band, without the silence around it, its ends faded over 5 ms."""
    prepared = trim(telephone_band(samples, rate_hz)).copy()
    ramp = np.linspace(0, 1, 80, dtype=np.float32)[: len(prepared)]
    prepared[: len(ramp)] *= ramp
    prepared[len(prepared) - len(ramp) :] *= ramp[::-1]
    return prepared
