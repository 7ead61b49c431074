"""What serving costs: every ONNX stage of a recipe through a real Triton, beside the same stage in this process.

    python -m loadtest.bench --model load_forecast        # after python -m optimize.export --quantize

The stages become models of a repository of their own, without a response cache. They take turns, 50 requests at a time,
each answered in this process and through gRPC, so that all see the same machine and none the other's leavings in its
caches; then each stage answers 1 and 16 callers at a time. The result is merged into the recipe's report. The load
generator shares the machine's cores with the server, which makes the throughputs lower bounds.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

import clients
from optimize import command, recipes, report, repository
from optimize.benchmark import Latency, onnx_candidate
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.recipes import Recipe
from serving.config import ServerConfig
from serving.launcher import Server

CALLERS = (1, 16)
TURN, WARMUP = 50, 5  # requests of a stage before the next has its turn, and how many of them are not timed


@dataclass(frozen=True)
class Served:
    """One stage: milliseconds alone in this process and through gRPC; requests per second by callers at a time."""

    stage: str
    in_process_ms: Latency
    server_ms: Latency
    requests_per_s: dict[int, float]

    @property
    def overhead_ms(self) -> float:
        return self.server_ms.p50 - self.in_process_ms.p50


def bench(recipe: Recipe, variant: str | None, artifacts: Path, data: Path | None, rounds: int, seconds: float,
          progress: Progress) -> list[Served]:  # fmt: skip
    """Measure all ONNX stages that the last export left under ``artifacts``.

    Raises UserError when there is no report, or an artefact of it is missing.
    """
    name, chosen = recipe.variant(variant)
    folder = artifacts / recipe.name / name
    stages = [stage for stage in _read(folder).stages if stage.runtime == "onnxruntime"]
    requests = recipe.load(data).test
    bar = progress.add_task("through Triton", total=rounds + len(stages) * len(CALLERS))
    with tempfile.TemporaryDirectory() as place:
        serving = replace(chosen.serving, response_cache=False, kind="cpu")
        for stage in stages:
            spec = replace(chosen.spec, name=stage.name)
            repository.publish(Path(place), spec, serving, folder / f"{stage.name}.onnx")
        with Server(ServerConfig(Path(place), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0)) as server:
            names = [stage.name for stage in stages]
            alone = _alone(server.grpc, names, folder, requests, rounds, progress, bar)
            rates = asyncio.run(_together(server.grpc, names, requests, seconds, progress, bar))
    return [Served(stage, *alone[stage], rates[stage]) for stage in names]


def _alone(
    address: str, stages: list[str], folder: Path, requests: Split, rounds: int, progress: Progress, bar: TaskID
) -> dict[str, tuple[Latency, Latency]]:
    """In turns of 50 requests a stage, each request in this process and through the server."""
    local = {stage: onnx_candidate(stage, folder / f"{stage}.onnx", "", 0) for stage in stages}
    times: dict[str, tuple[list[float], list[float]]] = {stage: ([], []) for stage in stages}
    with clients.connect(address) as client:
        for first in range(0, rounds, TURN):
            for stage in stages:
                runs: tuple[Callable[[Arrays], object], ...] = (local[stage].run, partial(client.infer, stage))
                for run, seconds in zip(runs, times[stage], strict=True):
                    for number in range(first - WARMUP, min(first + TURN, rounds)):
                        feed = requests.rows(number % len(requests), number % len(requests) + 1)
                        begin = time.perf_counter()
                        run(feed)
                        if number >= first:
                            seconds.append(time.perf_counter() - begin)
            progress.advance(bar, min(TURN, rounds - first))
    return {stage: (Latency.of(inside), Latency.of(through)) for stage, (inside, through) in times.items()}


async def _together(
    address: str, stages: list[str], requests: Split, seconds: float, progress: Progress, bar: TaskID
) -> dict[str, dict[int, float]]:
    """Requests per second of closed loops of 1 and 16 callers, the stages taken in turn."""
    rates: dict[str, dict[int, float]] = {stage: {} for stage in stages}
    async with await clients.aio.connect(address) as client:
        for callers in CALLERS:
            for stage in stages:
                rates[stage][callers] = await _rate(client, stage, callers, requests, seconds)
                progress.advance(bar)
    return rates


async def _rate(client: clients.aio.AsyncClient, stage: str, callers: int, requests: Split, seconds: float) -> float:
    end = time.perf_counter() + seconds
    answered = 0

    async def caller(number: int) -> None:
        nonlocal answered
        while time.perf_counter() < end:
            await client.infer(stage, requests.rows(number % len(requests), number % len(requests) + 1))
            answered += 1
            number += callers

    begin = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return answered / (time.perf_counter() - begin)


def _read(folder: Path) -> report.Report:
    path = folder / "report.json"
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; run python -m optimize.export --quantize first")
    return report.from_json(path.read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="of the last export")
    parser.add_argument("--rounds", type=int, default=500, metavar="N", help="timed requests a stage (default: 500)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each stage and number of callers")
    options = parser.parse_args(arguments)
    if options.rounds < 10 or not options.seconds > 0:
        parser.error("--rounds must be at least 10 and --seconds more than 0")
    recipe = recipes.load(options.model, options.recipe)
    with command.progress() as progress:
        served = bench(
            recipe, options.variant, options.artifacts, options.data, options.rounds, options.seconds, progress
        )
    folder = options.artifacts / recipe.name / recipe.variant(options.variant)[0]
    merged = report.with_server_latency(_read(folder), {entry.stage: entry.server_ms for entry in served})
    paths = report.write(merged, folder)
    (folder / "serving.json").write_text(json.dumps([asdict(entry) for entry in served], indent=2) + "\n")
    table = Table(
        "stage", "in process p50 ms", "gRPC p50", "p95", "p99", "overhead", "1 caller /s", "16 callers /s", "x"
    )
    for entry in served:
        latency, one, many = entry.server_ms, *(entry.requests_per_s[callers] for callers in CALLERS)
        numbers = (entry.in_process_ms.p50, latency.p50, latency.p95, latency.p99, entry.overhead_ms)
        rates = (f"{one:.0f}", f"{many:.0f}", f"{many / one:.2f}")
        table.add_row(entry.stage, *(f"{number:.3f}" for number in numbers), *rates)
    console = Console()
    console.print(table)
    console.print(f"merged into {paths[0]}")


if __name__ == "__main__":
    command.run(main)
