"""The whole of a tuning: find the files, search, let the best fight the present settings, keep what won."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtest.search import Finding
from optimize.errors import UserError
from optimize.quantize.method import PROFILES
from optimize.recipes import Recipe
from optimize.serving_tuner import duel
from optimize.serving_tuner.proving_ground import Effort, ProvingGround, Run
from optimize.serving_tuner.result import Result, write
from optimize.serving_tuner.search import Measured, Search
from optimize.serving_tuner.space import Candidate, Choices, choices, digest
from optimize.specs import ModelSpec, ServingSpec
from optimize.triton_config import MODEL_FILENAME
from optimize.version_folder import versions

STREAMS, REQUESTS = "real-time streams", "requests per second"
JOURNAL = "tuning.journal"


@dataclass(frozen=True)
class Options:
    """trials, minutes: of the search, whichever ends first. rounds: of the duel. profile: None for all there are."""

    p99_ms: float | None
    trials: int = 40
    minutes: float = math.inf
    rounds: int = duel.ROUNDS
    cores: int = os.cpu_count() or 1
    profile: str | None = None
    streams: bool = False
    effort: Effort = field(default_factory=Effort)
    artifacts: Path = Path("artifacts")
    model_repository: Path = Path("model_repository")

    def __post_init__(self) -> None:
        if self.p99_ms is not None and not 0 < self.p99_ms < math.inf:
            raise UserError(f"--p99-ms is {self.p99_ms:g}; expected milliseconds above 0")


@dataclass(frozen=True)
class Watcher:
    """Who is told: of every candidate, with how many there were and the best level; of every run; of what begins."""

    candidate: Callable[[Measured, int, int], None] = lambda known, number, best: None
    run: Callable[[Run], None] = lambda run: None
    stage: Callable[[str], None] = lambda what: None


def tune(recipe: Recipe, variant: str | None, options: Options, watcher: Watcher | None = None) -> Result:
    """Search, confirm and save the winner's ServingSpec beside the recipe.

    Raises UserError: not published, no input for it, nothing keeps p99 within the limit.
    """
    watcher = watcher or Watcher()
    name, chosen = recipe.variant(variant)
    spec, present = chosen.spec, chosen.serving
    if options.streams and not spec.states:
        raise UserError(f"--streams: model '{spec.name}' keeps no state, so it has no streams; leave it out")
    if not spec.states and options.p99_ms is None:
        raise UserError(f"model '{spec.name}' keeps no state, so nothing limits its latency: give --p99-ms")
    folder = options.artifacts / recipe.name / name
    export = recipe.export(name)
    files = served_files(options.model_repository / spec.name, folder, options.profile, export)
    published = next(iter(files))
    if published in PROFILES:
        export += f" --profile {published}"
    now = Candidate.of(published, present)
    with ProvingGround(spec, present, files, options.p99_ms, options.effort, watcher.run) as ground:
        limit_ms = ground.goal.p99_limit_ms
        space = choices(spec, present, list(files), limit_ms, options.cores)
        study = name_of(spec, present, files, space, limit_ms, options.effort)
        search = Search(folder / JOURNAL, study, space, now, options.effort.seed)
        until_s = time.monotonic() + 60 * options.minutes
        unit = STREAMS if spec.states else REQUESTS

        def found() -> Result:
            return Result(spec.name, unit, limit_ms, options.cores, tuple(search.measured), now)

        def told(known: Measured) -> None:
            write(found(), folder)
            watcher.candidate(known, len(search.measured), search.best)

        search.run(ground.measure, options.trials, until_s, told)
        result = found()
        winner = _best(result, published)
        if winner != now:
            watcher.stage("best against present")
            precision, level = options.effort.precision / 2, search.best
            fought = duel.fight(
                lambda: ground.measure(now, level, precision).level,
                lambda: ground.measure(winner, level, precision).level,
                options.rounds,
            )
            result = replace(result, winner=winner, duel=fought)
            if fought.won(options.rounds):
                serving = winner.settings(present)
                written = str(recipe.save_serving(name, serving))
                result = replace(result, serving=serving, written=written, export=export)
    write(result, folder)
    return result


def name_of(
    spec: ModelSpec, present: ServingSpec, files: Mapping[str, Path], space: Choices, limit_ms: float, effort: Effort
) -> str:
    """Of a search, in the journal: another where anything differs on which levels depend and that no candidate sets."""
    fixed = Candidate("", 1, 1, (), 0).settings(present)
    return f"{spec.name}-{digest(spec, fixed, *map(Path.read_bytes, files.values()), space, limit_ms, effort)}"


def served_files(model: Path, artifacts: Path, profile: str | None, export: str) -> dict[str, Path]:
    """The live version's file, and the same network in other profiles if the last export left them; it comes first.

    profile: only this one. export: the command that makes them. Raises UserError if nothing is published, or there is
    no such file.
    """
    numbers = versions(model)
    if not numbers:
        raise UserError(f"'{model}' has no published version; run {export} first")
    live = model / str(numbers[-1]) / MODEL_FILENAME
    beside: dict[str, Path] = {
        each: path
        for each in PROFILES
        for path in artifacts.glob(f"*_int8_{each}.onnx")
        if _same(path.with_name(path.name.replace(f"_{each}", "")), live)
    }
    own: str = next((each for each in PROFILES if each not in beside), "published") if beside else "published"
    files = {own: live, **beside}
    if profile is None:
        return files
    if profile not in files:
        raise UserError(
            f"--profile {profile}: there is no such file of what is published, only {', '.join(files)}; "
            f"run {export}, or leave --profile out"
        )
    return {profile: files[profile]}


def _same(path: Path, live: Path) -> bool:
    return path.is_file() and path.stat().st_size == live.stat().st_size and path.read_bytes() == live.read_bytes()


def _best(result: Result, profile: str) -> Candidate:
    """Of the candidates with the profile that is published; of two alike the earlier one, so the present wins a tie."""
    known = [known for known in result.measured if known.candidate.profile == profile]
    best = max(known, key=lambda known: known.reading.level)
    if best.reading.level:
        return best.candidate
    runs = [(run, each.candidate) for each in result.measured for run in each.reading.runs]
    answered = [each for each in runs if not math.isnan(each[0].p99_ms)]
    if not answered:
        raise UserError(f"model '{result.model}' answered nothing; ask it with python -m clients, and see why")
    run, candidate = min(answered, key=lambda each: each[0].p99_ms)
    if any(each.finding == Finding.GENERATOR for each, _ in answered):
        raise UserError(
            f"nothing could be measured of model '{result.model}': {Finding.GENERATOR}; end what else runs on this "
            "machine, or allow more with --p99-ms"
        )
    raise UserError(
        f"nothing keeps the p99 of model '{result.model}' within {result.p99_limit_ms:g} ms: the best was "
        f"{run.p99_ms:.3g} ms, at {run.level} {result.unit} with {candidate}; allow more with --p99-ms"
    )
