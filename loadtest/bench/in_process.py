"""Every stage of a model in this process, in turn: torch from the checkpoints, ONNX from the last export's files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import Progress

from loadtest.bench.results import THREADS
from optimize import report, streaming
from optimize.benchmark import Candidate, Latency, Run, interleaved, onnx_candidate, torch_candidate, torch_threads
from optimize.buckets import fitted
from optimize.checkpoint import load_checkpoint, path_of
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.recipes import Recipe
from optimize.report import Report, Stage
from optimize.specs import ModelSpec

REQUESTS = 200  # of the test data, spread over it, again and again
ROUNDS, MOST_ROUNDS = 10, 500  # at a time, at least; and at most
_TORCH = "_torch_fp32"


def read_report(folder: Path, command: str) -> Report:
    """Of the last export. command: what would make one."""
    path = folder / "report.json"
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; run {command} first")
    return report.from_json(path.read_text())


def onnx_stages(found: Report, folder: Path) -> dict[str, Path]:
    """The report's ONNX stages, by name. Raises UserError when a file is missing."""
    files = {stage.name: folder / f"{stage.name}.onnx" for stage in found.stages if stage.runtime == "onnxruntime"}
    for path in files.values():
        if not path.is_file():
            raise UserError(f"'{path}' does not exist; run python -m optimize.export --quantize of this model again")
    return files


def requests_of(spec: ModelSpec, files: dict[str, Path], test: Split) -> list[Arrays]:
    """Single requests as clients send them (1, ...); of a model with states, steps in mid-stream, states included."""
    step = onnx_candidate("", next(iter(files.values())), "", 0).run
    split = streaming.steps(step, spec, test)
    places = range(0, len(split), max(len(split) // REQUESTS, 1))
    return [fitted(split.rows(place, place + 1), spec) for place in places][:REQUESTS]


def measured(
    recipe: Recipe,
    variant: str,
    stages: Sequence[Stage],
    files: dict[str, Path],
    checkpoints: Path,
    requests: list[Arrays],
    seconds: float,
    progress: Progress,
) -> dict[str, dict[int, Latency]]:
    """Latencies by stage and threads. seconds: about how long for each number of threads."""
    found: dict[str, dict[int, Latency]] = {stage.name: {} for stage in stages}
    bar = progress.add_task("in process", total=len(THREADS))
    for threads in THREADS:
        candidates = [_candidate(recipe, variant, stage, files, checkpoints, threads) for stage in stages]
        runs: dict[str, Run] = {candidate.name: candidate.run for candidate in candidates}
        with torch_threads(threads):
            for name, times in _for(runs, requests, seconds).items():
                found[name][threads] = Latency.of(times)
        progress.advance(bar)
    return found


def _for(runs: Mapping[str, Run], requests: list[Arrays], seconds: float) -> dict[str, list[float]]:
    """Seconds of every timed call, all in turn, for about so long."""
    until = time.perf_counter() + seconds
    times: dict[str, list[float]] = {name: [] for name in runs}
    for first in range(0, MOST_ROUNDS, ROUNDS):
        feeds = [requests[place % len(requests)] for place in range(first, first + ROUNDS)]
        for name, found in interleaved(runs, feeds, ROUNDS, warmup=0 if first else 3).items():
            times[name] += found
        if time.perf_counter() > until:
            break
    return times


def _candidate(
    recipe: Recipe, variant: str, stage: Stage, files: dict[str, Path], checkpoints: Path, threads: int
) -> Candidate:
    if stage.name in files:
        return onnx_candidate(stage.name, files[stage.name], stage.precision, stage.parameters, threads)
    network, chosen = stage.name.removesuffix(_TORCH), recipe.variants[variant]
    path = path_of(checkpoints, recipe.name, *recipe.origin(variant, network))
    module, _ = load_checkpoint(path, chosen.networks[network])
    return torch_candidate(stage.name, module, chosen.spec)
