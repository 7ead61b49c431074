"""The backend's execute with a cache of openings: fewer runs, and to the bit the answers of a stream that is alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from optimize.specs import ServingSpec
from tests import tiny_models
from tests.serving.fake_pb_utils import InferenceRequest, InferenceResponse, Logger, TritonError
from tests.serving.test_backend import error_of, loaded
from tests.serving.test_backend_streams import OUTPUTS, Instance, in_process

ANSWERS = [name for name in OUTPUTS if name != "rows"]  # `rows` tells the batch, so it is no answer of a stream alone


@dataclass(frozen=True)
class Chunk:
    """One request's worth of a stream; how long it is decides how much of it counts."""

    values: tuple[int, ...]
    length: int = 16


SILENCE = Chunk((0,) * 16)
GREETING = [Chunk(tuple(range(start, start + 16))) for start in (100, 50, 7)]


def ask(stream: int, chunk: Chunk, control: str = "") -> InferenceRequest:
    arrays = {"pcm": np.array([chunk.values], np.int16), "lengths": np.array([[chunk.length]], np.int32)}
    return InferenceRequest(arrays, OUTPUTS, stream, "S" in control, "E" in control)


def alone(chunks: Sequence[Chunk]) -> dict[str, npt.NDArray[Any]]:
    """The answer to the last of them, of a stream by itself and without a cache."""
    states = {"state_sum": np.zeros((1, 1), np.int64), "state_level": np.zeros((1, 16), np.float32)}
    answer: dict[str, npt.NDArray[Any]] = {}
    for chunk in chunks:
        names = [*OUTPUTS, "next_state_sum", "next_state_level"]
        found = dict(zip(names, in_process().run(names, {**ask(1, chunk).arrays, **states}), strict=True))
        states = {"state_sum": found.pop("next_state_sum"), "state_level": found.pop("next_state_level")}
        answer = found
    return answer


class Cached(Instance):
    """An instance whose cache has room for ``entries`` answers."""

    def __init__(self, backend: ModuleType, tmp_path: Path, entries: int = 1000) -> None:
        Logger.warnings.clear()
        serving = ServingSpec(max_streams=16, opening_cache_mb=1)
        self.model = loaded(backend, tmp_path, tiny_models.listen(serving=serving))
        assert Logger.warnings == []
        self.now = 0.0
        self.model._streams._clock = lambda: self.now
        self.model._openings.limit_bytes = entries * 1200

    def hear(self, stream: int, chunks: Sequence[Chunk]) -> list[InferenceResponse]:
        """A whole stream, alone in its calls, each answer compared."""
        responses = []
        for place, chunk in enumerate(chunks):
            control = "S" * (place == 0) + "E" * (place == len(chunks) - 1)
            responses += self.execute(ask(stream, chunk, control))
            same(responses[-1], chunks[: place + 1])
        return responses


def same(response: InferenceResponse, chunks: Sequence[Chunk]) -> None:
    found, expected = response.arrays(), alone(chunks)
    for name in ANSWERS:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.fixture
def cached(backend: ModuleType, tmp_path: Path) -> Cached:
    return Cached(backend, tmp_path)


def test_a_known_opening_is_answered_without_runs(cached: Cached) -> None:
    for stream in range(1, 6):
        cached.hear(stream, GREETING)
    runs = len(cached.runs)
    cached.hear(9, GREETING)
    assert len(cached.runs) == runs
    assert cached.model._openings.hits == 1 + 2 + 3 + 3  # streams 3, 4, 5 and 9; 1 and 2 taught the first chunk


def test_after_its_opening_a_stream_goes_on_from_the_cached_state(cached: Cached) -> None:
    for stream in range(1, 6):
        cached.hear(stream, GREETING)
    runs = len(cached.runs)
    cached.hear(9, [*GREETING, Chunk((3,) * 16), Chunk((-8,) * 16), Chunk((1,) * 16, 5)])
    assert len(cached.runs) == runs + 3


def test_a_length_makes_another_opening(cached: Cached) -> None:
    """Equal samples, of which not all are meant: what a hash of the samples alone would confuse."""
    for stream in range(1, 5):
        cached.hear(stream, GREETING)
    for length in (16, 9, 0, 16):
        for stream in range(5, 8):
            cached.hear(stream, [GREETING[0], Chunk(GREETING[1].values, length), GREETING[2]])


def test_the_stream_beside_it_in_the_batch_hears_its_own(cached: Cached) -> None:
    for stream in range(1, 5):
        cached.hear(stream, GREETING)
    first = cached.execute(ask(1, GREETING[0], "S"), ask(2, SILENCE, "S"), ask(3, GREETING[0], "S"))
    assert cached.runs[-1] == 1
    same(first[0], GREETING[:1])
    same(first[1], [SILENCE])
    second = cached.execute(ask(3, GREETING[1]), ask(2, GREETING[1]), ask(1, SILENCE))
    same(second[0], GREETING[:2])
    same(second[1], [SILENCE, GREETING[1]])
    same(second[2], [GREETING[0], SILENCE])


def test_restart_end_and_a_reused_id_inside_an_opening(cached: Cached) -> None:
    for stream in range(1, 6):
        cached.hear(stream, GREETING)
    cached.execute(ask(1, GREETING[0], "S"))
    cached.execute(ask(1, GREETING[1]))
    same(cached.execute(ask(1, GREETING[0], "S"))[0], GREETING[:1])  # in the middle, without an END
    same(cached.execute(ask(1, GREETING[1], "E"))[0], GREETING[:2])
    assert len(cached.model._streams) == 0
    assert error_of(cached.execute(ask(1, GREETING[2]))[0]).code == TritonError.NOT_FOUND
    same(cached.execute(ask(1, SILENCE, "S"))[0], [SILENCE])
    same(cached.execute(ask(1, GREETING[1]))[0], [SILENCE, GREETING[1]])


def test_a_failed_request_inside_an_opening_changes_nothing(cached: Cached) -> None:
    for stream in range(1, 6):
        cached.hear(stream, GREETING)
    cached.execute(ask(1, GREETING[0], "S"))
    assert cached.execute(ask(1, Chunk(SILENCE.values, 9999)))[0].error is not None
    same(cached.execute(ask(1, GREETING[1]))[0], GREETING[:2])
    assert cached.execute(ask(1, Chunk(SILENCE.values, 9999), "S"))[0].error is not None
    assert error_of(cached.execute(ask(1, GREETING[1]))[0]).code == TritonError.NOT_FOUND


def test_hits_and_misses_are_told_to_triton(cached: Cached) -> None:
    metrics = cached.model._opening_metrics
    for stream in range(1, 6):
        metrics._due = 0.0
        cached.hear(stream, GREETING)
    metrics._due = 0.0
    metrics.tell()
    totals = {labels[-1][1]: metric.total for labels, metric in metrics._family.metrics.items()}
    openings = cached.model._openings
    assert totals == {"yes": openings.hits, "no": openings.misses}
    assert min(totals.values()) > 0


def test_off_unless_asked_for(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.listen()
    assert "opening_cache_mb" not in model.config.parameters
    instance = loaded(backend, tmp_path, model)
    assert instance._openings is None
    assert instance._opening_metrics is None


@pytest.mark.parametrize("entries", [2, 6, 1000])
def test_random_streams_of_shared_and_own_beginnings(backend: ModuleType, tmp_path: Path, entries: int) -> None:
    """Streams that follow one of few openings, part from it anywhere, restart, end and fail, 8 at a time."""
    cached = Cached(backend, tmp_path, entries)
    draw = random.Random(entries)
    tails = [Chunk(chunk.values, length) for chunk in (*GREETING, SILENCE) for length in (16, 9)]
    heard = dict[int, list[Chunk]]()
    for _ in range(400):
        together = draw.sample(range(1, 9), draw.randint(1, 8))
        requests, expected = list[InferenceRequest](), list[list[Chunk] | None]()
        for stream in together:
            starts = stream not in heard or draw.random() < 0.1
            past = [] if starts else heard[stream]
            chunk = [*GREETING, SILENCE][len(past) % 4] if draw.random() < 0.7 else draw.choice(tails)
            if draw.random() < 0.1:
                chunk = Chunk(tuple(draw.randint(-99, 99) for _ in range(16)), draw.randint(0, 16))
            fails, ends = draw.random() < 0.05, draw.random() < 0.15
            requests.append(ask(stream, Chunk(chunk.values, 9999) if fails else chunk, "S" * starts + "E" * ends))
            expected.append(None if fails else [*past, chunk])
            if ends or (fails and starts):
                heard.pop(stream, None)
            elif not fails:
                heard[stream] = [*past, chunk]
        for response, chunks in zip(cached.execute(*requests), expected, strict=True):
            if chunks is None:
                assert response.error is not None
            else:
                same(response, chunks)
    openings = cached.model._openings
    assert openings.bytes <= openings.limit_bytes
    assert openings.hits > (50 if entries == 2 else 300)
