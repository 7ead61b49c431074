"""What a pipeline run found out: plain data, and its rendering as JSON, Markdown and one HTML page.

``Report`` is the shape of report.json; the tables and plots are drawn from it alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from optimize.benchmark import Latency
from optimize.errors import UserError
from optimize.profiler.profile import Part, Profile


@dataclass(frozen=True)
class MetricValue:
    name: str
    value: float
    ci95: tuple[float, float]
    higher_is_better: bool
    loss_to_teacher: float  # positive is worse; a share of the teacher's, or where ``points`` says so, of 100 points
    loss_to_teacher_ci95: tuple[float, float]
    points: bool = False


@dataclass(frozen=True)
class Parity:
    """Difference from the named stage: the largest, in the output's unit; the same and the root mean square as shares
    of the output's spread; of the task metric, as ``MetricValue`` has it, with its 95 % interval; and the items whose
    decision is another."""

    max_abs: float
    relative: float
    relative_rms: float
    metric_loss: float
    metric_loss_ci95: tuple[float, float]
    reference: str
    decision_flips: int = 0


@dataclass(frozen=True)
class Quantized:
    weight_bytes_fraction: float
    mac_fraction: float
    operators: dict[str, int] = field(default_factory=dict)
    kept_fp32: list[str] = field(default_factory=list)
    operators_before: dict[str, int] = field(default_factory=dict)
    stored_only: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchDrift:
    max_abs_drift: float
    decision_flips: int
    cases: int
    metric_change: float
    drift: dict[str, float] = field(default_factory=dict)  # by kind of company


@dataclass(frozen=True)
class Stage:
    """One artefact. role: "chain" for the road from teacher to published model, "beside" for comparisons."""

    name: str
    role: str
    runtime: str
    precision: str
    parameters: int
    size_bytes: int
    latency_ms: Latency
    throughput_per_s: float
    throughput_batch: int
    server_latency_ms: Latency | None
    metric: MetricValue
    also: dict[str, float]  # further figures, by name
    parity: Parity | None
    quantized: Quantized | None
    batch_invariance: BatchDrift | None
    batch_p50_ms: dict[str, float] = field(default_factory=dict)  # of batches, by their size


@dataclass(frozen=True)
class GateResult:
    name: str
    passed: bool
    value: float
    limit: float
    at_least: bool  # whether the limit is a lower one
    advice: str


@dataclass(frozen=True)
class Published:
    path: str
    version: int
    sha256: str
    stage: str


@dataclass(frozen=True)
class Report:
    """model: the recipe's name. data: which data was used. baselines: metric of answers that need no network.

    comparisons: ratios that the reader wants, such as "int8 against the torch teacher, p50". fusion: nodes removed
    or rewritten per pass. plan: what was done to each operator and why. profiles: where the time of some stages goes,
    by operator.
    """

    model: str
    variant: str
    default: bool
    data: str
    environment: dict[str, Any]
    stages: list[Stage]
    gates: list[GateResult]
    published: Published | None
    baselines: dict[str, float] = field(default_factory=dict)
    comparisons: dict[str, float] = field(default_factory=dict)
    fusion: dict[str, int] = field(default_factory=dict)
    plan: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def to_json(report: Report) -> str:
    return json.dumps(asdict(report), indent=2) + "\n"


def from_json(text: str) -> Report:
    """The inverse of ``to_json``. Raises UserError for text that is no report."""
    try:
        values = json.loads(text)
        stages = [_stage(stage) for stage in values.pop("stages")]
        gates = [GateResult(**gate) for gate in values.pop("gates")]
        published = values.pop("published")
        values["profiles"] = [_profile(profile) for profile in values.get("profiles", [])]
        return Report(stages=stages, gates=gates, published=Published(**published) if published else None, **values)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"this is no report.json of this version ({error}); run python -m optimize.export again"
        ) from None


def _stage(values: dict[str, Any]) -> Stage:
    pairs = {key: tuple(values["metric"][key]) for key in ("ci95", "loss_to_teacher_ci95")}
    metric = MetricValue(**{**values["metric"], **pairs})
    nested = {
        "latency_ms": Latency,
        "server_latency_ms": Latency,
        "parity": Parity,
        "quantized": Quantized,
        "batch_invariance": BatchDrift,
    }
    parts = {key: kind(**values[key]) if values[key] else None for key, kind in nested.items()}
    if parts["parity"]:
        parts["parity"] = replace(parts["parity"], metric_loss_ci95=tuple(parts["parity"].metric_loss_ci95))
    return Stage(**{**values, **parts, "metric": metric})


def _profile(values: dict[str, Any]) -> Profile:
    return Profile(**{**values, "parts": [Part(**part) for part in values["parts"]]})


def with_server_latency(report: Report, latencies: dict[str, Latency]) -> Report:
    """The report with latencies measured through Triton, by stage name."""
    return replace(
        report,
        stages=[
            replace(stage, server_latency_ms=latencies.get(stage.name, stage.server_latency_ms))
            for stage in report.stages
        ],
    )


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md and report.html; returns their paths."""
    from optimize.report_page import html, markdown

    folder.mkdir(parents=True, exist_ok=True)
    rendered = {"report.json": to_json(report), "report.md": markdown(report), "report.html": html(report)}
    for name, text in rendered.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in rendered]
