"""Every ONNX stage of a model through a real Triton: one caller beside the same stage in this process, then many.

The stages become models of a repository of their own, without a response cache. They take turns, so that all see the
same machine. One caller has this project's client; many callers send requests made beforehand (``closed_loop``), so
that the generator takes as little as can be of the cores that it shares with the server.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import Progress

import clients
from loadtest import prepared
from loadtest.bench.results import CALLERS, PROTOCOLS, Served, ServerTime
from loadtest.closed_loop import Load, Target, Turn, turn
from loadtest.processes import Usage, tree
from loadtest.server_statistics import RequestTime, ServerStatistics
from optimize import repository
from optimize.benchmark import Latency, Run, onnx_candidate
from optimize.data.dataset import Arrays
from optimize.recipes import Variant
from optimize.specs import ModelSpec
from serving.config import ServerConfig
from serving.launcher import Server

TURN, WARMUP = 50, 5  # requests of a stage before the next has its turn, and how many before them are not timed
WARM_UP_S = 0.15


@dataclass(frozen=True)
class Effort:
    """requests: timed, of a single caller to each stage. turns, seconds: of every stage, protocol and number of
    callers."""

    requests: int = 300
    turns: int = 2
    seconds: float = 1.0


def measured(
    variant: Variant, files: Mapping[str, Path], requests: list[Arrays], effort: Effort, progress: Progress
) -> dict[str, Served]:
    """By stage. requests: single ones, of which a model with states takes the inputs."""
    with _server(variant, files) as server:
        specs = {stage: replace(variant.spec, name=stage) for stage in files}
        alone = _alone(server, specs, files, requests, effort, progress)
        workers = {stage: _worker_bytes(server.pid, stage) for stage in files}
        loads = asyncio.run(_together(server, specs, requests, effort, progress))
    return {stage: Served(*alone[stage], workers[stage], loads[stage]) for stage in files}


@contextmanager
def _server(variant: Variant, files: Mapping[str, Path]) -> Iterator[Server]:
    serving = replace(variant.serving, response_cache=False, kind="cpu")
    with tempfile.TemporaryDirectory() as place:
        for stage, path in files.items():
            repository.publish(Path(place), replace(variant.spec, name=stage), serving, path)
        with Server(ServerConfig(Path(place), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0)) as server:
            yield server


def _alone(
    server: Server,
    specs: Mapping[str, ModelSpec],
    files: Mapping[str, Path],
    requests: list[Arrays],
    effort: Effort,
    progress: Progress,
) -> dict[str, tuple[Latency, Latency, ServerTime]]:
    """Latencies in process and of a single caller, and where Triton says that the time went."""
    local = {stage: onnx_candidate(stage, path, "", 0).run for stage, path in files.items()}
    inside: dict[str, list[float]] = {stage: [] for stage in specs}
    times: dict[str, list[float]] = {stage: [] for stage in specs}
    with ExitStack() as stack:
        client = stack.enter_context(clients.connect(server.grpc))
        asks = {stage: stack.enter_context(_asking(client, spec, requests[0])) for stage, spec in specs.items()}
        statistics = {stage: ServerStatistics(server.grpc, stage) for stage in specs}
        for each in statistics.values():
            stack.callback(each.close)
        before = {stage: each.request_time() for stage, each in statistics.items()}
        bar = progress.add_task("one caller", total=effort.requests)
        for first in range(0, effort.requests, TURN):
            count = min(TURN, effort.requests - first)
            for stage, ask in asks.items():
                inside[stage] += _calls(local[stage], requests, first, count)
                times[stage] += _calls(ask, requests, first, count)
            progress.advance(bar, count)
        spent = {stage: each.request_time().since(before[stage]) for stage, each in statistics.items()}
    return {
        stage: (Latency.of(inside[stage]), Latency.of(times[stage]), _split(spent[stage], times[stage]))
        for stage in specs
    }


def _calls(ask: Run | Callable[[Arrays], object], requests: list[Arrays], first: int, count: int) -> list[float]:
    seconds = []
    for number in range(first - WARMUP, first + count):
        request = requests[number % len(requests)]
        begin = time.perf_counter()
        ask(request)
        if number >= first:
            seconds.append(time.perf_counter() - begin)
    return seconds


@contextmanager
def _asking(client: clients.Client, spec: ModelSpec, last: Arrays) -> Iterator[Callable[[Arrays], object]]:
    """Requests by this project's client; of a model with states, chunks of one stream, which ``last`` ends."""

    def inputs(request: Arrays) -> Arrays:
        return {tensor.name: request[tensor.name] for tensor in spec.inputs}

    if not spec.states:
        yield lambda request: client.infer(spec.name, inputs(request))
        return
    with client.stream(spec.name) as session:
        yield lambda request: session.send(inputs(request))
        session.finish(inputs(last))


async def _together(
    server: Server, specs: Mapping[str, ModelSpec], requests: list[Arrays], effort: Effort, progress: Progress
) -> dict[str, dict[str, dict[int, Load]]]:
    targets: dict[tuple[str, str], Target] = {}
    for stage, spec in specs.items():
        targets[stage, PROTOCOLS[0]] = prepared.by_grpc(server.grpc, stream=bool(spec.states))
        if not spec.states:
            targets[stage, PROTOCOLS[1]] = prepared.by_http(server.http, stage)
    messages = {
        (stage, protocol): [prepared.request(target, specs[stage], request) for request in requests]
        for (stage, protocol), target in targets.items()
    }
    done: dict[tuple[str, str], dict[int, list[Turn]]] = {key: {callers: [] for callers in CALLERS} for key in targets}
    bar = progress.add_task("many callers", total=effort.turns * len(CALLERS) * len(targets))
    for _ in range(effort.turns):
        for callers in CALLERS:
            for key, target in targets.items():
                done[key][callers].append(await turn(target, messages[key], callers, WARM_UP_S, effort.seconds))
                progress.advance(bar)
    found: dict[str, dict[str, dict[int, Load]]] = {stage: {} for stage in specs}
    for (stage, protocol), by_callers in done.items():
        found[stage][protocol] = {callers: Load.of(turns) for callers, turns in by_callers.items()}
    return found


def _split(spent: RequestTime, seen_s: list[float]) -> ServerTime:
    """Means, in milliseconds."""
    queue, compute, copies = (1e3 * value for value in (spent.queue_s, spent.compute_s, spent.copies_s))
    seen = 1e3 * sum(seen_s) / len(seen_s)
    return ServerTime(queue, compute, copies, max(seen - queue - compute - copies, 0.0))


def _worker_bytes(pid: int, stage: str) -> int:
    """Resident memory of the stage's worker: a process that is told the name of its instance."""
    instance = re.compile(rf"\0{re.escape(stage)}_\d+_\d+\0".encode())
    for member in tree(pid):
        try:
            command = Path(f"/proc/{member}/cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if instance.search(command):
            return Usage.of(member).rss_bytes
    return 0
