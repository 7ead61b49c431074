"""Recordings strung together, with gaps, noise, and changes of speed, loudness and microphone.

Test strings are fixed: every take's segments, shuffled, each as often as any other. Training strings are drawn from a
``Pool``, as many as are asked for, the same for the same seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from optimize.data.audio import SAMPLE_RATE_HZ, Samples, resample
from optimize.data.dataset import Split
from optimize.errors import UserError

TRAIN_SECONDS, TRAIN_WORDS, TEST_WORDS = 4.0, 12, 7  # the most of one string
REAL_SHARE = 0.6  # of the training strings, the rest is synthesised


@dataclass(frozen=True, eq=False)
class Segment:
    """A recording at 16 kHz of one or more words (as tokens), by whom, and which of their takes."""

    samples: Samples
    words: tuple[int, ...]
    speaker: str
    take: int


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
    return padded(strings, groups)


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

    def strings(self, count: int, seed: Sequence[int], treatment: Treatment = TRAINING) -> Split:
        """``count`` strings of at most 4 s, the last word always complete; one in twenty holds no word."""
        random = np.random.default_rng(seed)
        return padded([self._string(treatment, random) for _ in range(count)], range(count))

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


def padded(strings: Sequence[tuple[Samples, tuple[int, ...]]], groups: Sequence[int]) -> Split:
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
