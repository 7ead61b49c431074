"""What a report says in words and numbers: the headline, the status and the tables, as text.

Markdown and HTML are both rendered from here, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from optimize.report import BatchDrift, GateResult, MetricValue, Parity, Report, Stage

T = TypeVar("T")
Mark = Literal["", "published", "failed", "beside"]
Columns = dict[str, Callable[[T], str]]  # heading to what stands below it

# Columns of words, flush left like the first one of every table; the others are numbers, flush right.
_WORDS = {"runtime", "precision", "from", "result", "what to try", "operator", "reason"}


@dataclass(frozen=True)
class Headline:
    """One of the few numbers that a hurried reader takes away; ``detail`` says what it is computed from."""

    value: str
    label: str
    detail: str


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


def chain_first(report: Report) -> list[Stage]:
    """The road from teacher to published model, then what is only compared with it."""
    return sorted(report.stages, key=lambda stage: stage.role != "chain")


def ends(report: Report) -> tuple[Stage, Stage] | None:
    """Where the chain begins, and the stage that was published (or else the chain's last); None without a chain."""
    chain = [stage for stage in report.stages if stage.role == "chain"]
    published = [stage for stage in chain if report.published and stage.name == report.published.stage]
    return (chain[0], (published or chain)[-1]) if chain else None


def headlines(report: Report) -> list[Headline]:
    """Faster, smaller, and what it costs; the plain numbers when the chain has a single stage."""
    if (pair := ends(report)) is None:
        return []
    first, last = pair
    metric = last.metric
    if first is last:
        return [
            Headline(f"{number(last.latency_ms.p50)} ms", "p50 latency", last.name),
            Headline(f"{number(last.size_bytes / 1e6)} MB", "model size", last.name),
            Headline(number(metric.value, 4), metric.name, interval(metric)),
        ]
    better = "higher is better" if metric.higher_is_better else "lower is better"
    return [
        Headline(
            ratio(first.latency_ms.p50, last.latency_ms.p50),
            "faster",
            f"p50 {number(first.latency_ms.p50)} → {number(last.latency_ms.p50)} ms",
        ),
        Headline(
            ratio(first.size_bytes, last.size_bytes),
            "smaller",
            f"{number(first.size_bytes / 1e6)} → {number(last.size_bytes / 1e6)} MB",
        ),
        Headline(
            percent(metric.value / first.metric.value - 1 if first.metric.value else math.nan, signed=True),
            f"change in {metric.name}",
            f"{number(first.metric.value, 4)} → {number(metric.value, 4)}; {better}",
        ),
    ]


def status(report: Report) -> str:
    """One sentence: what was published, or why nothing was."""
    if report.published:
        where, what = report.published, report.published.stage
        return f"Published {what} as version {where.version}: {where.path} (sha256 {where.sha256[:12]})"
    failed = [gate.name for gate in report.gates if not gate.passed]
    if failed:
        return f"Not published: {len(failed)} of {len(report.gates)} gates failed ({', '.join(failed)})"
    return "Nothing was published"


def environment(report: Report) -> str:
    """One line: the machine and the versions that the numbers belong to."""
    known = report.environment
    threads = known.get("threads")
    parts = [
        str(known.get("cpu", "unknown CPU")),
        f"{known['cores']} cores" if "cores" in known else "",
        " ".join(known.get("isa", [])),
        f"{threads} thread{'' if threads == 1 else 's'} per model" if threads else "",
        f"device {known['device']}" if "device" in known else "",
        ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items()),
    ]
    return " · ".join(part for part in parts if part)


def comparisons(report: Report) -> Table:
    """How many times faster or smaller, and than what."""
    columns = [
        COL("times", lambda item: f"{number(item[1])}×"),
        COL("the published model is", lambda item: item[0], numeric=False),
    ]
    return _table("Comparisons", list(report.comparisons.items()), columns)


def tables(report: Report) -> list[Table]:
    """All other tables, in reading order, without those that have nothing to say."""
    found = [_speed(report), _accuracy(report), _gates(report), _batch(report)]
    found += [_baselines(report), _plan(report), _fusion(report)]
    return [table for table in found if table.rows]


def series(stage: Stage) -> str:
    """The name of a stage's colour: the same runtime and precision look alike in every table and plot."""
    if stage.runtime == "torch":
        return "torch"
    return stage.precision if stage.runtime == "onnxruntime" and stage.precision in ("fp32", "fp16", "int8") else "other"


def number(value: float, digits: int = 3) -> str:
    """Significant digits without exponents where people would write none: 0.680, 8.80, 140.2, 12,400, 2.1e-06."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:#.{digits}g}".rstrip(".")


def percent(fraction: float, signed: bool = False) -> str:
    """Two decimals: 0.50 %; with its sign, and a true minus, where the direction matters."""
    return f"{fraction * 100:{'+' if signed else ''}.2f} %".replace("-", "−") if math.isfinite(fraction) else "n/a"


def ratio(before: float, after: float) -> str:
    return f"{number(before / after)}×" if after else "n/a"


def interval(metric: MetricValue) -> str:
    return f"{number(metric.value, 4)} [{number(metric.ci95[0], 4)}, {number(metric.ci95[1], 4)}]"


def _speed(report: Report) -> Table:
    columns = [
        COL("stage", lambda stage: stage.name, numeric=False),
        COL("runtime", lambda stage: stage.runtime, numeric=False),
        COL("precision", lambda stage: stage.precision, numeric=False),
        COL("parameters", lambda stage: f"{stage.parameters:,}"),
        COL("size, MB", lambda stage: number(stage.size_bytes / 1e6)),
        COL("p50, ms", lambda stage: number(stage.latency_ms.p50)),
        COL("p95, ms", lambda stage: number(stage.latency_ms.p95)),
        COL("p99, ms", lambda stage: number(stage.latency_ms.p99)),
        COL("calls", lambda stage: f"{stage.latency_ms.count:,}"),
        COL("p50 through Triton, ms", lambda stage: number(stage.server_latency_ms.p50) if stage.server_latency_ms else ""
        ),
        COL("items/s", lambda stage: number(stage.throughput_per_s)),
    ]
    batches = ", ".join(str(batch) for batch in sorted({stage.throughput_batch for stage in report.stages}))
    note = f"Latency of single requests, all stages interleaved; items per second in batches of {batches}."
    return _stage_table("Speed and size", report, report.stages, columns, note)


def _accuracy(report: Report) -> Table:
    metric = report.stages[0].metric if report.stages else None
    columns = [
        COL("stage", lambda stage: stage.name, numeric=False),
        COL(f"{metric.name if metric else 'metric'} [95 %]", lambda stage: interval(stage.metric)),
        COL("loss to teacher [95 %]", lambda stage: _loss(stage.metric)),
        COL("largest difference (of spread)", lambda stage: _parity(stage.parity)),
        COL("from", lambda stage: stage.parity.reference if stage.parity else "", numeric=False),
        COL("weights quantised", lambda stage: percent(stage.quantized.weight_bytes_fraction) if stage.quantized else ""
        ),
        COL("products quantised", lambda stage: percent(stage.quantized.mac_fraction) if stage.quantized else ""
        ),
    ]
    note = "Loss is relative, positive is worse, and its interval is that of the paired difference."
    return _stage_table("Accuracy", report, report.stages, columns, note)


def _gates(report: Report) -> Table:
    columns = [
        COL("gate", lambda gate: gate.name, numeric=False),
        COL("result", lambda gate: "passed" if gate.passed else "FAILED", numeric=False),
        COL("value", lambda gate: number(gate.value)),
        COL("limit", _limit),
        COL("what to try", lambda gate: "" if gate.passed else gate.advice, numeric=False),
    ]
    return _table("Gates", report.gates, columns, lambda gate: "" if gate.passed else "failed")


def _batch(report: Report) -> Table:
    def drift(cell: Callable[[BatchDrift], str]) -> Callable[[Stage], str]:
        return lambda stage: cell(stage.batch_invariance) if stage.batch_invariance else ""

    columns = [
        COL("stage", lambda stage: stage.name, numeric=False),
        COL("largest drift", drift(lambda found: number(found.max_abs_drift))),
        COL("changed decisions", drift(lambda found: f"{found.decision_flips:,}")),
        COL("change of the metric", drift(lambda found: f"{number(100 * found.metric_change)} %")),
        COL("requests", drift(lambda found: f"{found.cases:,}")),
    ]
    stages = [stage for stage in report.stages if stage.batch_invariance]
    note = "The same requests answered alone and in the company of others."
    return _stage_table("Batch invariance", report, stages, columns, note)


def _baselines(report: Report) -> Table:
    metric = report.stages[0].metric.name if report.stages else "metric"
    columns = [
        COL("answer", lambda item: item[0], numeric=False),
        COL(metric, lambda item: number(item[1], 4)),
    ]
    return _table("Baselines", list(report.baselines.items()), columns, note="Answers that need no network.")


def _plan(report: Report) -> Table:
    columns = [
        COL("node", lambda item: item[0], numeric=False),
        COL("operator", lambda item: item[1].get("operator", ""), numeric=False),
        COL("precision", lambda item: item[1].get("precision", ""), numeric=False),
        COL("reason", lambda item: item[1].get("reason", ""), numeric=False),
    ]
    return _table("Quantisation plan", list(report.plan.items()), columns)


def _fusion(report: Report) -> Table:
    columns = [
        COL("pass", lambda item: item[0], numeric=False),
        COL("nodes removed or rewritten", lambda item: f"{item[1]:,}"),
    ]
    return _table("Fusion", list(report.fusion.items()), columns)


def _stage_table(
    title: str, report: Report, stages: list[Stage], columns: list[Column[Stage]], note: str
) -> Table:
    published = report.published.stage if report.published else None

    def mark(stage: Stage) -> Mark:
        return "published" if stage.name == published else "" if stage.role == "chain" else "beside"

    ordered = [stage for stage in chain_first(report) if stage in stages]
    return _table(title, ordered, columns, mark, note, series)


def _table(
    title: str,
    items: Sequence[T],
    columns: list[Column[T]],
    mark: Callable[[T], Mark] = lambda item: "",
    note: str = "",
    colour: Callable[[T], str] = lambda item: "",
) -> Table:
    """A table of one row per item, without the columns in which every cell is empty."""
    kept = [column for column in columns if any(column.cell(item) for item in items)]
    rows = [Row([column.cell(item) for column in kept], mark(item), colour(item)) for item in items]
    return Table(title, [column.heading for column in kept], [column.numeric for column in kept], rows, note)


def _loss(metric: MetricValue) -> str:
    low, high = metric.loss_to_teacher_ci95
    return f"{percent(metric.loss_to_teacher, True)} [{percent(low, True)}, {percent(high, True)}]"


def _parity(parity: Parity | None) -> str:
    return f"{number(parity.max_abs)} ({number(100 * parity.relative)} %)" if parity else ""


def _limit(gate: GateResult) -> str:
    """The limit and its direction, which the outcome betrays unless value and limit are equal or not numbers."""
    if gate.value == gate.limit or not math.isfinite(gate.value):
        return number(gate.limit)
    return f"{'≤' if gate.passed == (gate.value < gate.limit) else '≥'} {number(gate.limit)}"
