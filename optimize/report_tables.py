"""The tables of a report, every cell as text.

Markdown and HTML are both made of these, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from optimize.profiler.profile import Part, Profile, others
from optimize.report import BatchDrift, GateResult, MetricValue, Parity, Report, Stage

T = TypeVar("T")
Mark = Literal["", "published", "failed", "beside"]
Columns = dict[str, Callable[[T], str]]  # heading to what stands below it

TIME_TITLE = "Where the time goes"

# What shares a colour, and its name in the key.
SERIES = {
    "torch": "PyTorch",
    "fp32": "ONNX Runtime fp32",
    "fp16": "ONNX Runtime fp16",
    "int8": "ONNX Runtime int8",
    "other": "other",
}
# Columns of words, flush left like the first one of every table; the others are numbers, flush right.
_WORDS = {"runtime", "precision", "result", "what to try", "operator", "method", "reason", "layer", "bound by"}


@dataclass(frozen=True)
class Row:
    """mark: why it stands out. series: the colour of its stage in the plots, if it has one."""

    cells: list[str]
    mark: Mark = ""
    series: str = ""


@dataclass(frozen=True)
class Table:
    """The first cell of a row names it. numeric: which columns are numbers, flush right."""

    title: str
    headings: list[str]
    numeric: list[bool]
    rows: list[Row]
    note: str = ""


def chain_first(stages: list[Stage]) -> list[Stage]:
    """The road from teacher to published model, then what is only compared with it."""
    return sorted(stages, key=lambda stage: stage.role != "chain")


def comparisons(report: Report) -> Table:
    """How many times faster or smaller the published model is, and than what."""
    columns: Columns[tuple[str, float]] = {
        "the published model": lambda item: item[0],
        "times": lambda item: f"{number(item[1])}×",
    }
    return _table("Comparisons", list(report.comparisons.items()), columns)


def tables(report: Report) -> list[Table]:
    """All other tables, in reading order, without those that have nothing to say."""
    found = [_speed(report), _accuracy(report), _gates(report), _batch(report)]
    found += [time_table(report.profiles, "operator"), _baselines(report), _plan(report), _fusion(report)]
    return [table for table in found if table.rows]


def time_table(profiles: Sequence[Profile], by: Literal["operator", "layer"], most: int = 6) -> Table:
    """The ``most`` longest kinds of operator, or layers, of every profile; the others together; and what is in none."""
    items: list[tuple[Profile, Part]] = []
    for profile in profiles:
        parts = profile.by_operator() if by == "operator" else profile.by_layer()
        rest = Part("", "in none", "in none", profile.outside_ms, calls=0, nodes=0)
        items += [(profile, part) for part in (*parts[:most], *others(parts[most:]), rest)]
    columns: Columns[tuple[Profile, Part]] = {
        "stage": lambda item: item[0].label,
        by: lambda item: item[1].operator if by == "operator" else item[1].layer,
        "nodes": lambda item: f"{item[1].nodes:,}" if item[1].nodes else "",
        "calls": lambda item: number(item[1].calls) if item[1].calls else "",
        "ms": lambda item: number(item[1].ms),
        "share": lambda item: f"{100 * item[0].share(item[1].ms):.1f} %",
        "M products": lambda item: number(item[1].macs / 1e6) if item[1].macs else "",
        "MB moved": lambda item: number(item[1].moved_bytes / 1e6) if item[1].moved_bytes else "",
        "limit, ms": lambda item: number(item[1].limit_ms) if item[1].limit_ms else "",
        "of the limit": lambda item: _efficiency(item[1]),
        "bound by": lambda item: ("arithmetic" if item[1].arithmetic else "moving") if item[1].limit_ms else "",
    }
    said = [f"{profile.label}: {profile.verdict}." for profile in profiles if profile.verdict and by == "operator"]
    said.append(
        "The limit is the larger of bytes at the bandwidth of the cache or memory that holds them, and of products at "
        "the rate that the runtime reaches on large ones."
    )
    title = TIME_TITLE + (", by layer" if by == "layer" else "")
    return _table(title, items, columns, note=" ".join(said), colour=lambda item: series(item[0]))


def series(stage: Stage | Profile) -> str:
    """A key of ``SERIES``: the same runtime and precision look alike in every table and plot."""
    key = stage.precision if stage.runtime == "onnxruntime" else stage.runtime
    return key if key in SERIES else "other"


def number(value: float, digits: int = 3) -> str:
    """Significant digits without exponents where people would write none: 0.680, 8.80, 140.2, 12,400, 2.1e-6."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(float(f"{value:.{digits}g}")) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:#.{digits}g}".rstrip(".")


def percent(fraction: float, signed: bool = False) -> str:
    """Two decimals: 0.50 %; with its sign, and a true minus, where the direction matters."""
    return f"{fraction * 100:{'+' if signed else ''}.2f} %".replace("-", "−") if math.isfinite(fraction) else "n/a"


def loss(share: float, points: bool) -> str:
    """A loss of the task metric with its sign: of a percentage in points, else as a share of it."""
    return percent(share, signed=True).replace("%", "points" if points else "%")


def ratio(before: float, after: float) -> str:
    return f"{number(before / after)}×" if after else "n/a"


def interval(metric: MetricValue) -> str:
    return f"{number(metric.value, 4)} ({number(metric.ci95[0], 4)} to {number(metric.ci95[1], 4)})"


def _speed(report: Report) -> Table:
    columns: Columns[Stage] = {
        "stage": lambda stage: stage.name,
        "runtime": lambda stage: stage.runtime,
        "precision": lambda stage: stage.precision,
        "parameters": lambda stage: f"{stage.parameters:,}",
        "size, MB": lambda stage: number(stage.size_bytes / 1e6),
        "p50, ms": lambda stage: number(stage.latency_ms.p50),
        "p95, ms": lambda stage: number(stage.latency_ms.p95),
        "p99, ms": lambda stage: number(stage.latency_ms.p99),
        **{
            f"p50 of {size}, ms": partial(_batch_p50, size)
            for size in (report.stages[0].batch_p50_ms if report.stages else {})
        },
        "calls": lambda stage: f"{stage.latency_ms.count:,}",
        "p50 by Triton, ms": lambda stage: number(stage.server_latency_ms.p50) if stage.server_latency_ms else "",
        "items/s": lambda stage: number(stage.throughput_per_s),
    }
    batches = ", ".join(str(batch) for batch in sorted({stage.throughput_batch for stage in report.stages}))
    note = f"Latency of single requests, all stages interleaved; items per second in batches of {batches}."
    return _stage_table("Speed and size", report, report.stages, columns, note)


def _accuracy(report: Report) -> Table:
    columns: Columns[Stage] = {
        "stage": lambda stage: stage.name,
        f"{_metric(report)} (95 % interval)": lambda stage: interval(stage.metric),
        "loss to teacher (95 % interval)": lambda stage: _loss(
            stage.metric.loss_to_teacher, stage.metric.loss_to_teacher_ci95, stage.metric.points
        ),
        **{name: partial(_also, name) for name in (report.stages[0].also if report.stages else {})},
        "loss to the same network in torch": lambda stage: _change(stage),
        "largest difference (of the spread)": lambda stage: _parity(stage.parity),
        "weights quantised": lambda stage: percent(stage.quantized.weight_bytes_fraction) if stage.quantized else "",
        "products quantised": lambda stage: percent(stage.quantized.mac_fraction) if stage.quantized else "",
    }
    references = " or ".join(sorted({stage.parity.reference for stage in report.stages if stage.parity}))
    note = "Positive losses are worse; their intervals are those of the paired difference."
    note += f" The largest difference of an output is from {references}." if references else ""
    return _stage_table("Accuracy", report, report.stages, columns, note)


def _gates(report: Report) -> Table:
    columns: Columns[GateResult] = {
        "gate": lambda gate: gate.name,
        "result": lambda gate: "passed" if gate.passed else "FAILED",
        "value": lambda gate: number(gate.value),
        "limit": lambda gate: f"{'≥' if gate.at_least else '≤'} {gate.limit:g}",
        "what to try": lambda gate: "" if gate.passed else gate.advice,
    }
    return _table("Gates", report.gates, columns, lambda gate: "" if gate.passed else "failed")


def _batch(report: Report) -> Table:
    def drift(cell: Callable[[BatchDrift], str]) -> Callable[[Stage], str]:
        return lambda stage: cell(stage.batch_invariance) if stage.batch_invariance else ""

    stages = [stage for stage in report.stages if stage.batch_invariance]
    columns: Columns[Stage] = {
        "stage": lambda stage: stage.name,
        **{
            f"drift {kind}": drift(partial(lambda kind, found: number(found.drift.get(kind, 0.0)), kind))
            for kind in _companies(stages)
        },
        "changed decisions": drift(lambda found: f"{found.decision_flips:,}"),
        "change of the metric": drift(lambda found: f"{number(100 * found.metric_change)} %"),
        "requests": drift(lambda found: f"{found.cases:,}"),
    }
    note = "The largest difference between the same request's answers alone and in company."
    return _stage_table("Batch invariance", report, stages, columns, note)


def _efficiency(part: Part) -> str:
    if not (part.limit_ms and part.ms):
        return ""
    return f"{100 * part.efficiency:.0f} %" if part.efficiency <= 1 else "> 100 %"


def _companies(stages: list[Stage]) -> list[str]:
    return list(
        dict.fromkeys(kind for stage in stages if stage.batch_invariance for kind in stage.batch_invariance.drift)
    )


def _baselines(report: Report) -> Table:
    columns: Columns[tuple[str, float]] = {
        "without a network": lambda item: item[0],
        _metric(report): lambda item: number(item[1], 4),
    }
    return _table("Baselines", list(report.baselines.items()), columns)


def _plan(report: Report) -> Table:
    columns: Columns[tuple[str, dict[str, str]]] = {
        "node": lambda item: item[0],
        "operator": lambda item: item[1].get("operator", ""),
        "method": lambda item: item[1].get("method", ""),
        "reason": lambda item: item[1].get("reason", ""),
    }
    return _table("Quantisation plan", list(report.plan.items()), columns)


def _fusion(report: Report) -> Table:
    columns: Columns[tuple[str, int]] = {
        "pass": lambda item: item[0],
        "nodes removed or rewritten": lambda item: f"{item[1]:,}",
    }
    return _table("Fusion", list(report.fusion.items()), columns)


def _stage_table(title: str, report: Report, stages: list[Stage], columns: Columns[Stage], note: str) -> Table:
    published = report.published.stage if report.published else None

    def mark(stage: Stage) -> Mark:
        return "published" if stage.name == published else "" if stage.role == "chain" else "beside"

    return _table(title, chain_first(stages), columns, mark, note, series)


def _table(
    title: str,
    items: Sequence[T],
    columns: Columns[T],
    mark: Callable[[T], Mark] = lambda item: "",
    note: str = "",
    colour: Callable[[T], str] = lambda item: "",
) -> Table:
    """A table of one row per item, without the columns in which every cell is empty."""
    kept = {heading: cell for heading, cell in columns.items() if any(cell(item) for item in items)}
    rows = [Row([cell(item) for cell in kept.values()], mark(item), colour(item)) for item in items]
    numeric = [place > 0 and heading not in _WORDS for place, heading in enumerate(kept)]
    return Table(title, list(kept), numeric, rows, note)


def _metric(report: Report) -> str:
    return report.stages[0].metric.name if report.stages else "metric"


def _loss(share: float, interval: tuple[float, float], points: bool) -> str:
    if share == interval[0] == interval[1] == 0:
        return "0"
    ends = [percent(end, signed=True).removesuffix(" %") for end in interval]
    return f"{loss(share, points)} ({ends[0]} to {ends[1]})"


def _batch_p50(size: str, stage: Stage) -> str:
    return number(stage.batch_p50_ms[size]) if size in stage.batch_p50_ms else ""


def _also(name: str, stage: Stage) -> str:
    return number(stage.also[name]) if name in stage.also else ""


def _change(stage: Stage) -> str:
    parity = stage.parity
    return _loss(parity.metric_loss, parity.metric_loss_ci95, stage.metric.points) if parity else ""


def _parity(parity: Parity | None) -> str:
    return f"{number(parity.max_abs)} ({number(100 * parity.relative)} %)" if parity else ""
