"""What a benchmark found: plain data, and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.closed_loop import Load
from optimize import report
from optimize.benchmark import Latency
from optimize.report import Report, Stage
from optimize.report_tables import Mark, Row, Table, number, ratio, series

CALLERS = (1, 4, 16, 64)
THREADS = (1, 2)
PROTOCOLS = ("gRPC", "HTTP")


@dataclass(frozen=True)
class ServerTime:
    """Where the milliseconds of a request of a single caller go, on average, by Triton's own count.

    compute: from the worker's being told until it has answered. copies: of tensors, into and out of its memory.
    transport: what the client saw beyond that, its own work included.
    """

    queue: float
    compute: float
    copies: float
    transport: float


@dataclass(frozen=True)
class Served:
    """A stage through Triton. in_process_ms, client_ms: in turn, a call here and one of a single caller with this
    project's client, by gRPC. worker_bytes: resident memory of its worker. load: by protocol and callers, of requests
    made beforehand."""

    in_process_ms: Latency
    client_ms: Latency
    time_ms: ServerTime
    worker_bytes: int
    load: Mapping[str, Mapping[int, Load]]


@dataclass(frozen=True)
class Benched:
    """One stage of one model. in_process_ms: by threads."""

    stage: Stage
    in_process_ms: Mapping[int, Latency]
    served: Served | None = None

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def overhead_ms(self) -> float | None:
        """What a caller by gRPC waits longer than one in process."""
        return self.served.client_ms.p50 - self.served.in_process_ms.p50 if self.served else None


@dataclass(frozen=True)
class ModelBench:
    """All stages of one model. report: of its last export, which has the metrics. unit: what a request is."""

    report: Report
    stages: list[Benched]
    unit: str = "requests"

    @property
    def title(self) -> str:
        return f"{self.report.model} · {self.report.variant}"

    @property
    def published(self) -> Benched | None:
        live = self.report.published
        return next((it for it in self.stages if live and it.name == live.stage), None)


@dataclass(frozen=True)
class Bench:
    """models: as they were measured, one after the other. settings: rounds, seconds and the like."""

    environment: dict[str, Any]
    models: list[ModelBench]
    settings: dict[str, Any] = field(default_factory=dict)


def to_json(bench: Bench) -> str:
    return json.dumps(asdict(bench), indent=2) + "\n"


def from_json(text: str) -> Bench:
    """The inverse of ``to_json``."""
    values = json.loads(text)
    return Bench(values["environment"], [_model(model) for model in values["models"]], values["settings"])


def summary(bench: Bench) -> Table:
    """The published stage of every model beside its teacher."""
    headings = ["model", "metric", "loss to teacher", "MB", "smaller", "in process, p50 ms", "faster", "gRPC, p50 ms"]
    headings += ["above in process", f"/s, {CALLERS[0]} caller", f"/s, {CALLERS[2]} callers"]
    rows = []
    for model in bench.models:
        if (live := model.published) is None:
            continue
        teacher, stage = model.stages[0], live.stage
        metric = f"{number(stage.metric.value, 4)} {stage.metric.name}"
        cells = [metric, f"{100 * stage.metric.loss_to_teacher:+.2f}{' points' if stage.metric.points else ' %'}"]
        cells += [number(stage.size_bytes / 1e6), ratio(teacher.stage.size_bytes, stage.size_bytes)]
        cells += [number(live.in_process_ms[1].p50), ratio(teacher.in_process_ms[1].p50, live.in_process_ms[1].p50)]
        if live.served and live.overhead_ms is not None:
            cells += [number(live.served.client_ms.p50), f"{live.overhead_ms:.2f}"]
            cells += [
                f"{live.served.load['gRPC'][callers].requests_per_s:,.0f}" for callers in (CALLERS[0], CALLERS[2])
            ]
        rows.append(Row([model.title, *cells, *[""] * (len(headings) - 1 - len(cells))], "", series(stage)))
    note = "What is published, against its teacher in torch: one thread, single requests, side by side in one process."
    return Table("What is published", headings, [False] + [True] * (len(headings) - 1), rows, note)


def tables(model: ModelBench) -> list[Table]:
    """In process, through Triton alone, and under load; without those that have no rows."""
    return [table for table in (_in_process(model), _alone(model), _load(model)) if table.rows]


def _in_process(model: ModelBench) -> Table:
    headings = ["stage", model.report.stages[0].metric.name, "MB"]
    for threads in THREADS:
        headings += [f"{threads} thread{'s' * (threads > 1)}: p50 ms", "p95", "p99"]
    headings += ["calls"]
    rows = []
    for it in model.stages:
        cells = [number(it.stage.metric.value, 4), number(it.stage.size_bytes / 1e6)]
        for threads in THREADS:
            latency = it.in_process_ms.get(threads)
            cells += _three(latency) if latency else ["", "", ""]
        cells += [str(it.in_process_ms[1].count)]
        rows.append(Row([it.name, *cells], _mark(model, it), series(it.stage)))
    note = "Single requests, the stages in turn; the metric as the last export measured it."
    return _numbers("In process", headings, rows, note)


def _alone(model: ModelBench) -> Table:
    headings = ["stage", "p50 ms", "p95", "p99", "calls", "above in process", "queue", "compute", "copies", "transport"]
    headings += ["worker, MB"]
    rows = []
    for it in model.stages:
        if it.served and it.overhead_ms is not None:
            time = it.served.time_ms
            cells = [*_three(it.served.client_ms), str(it.served.client_ms.count), f"{it.overhead_ms:.2f}"]
            cells += [f"{value:.3f}" for value in (time.queue, time.compute, time.copies, time.transport)]
            rows.append(
                Row([it.name, *cells, number(it.served.worker_bytes / 1e6)], _mark(model, it), series(it.stage))
            )
    note = "One caller by gRPC, in turn with the same stage in this process. Queue to transport: mean milliseconds, as "
    note += "Triton counts them; transport is what the client saw beyond."
    return _numbers("Through Triton, one caller", headings, rows, note)


def _load(model: ModelBench) -> Table:
    headings = ["stage, protocol"]
    for callers in CALLERS:
        headings += [f"{callers} caller{'s' * (callers > 1)}: /s", "p50 ms", "p95", "p99"]
    rows = []
    for it in model.stages:
        for protocol, loads in (it.served.load if it.served else {}).items():
            cells = []
            for callers in CALLERS:
                load = loads.get(callers)
                cells += [f"{load.requests_per_s:,.0f}", *_three(load.latency_ms)] if load else ["", "", "", ""]
            rows.append(Row([f"{it.name}, {protocol}", *cells], _mark(model, it), series(it.stage)))
    note = f"Closed loop: each caller sends its next when the last is answered; {model.unit} a second. The generator "
    note += "shares the machine with the server, which makes these lower bounds."
    return _numbers("Through Triton, under load", headings, rows, note)


def _three(latency: Latency) -> list[str]:
    return [number(value) for value in (latency.p50, latency.p95, latency.p99)]


def _mark(model: ModelBench, it: Benched) -> Mark:
    if model.report.published and it.name == model.report.published.stage:
        return "published"
    return "" if it.stage.role == "chain" else "beside"


def _numbers(title: str, headings: list[str], rows: list[Row], note: str) -> Table:
    return Table(title, headings, [False] + [True] * (len(headings) - 1), rows, note)


def _model(values: dict[str, Any]) -> ModelBench:
    found = report.from_json(json.dumps(values["report"]))
    stages = []
    for entry in values["stages"]:
        served = entry["served"]
        if served:
            loads = {
                protocol: {int(callers): _loaded(load) for callers, load in by_callers.items()}
                for protocol, by_callers in served["load"].items()
            }
            served = Served(
                Latency(**served["in_process_ms"]),
                Latency(**served["client_ms"]),
                ServerTime(**served["time_ms"]),
                served["worker_bytes"],
                loads,
            )
        in_process = {int(threads): Latency(**latency) for threads, latency in entry["in_process_ms"].items()}
        stages.append(Benched(found.stage(entry["stage"]["name"]), in_process, served))
    return ModelBench(found, stages, values["unit"])


def _loaded(values: dict[str, Any]) -> Load:
    return Load(**{**values, "latency_ms": Latency(**values["latency_ms"])})
