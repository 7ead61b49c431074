"""A Triton of the tuner's own, on free ports, that takes one candidate after the other without a restart.

    with ProvingGround(spec, present, files, p99_limit_ms, Effort()) as ground:
        reading = ground.measure(candidate)
        reading.level  # requests per second, or real-time streams, at which p99 stays within the limit

A candidate is published into the server's repository like any version, so what cannot load is refused, and the one
before goes on. Load is open loop: a request's latency counts from when it was due. The response cache is off: it would
answer what the model should.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import clients
from clients.signature import Signature
from loadtest import audio
from loadtest.capacity import CHUNK_DEADLINES
from loadtest.chunks import ChunkShape
from loadtest.load import Load
from loadtest.prober import Prober
from loadtest.request_load import RequestLoad
from loadtest.search import Finding, largest
from loadtest.stream_load import StreamLoad
from loadtest.trial import Goal, Trial
from optimize import repository
from optimize.serving_tuner.space import Candidate
from optimize.specs import ModelSpec, ServingSpec
from serving.config import ServerConfig
from serving.launcher import Server

UTTERANCE_S = 10.0
LEAST_REQUESTS = 20  # of a run: with fewer there is no 99th percentile to speak of
CAUTION = 0.6  # of the level known to be sustained: where the search for another candidate's begins


@dataclass(frozen=True)
class Effort:
    """How much load. seconds: of one run, after a second of warm-up. precision: how near to the edge a search goes,
    as a fraction. ceiling: the most to try."""

    seconds: float = 1.5
    precision: float = 0.1
    ceiling: int = 4096
    processes: int = max((os.cpu_count() or 1) // 2, 1)
    seed: int = 0
    inputs: Path | None = None


@dataclass(frozen=True)
class Run:
    """One level of load. finding: see ``loadtest.trial``."""

    level: int
    p50_ms: float
    p99_ms: float
    mean_batch: float
    finding: str

    @classmethod
    def of(cls, trial: Trial) -> Run:
        return cls(trial.level, trial.p50_ms, trial.p99_ms, trial.mean_batch, str(trial.finding))

    @property
    def sustained(self) -> bool:
        return self.finding == Finding.SUSTAINED


@dataclass(frozen=True)
class Reading:
    """What a candidate gives: the highest level sustained, 0 if none was, why no more, and every run."""

    level: int
    bound: str
    runs: tuple[Run, ...]

    @property
    def p99_ms(self) -> float:
        """At that level, the last time it was run; NaN if nothing was sustained."""
        return next((run.p99_ms for run in reversed(self.runs) if run.sustained and run.level == self.level), math.nan)


class ProvingGround:
    """See the module; a context manager. files: the ONNX of each profile. p99_limit_ms: None for streams means their
    chunk's duration. show: called with every run."""

    def __init__(
        self,
        spec: ModelSpec,
        present: ServingSpec,
        files: Mapping[str, Path],
        p99_limit_ms: float | None,
        effort: Effort,
        show: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self._spec, self._files, self._effort, self._show = spec, files, effort, show
        self._present = replace(present, response_cache=False)
        self._asked_ms = p99_limit_ms
        self._closing = ExitStack()
        self.goal = Goal(math.nan)
        self.ceiling = min(effort.ceiling, present.max_streams) if spec.states else effort.ceiling

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._place = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            self._apply(Candidate.of(next(iter(self._files)), self._present))
            ports = ServerConfig(self._place, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0)
            server = opened.enter_context(Server(ports))
            with clients.connect(server.grpc) as client:
                signature = client.signature(self._spec.name)
            load, self.goal = self._plan(signature)
            idle_s, processes = signature.idle_limit_s or 0.0, self._effort.processes
            streams = self.goal.period_s is not None
            self._least = 1 if streams else min(math.ceil(LEAST_REQUESTS / self._effort.seconds), self.ceiling)
            self._prober = opened.enter_context(
                Prober(server.grpc, self._spec.name, load, self.goal, processes, idle_s, self._told)
            )
            self._closing = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def measure(self, candidate: Candidate, known: int = 0, precision: float | None = None) -> Reading:
        """Serve it and search its highest level. known: a level that others sustain, to begin near to.

        Raises UserError if the server cannot load it.
        """
        self._apply(candidate)
        before = len(self._prober.trials)
        found = largest(
            self._finding,
            lambda level: self._finding(level, confirms=True),
            ceiling=self.ceiling,
            first=max(int(CAUTION * known), self._least),
            precision=self._effort.precision if precision is None else precision,
            attempts=1,
        )
        runs = tuple(Run.of(trial) for trial in self._prober.trials[before:])
        return Reading(found.level, str(found.bound), runs)

    def _finding(self, level: int, confirms: bool = False) -> Finding:
        if level < self._least:
            return Finding.NOT_SUSTAINED
        return self._prober.finding(level, self._effort.seconds, confirms)

    def _apply(self, candidate: Candidate) -> None:
        settings, file = candidate.settings(self._present), self._files[candidate.profile]
        repository.publish(self._place, self._spec, settings, file, keep=1)

    def _told(self, trial: Trial) -> None:
        self._show(Run.of(trial))

    def _plan(self, signature: Signature) -> tuple[Load, Goal]:
        """What is sent, and what counts as sustained."""
        limit_ms = self._asked_ms
        if signature.idle_limit_s is None:
            assert limit_ms is not None, "only a chunk's duration can stand in for it"
            deadline_s = max(1.0, 5 * limit_ms / 1e3)
            return RequestLoad(self._spec.name, "poisson", deadline_s, self._effort.inputs), Goal(limit_ms)
        shape = ChunkShape.of(signature)
        chunk_ms = shape.seconds * 1e3
        samples, deadline_s = audio.bursts(self._effort.seed), max(5.0, CHUNK_DEADLINES * shape.seconds)
        load = StreamLoad(self._spec.name, shape, samples, UTTERANCE_S, deadline_s, self._effort.seed)
        return load, Goal(min(limit_ms or chunk_ms, chunk_ms), shape.seconds)
