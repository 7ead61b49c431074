"""A soak of seconds against a real server, leaks that are planted, and what fails the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.census import SHARED_MEMORY, Census
from loadtest.checked import Tally
from loadtest.hosted import Hosted
from loadtest.soak import Soak, SoakConfig, run, summary, to_json
from optimize.errors import UserError
from optimize.specs import ServingSpec, TensorSpec
from tests import tiny_models
from tests.loadtest.test_chaos import OUTPUTS, write

LEVEL = Census(3, 100_000_000, 90, 60, 4, 1_000_000)
SEEN = Soak(
    SoakConfig(), 100.0, [float(time) for time in range(100)], [LEVEL] * 100, {"new": [2.0] * 100}, {"new": 500},
    Tally(answers=100, finished=10), [], [],
)  # fmt: skip


def single() -> tiny_models.TinyModel:
    """`double` of one number: NaN in it is the same request again, whose refusal Triton caches."""
    model = tiny_models.double("single", ServingSpec(response_cache=True))
    for value in (model.graph.graph.input[0], model.graph.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 1
    number, (_, rows) = TensorSpec("x", "float32", (1,)), model.spec.outputs
    return replace(model, spec=replace(model.spec, inputs=(number,), outputs=(replace(number, name="y"), rows)))


def test_a_short_soak_with_a_leak(tmp_path: Path) -> None:
    """The leak: a file of shared memory with each sample, named as the server's are. It shows, and is left behind."""
    write(tmp_path)
    single().write(tmp_path)
    planted: list[Path] = []

    def plant(hosted: Hosted, at_s: float) -> None:
        planted.append(SHARED_MEMORY / f"{hosted.ids()[-1]}-leak-{len(planted)}")  # the server removes its own, with _
        planted[-1].write_bytes(b"x" * 65_536)

    config = SoakConfig(tmp_path, "speech", "single", streams=3, minutes=0.2, sample_s=0.5, outputs=OUTPUTS)
    try:
        seen = run(config, plant)
    finally:
        for path in planted:
            path.unlink(missing_ok=True)
    failed = {verdict.what for verdict in seen.verdicts(1000.0, 1000.0) if not verdict.passed}
    assert {"files of shared memory", "left behind"} <= failed <= {
        "files of shared memory", "left behind", "threads", "descriptors",  # of connections, in so short a time
    }, summary(seen)  # fmt: skip
    assert len(seen.left_behind) == len(planted)
    assert min(seen.requests.values()) > 0
    assert (seen.tally.wrong, seen.failures, seen.answered_garbage) == (0, [], [])
    assert json.loads(to_json(seen, seen.verdicts()))["requests"] == seen.requests


def grown(**by: int) -> list[Census]:
    """As a leak has it: so much more with each sample."""
    return [
        replace(LEVEL, **{field: getattr(LEVEL, field) + place * more for field, more in by.items()})
        for place in range(100)
    ]


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda seen: seen, []),
        (lambda seen: replace(seen, samples=grown(memory_bytes=50_000)), ["growth of memory"]),
        (lambda seen: replace(seen, samples=grown(memory_bytes=10_000)), []),
        (lambda seen: replace(seen, samples=grown(shared_bytes=1000)), ["growth of shared memory"]),
        (lambda seen: replace(seen, samples=grown(shared_files=1)), ["files of shared memory"]),
        (lambda seen: replace(seen, samples=grown(descriptors=1)), ["descriptors"]),
        (lambda seen: replace(seen, samples=grown(threads=1)), ["threads"]),
        (lambda seen: replace(seen, samples=[*grown(memory_bytes=900_000)[:20], *[LEVEL] * 80]), []),
        (lambda seen: replace(seen, latencies_ms={"new": [2.0] * 50 + [4.0] * 50}), ["latency, last tenth to first"]),
        (lambda seen: replace(seen, tally=Tally(answers=9, finished=1, wrong=1)), ["wrong answers"]),
        (lambda seen: replace(seen, tally=Tally(finished=1, lost=1)), ["sessions lost or refused"]),
        (lambda seen: replace(seen, tally=Tally()), ["right sessions"]),
        (lambda seen: replace(seen, failures=["no"]), ["requests that failed"]),
        (lambda seen: replace(seen, answered_garbage=["nan"]), ["garbage that was answered"]),
        (lambda seen: replace(seen, left_behind=["process 7"]), ["left behind"]),
    ],
)
def test_limits(change: Callable[[Soak], Soak], failing: list[str]) -> None:
    assert [verdict.what for verdict in change(SEEN).verdicts() if not verdict.passed] == failing


def test_too_short_to_say_anything() -> None:
    with pytest.raises(UserError, match="leave 3 samples; expected at least 5"):
        SoakConfig(minutes=0.1, sample_s=1.5)
