"""The search without a server: what can be chosen, what is found, that nothing is measured twice, and the duel."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.search import Bound, Finding
from optimize.errors import UserError
from optimize.serving_tuner import duel
from optimize.serving_tuner.proving_ground import Effort, Reading, Run
from optimize.serving_tuner.result import Result, line, table, verdict, write
from optimize.serving_tuner.search import Measured, Search
from optimize.serving_tuner.space import Candidate, Choices, choices, digest, size
from optimize.serving_tuner.tuning import Options, name_of, served_files
from optimize.specs import ServingSpec
from tests import tiny_models

SPEC = tiny_models.double().spec  # batches of up to 8
PRESENT = ServingSpec(queue_delay_us=333, response_cache=True)
NOW = Candidate.of("invariant", PRESENT)
CANDIDATES = st.builds(
    Candidate,
    st.sampled_from(["invariant", "throughput", "published"]),
    st.integers(1, 64),
    st.integers(1, 64),
    st.lists(st.integers(1, 64), max_size=3).map(tuple),
    st.integers(0, 10**7),
)


def space(cores: int = 4) -> Choices:
    return choices(SPEC, PRESENT, ["invariant", "throughput"], 20.0, cores)


def never_measured(candidate: Candidate, known: int) -> Reading:
    raise AssertionError(f"{candidate} was measured")


def shown(known: Measured) -> None:
    pass


@given(CANDIDATES)
def test_a_candidate_comes_back_from_the_journal(candidate: Candidate) -> None:
    assert Candidate.parse(candidate.parameters) == candidate


def test_settings_keep_what_was_not_chosen() -> None:
    settings = Candidate("throughput", 2, 3, (4,), 100).settings(PRESENT)
    assert settings == ServingSpec(2, 3, (4,), 100, response_cache=True)


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 8])
def test_choices_stay_within_cores_and_limit(cores: int) -> None:
    found = space(cores)
    pairs = [tuple(map(int, pair.split("x"))) for pair in found["workers"]]
    assert all(instances * threads <= cores for instances, threads in pairs)
    assert {(cores, 1), (1, cores)} <= set(pairs)
    assert found["batch"] == ["any", "4", "8"]
    assert max(map(int, found["delay_us"])) == 5000  # a quarter of 20 ms
    assert "333" in found["delay_us"], "the present settings are a choice"
    assert size(found) == 2 * len(pairs) * 3 * len(found["delay_us"])


def test_present_settings_beyond_the_cores_are_a_choice() -> None:
    found = choices(SPEC, ServingSpec(instances=8), ["published"], 20.0, cores=2)
    assert found["workers"] == ["1x1", "1x2", "2x1", "8x1"]


def test_another_search_has_another_name() -> None:
    assert digest(SPEC, b"one", 20.0) == digest(SPEC, b"one", 20.0)
    assert len({digest(SPEC, b"one", 20.0), digest(SPEC, b"two", 20.0), digest(SPEC, b"one", 10.0)}) == 3


def test_a_search_is_of_the_settings_that_it_does_not_choose(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"model")

    def name(**changed: Any) -> str:
        present = replace(PRESENT, **changed)
        return name_of(SPEC, present, {"invariant": tmp_path / "model"}, space(), 20.0, Effort())

    assert name() == name(instances=3, threads=2, preferred_batch=(4,), queue_delay_us=9)
    others: list[dict[str, Any]] = [{"max_streams": 7}, {"strategy": "direct"}, {"idle_us": 7}, {"opening_cache_mb": 7}]
    assert len({name(), *(name(**other) for other in others)}) == 5


def worth(candidate: Candidate, known: int = 0) -> Reading:
    """A server whose best settings are 4 x 1, batch 8, 1000 us."""
    level = 100 * candidate.instances + 10 * len(candidate.preferred_batch) * candidate.preferred_batch[-1:].count(8)
    level -= abs(candidate.queue_delay_us - 1000) // 100
    return Reading(level, Bound.SERVER, (Run(level, 1.0, 2.0, 1.0, Finding.SUSTAINED),))


def test_the_best_is_found_and_the_present_is_first(tmp_path: Path) -> None:
    search = Search(tmp_path / "journal", "s", space(), NOW, seed=1)
    order: list[Measured] = []
    search.run(worth, 60, math.inf, order.append)
    assert order == search.measured
    assert order[0].candidate == NOW
    assert len({known.candidate for known in order}) == 60, "none twice"
    best = max(order, key=lambda known: known.reading.level)
    assert (best.candidate.instances, best.reading.level) == (4, search.best)
    at_random = random.Random(1)
    everything = [
        worth(Candidate.parse({name: at_random.choice(values) for name, values in space().items()})).level
        for _ in range(60)
    ]
    assert sum(known.reading.level for known in order) > sum(everything), "it looks where it is good"


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    def interrupted(candidate: Candidate, known: int) -> Reading:
        if len(search.measured) == 3:
            raise KeyboardInterrupt
        return worth(candidate)

    search = Search(tmp_path / "journal", "s", space(), NOW, seed=1)
    with pytest.raises(KeyboardInterrupt):
        search.run(interrupted, 10, math.inf, shown)
    before = search.measured
    again = Search(tmp_path / "journal", "s", space(), NOW, seed=1)
    assert again.measured == before
    again.run(worth, 10, math.inf, shown)
    assert again.measured[:3] == before
    assert len({known.candidate for known in again.measured}) == 10
    Search(tmp_path / "journal", "s", space(), NOW, seed=1).run(never_measured, 10, math.inf, shown)
    assert Search(tmp_path / "journal", "another", space(), NOW, seed=1).measured == []


def test_a_search_ends_with_its_time_or_its_space(tmp_path: Path) -> None:
    small = choices(SPEC, ServingSpec(), ["published"], 0.4, cores=1)  # three batches, two delays
    search = Search(tmp_path / "journal", "s", small, Candidate.of("published", ServingSpec()), seed=0)
    search.run(never_measured, 10, -math.inf, shown)
    search.run(worth, 1000, math.inf, shown)
    assert len(search.measured) == size(small) == 6


def test_what_the_server_refuses_is_passed_over(tmp_path: Path) -> None:
    def measure(candidate: Candidate, known: int) -> Reading:
        if candidate != NOW:
            raise UserError("no memory")
        return worth(candidate)

    search = Search(tmp_path / "journal", "s", space(), NOW, seed=1)
    search.run(measure, 3, math.inf, shown)
    assert [(known.reading.level, known.refused) for known in search.measured[1:]] == [(0, "no memory")] * 2
    assert line(search.measured[1]).startswith("  refused")


def test_the_present_settings_must_load(tmp_path: Path) -> None:
    def measure(candidate: Candidate, known: int) -> Reading:
        raise UserError("no memory")

    with pytest.raises(UserError, match="no memory"):
        Search(tmp_path / "journal", "s", space(), NOW, seed=1).run(measure, 3, math.inf, shown)


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("{nonsense\n{more\n")
    with pytest.raises(UserError, match="remove it to begin anew"):
        Search(tmp_path / "journal", "s", space(), NOW, seed=1)


def test_the_duel() -> None:
    def fight(ours: list[int], theirs: list[int]) -> duel.Duel:
        left, right = iter(ours), iter(theirs)
        return duel.fight(lambda: next(left), lambda: next(right), rounds=3)

    assert fight([100] * 3, [110, 120, 130]).won(3)
    assert fight([100] * 3, [110, 120, 130]).gain == pytest.approx(0.2)
    assert not fight([100] * 3, [104, 104, 130]).won(3), "less than the margin"
    assert fight([100, 100], [120, 100]) == duel.Duel((100, 100), (120, 100)), "a round not won ends it"
    assert not fight([100, 100], [120, 100]).won(3)
    assert fight([0] * 3, [10] * 3).won(3)
    assert fight([0], [0]).gain == 0


def test_equals_hardly_ever_beat_each_other() -> None:
    draw = random.Random(7)

    def level() -> int:
        return round(draw.gauss(1000, 100))

    assert sum(duel.fight(level, level).won(duel.ROUNDS) for _ in range(1000)) <= 50
    better = sum(duel.fight(level, lambda: level() + 400).won(duel.ROUNDS) for _ in range(200))
    assert better >= 190


RUNS = st.builds(
    Run,
    st.integers(1, 50),
    st.just(1.0),
    st.integers(1, 50).map(float),
    st.just(1.0),
    st.sampled_from(Finding).map(str),
)
MEASURED = st.lists(
    st.builds(lambda runs: Measured(NOW, Reading(1, "server", tuple(runs))), st.lists(RUNS)), max_size=4
)


def result(measured: tuple[Measured, ...], **more: object) -> Result:
    values = {"model": "m", "unit": "requests per second", "p99_limit_ms": 20.0, "cores": 2, "present": NOW}
    return Result(**{**values, "measured": measured, **more})  # type: ignore[arg-type]


@given(MEASURED)
def test_the_front_beats_everything_and_nothing_in_it_is_beaten(measured: list[Measured]) -> None:
    runs = [run for known in measured for run in known.reading.runs if run.sustained]
    front = [point.run for point in result(tuple(measured)).front]
    assert [(run.level, run.p99_ms) for run in front] == sorted({(run.level, run.p99_ms) for run in front})
    for run in runs:
        assert any(best.level >= run.level and best.p99_ms <= run.p99_ms for best in front)
    for best in front:
        assert not any(
            run.level >= best.level
            and run.p99_ms <= best.p99_ms
            and (run.level, run.p99_ms) != (best.level, best.p99_ms)
            for run in runs
        )


def test_files_and_words(tmp_path: Path) -> None:
    silent = Run(64, math.nan, math.nan, 0.0, Finding.NOT_SUSTAINED)
    other = Candidate("throughput", 2, 1, (), 0)
    measured = (
        Measured(NOW, Reading(32, Bound.GENERATOR, (Run(32, 1.0, 3.0, 1.0, Finding.SUSTAINED), silent))),
        Measured(other, Reading(64, Bound.SERVER, (Run(64, 1.0, 4.0, 2.0, Finding.SUSTAINED),))),
    )
    found = result(measured)
    paths = write(found, tmp_path)
    content = json.loads(paths[0].read_text())
    assert content["measured"][0]["reading"]["runs"][1]["p99_ms"] is None
    assert [point["run"]["level"] for point in content["front"]] == [32, 64]
    assert paths[1].read_text().startswith("<svg")
    assert table(found).row_count == 2
    assert line(measured[0]).startswith("at least    32")
    words = "\n".join(verdict(found))
    for expected in ("nothing was written", "profile throughput gave up to 64, invariant 32", "load generator"):
        assert expected in words
    won = result(measured[:1], winner=other, duel=duel.Duel((32,), (64,)), written="x.json", export="do this")
    assert "better by 100%: written to x.json; to publish it: do this" in "\n".join(verdict(won))
    lost = result(measured[:1], winner=other, duel=duel.Duel((32,), (31,)))
    assert "within the noise: nothing was written" in "\n".join(verdict(lost))


def test_the_published_file_and_its_sibling(tmp_path: Path) -> None:
    model, artifacts = tmp_path / "m", tmp_path / "artifacts"
    artifacts.mkdir()
    with pytest.raises(UserError, match="has no published version; run the export first"):
        served_files(model, artifacts, None, "the export")
    for version in ("1", "2"):
        (model / version).mkdir(parents=True)
        (model / version / "model.onnx").write_text(version)
    live = model / "2" / "model.onnx"
    assert served_files(model, artifacts, None, "") == {"published": live}
    sibling = artifacts / "student_onnx_int8_throughput.onnx"
    sibling.write_text("fast")
    (artifacts / "student_onnx_int8.onnx").write_text("1")  # of another export than what is live
    assert served_files(model, artifacts, None, "") == {"published": live}
    (artifacts / "student_onnx_int8.onnx").write_text("2")
    assert served_files(model, artifacts, None, "") == {"invariant": live, "throughput": sibling}
    assert served_files(model, artifacts, "throughput", "") == {"throughput": sibling}
    sibling.unlink()
    with pytest.raises(UserError, match=r"--profile throughput: there is no such file.*; run the export, or"):
        served_files(model, artifacts, "throughput", "the export")


@pytest.mark.parametrize("p99_ms", [0.0, -1.0, math.inf, math.nan])
def test_a_limit_is_above_zero(p99_ms: float) -> None:
    with pytest.raises(UserError, match=r"--p99-ms is .*; expected milliseconds above 0"):
        Options(p99_ms=p99_ms)
