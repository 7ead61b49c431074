"""What travels with a published version: a manifest for programs and a model card for people."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from optimize.checkpoint import Sidecar
from optimize.report import Report, Stage
from optimize.specs import ModelSpec


def manifest(report: Report, stage: Stage, networks: dict[str, Sidecar]) -> bytes:
    """JSON: hashes of weights, data and code, the environment, and every measured number of the stage."""
    published = next(iter([sidecar for name, sidecar in networks.items() if stage.name.startswith(f"{name}_")]))
    return (
        json.dumps(
            {
                "model": report.model,
                "variant": report.variant,
                "stage": asdict(stage),
                "weights_sha256": {name: sidecar.sha256 for name, sidecar in networks.items()},
                "data": {"trained_on": published.data, "tested_on": report.data},
                "code_sha256": code_sha256(),
                "environment": report.environment,
                "gates": [asdict(gate) for gate in report.gates],
            },
            indent=2,
        )
        + "\n"
    ).encode()


def code_sha256(folder: Path | None = None) -> str:
    """One hash over the names and contents of this package's Python files."""
    folder = folder or Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def model_card(report: Report, stage: Stage, spec: ModelSpec) -> str:
    """Markdown for the people who will call the model: interface, quality, speed, and what to beware of."""
    metric, drift = stage.metric, stage.batch_invariance
    lines = [f"# {spec.name}", "", f"Recipe `{report.model}`, variant `{report.variant}`, stage `{stage.name}`.", ""]
    lines += ["## Interface", "", "| tensor | dtype | shape (batch first) | meaning |", "|---|---|---|---|"]
    for kind, tensors in (("in", spec.inputs), ("out", spec.outputs)):
        for tensor in tensors:
            shape = ", ".join(["batch", *map(str, tensor.shape)])
            lines.append(f"| {kind}: `{tensor.name}` | {tensor.dtype} | ({shape}) | {tensor.description} |")
    lines += ["", "## Quality", "", f"Tested on: {report.data}.", ""]
    lines.append(
        f"- {metric.name}: **{metric.value:.4g}** (95 % interval {metric.ci95[0]:.4g} to {metric.ci95[1]:.4g})"
    )
    low, high = metric.loss_to_teacher_ci95
    unit = "points" if metric.points else "%"
    lines.append(
        f"- loss to the teacher: {100 * metric.loss_to_teacher:+.2f} {unit} "
        f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f})"
    )
    lines += [f"- {name}: {value:.4g}" for name, value in report.baselines.items()]
    if stage.parity:
        lines.append(f"- largest difference from `{stage.parity.reference}`: {stage.parity.max_abs:.3g}")
    lines += ["", "## Speed and size", ""]
    lines.append(
        f"- p50 {stage.latency_ms.p50:.3g} ms, p99 {stage.latency_ms.p99:.3g} ms over {stage.latency_ms.count}"
    )
    lines.append(f"  calls at batch 1 on {report.environment['cpu']}, {report.environment['threads']} thread")
    lines.append(f"- {stage.size_bytes:,} bytes, {stage.parameters:,} parameters")
    if stage.quantized and stage.precision == "int8":
        share = stage.quantized.weight_bytes_fraction
        lines.append(f"- {share:.1%} of the weights and {stage.quantized.mac_fraction:.1%} of the products in int8")
    lines += ["", "## Beware", ""]
    if drift and drift.max_abs_drift > 0:
        cause = (
            "its int8 operators take one activation scale for the whole batch"
            if stage.precision == "int8"
            else "sums are rounded in another order"
        )
        lines.append(
            f"- **An answer depends on its batch**: {cause}. Alone against in company, over {drift.cases} requests: "
            f"at most {drift.max_abs_drift:.3g} difference, {drift.decision_flips} changed decisions, "
            f"{drift.metric_change:.3%} change of the metric."
        )
    elif drift:
        lines.append(f"- An answer does not depend on its batch: bit-equal over {drift.cases} requests.")
    lines.append("- It was trained and tested on the data named above and on nothing else.")
    return "\n".join(lines) + "\n"
