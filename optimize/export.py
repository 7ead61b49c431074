"""Take a trained model to a Triton model repository: smaller, faster, and proven to answer like the original.

python -m optimize.export --quantize                               # the built-in load forecaster
python -m optimize.export --quantize --recipe path/to/my_recipe.py # your own model
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from optimize import command, pipeline, recipes
from optimize.quantize.method import PROFILES
from optimize.report import Report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--quantize", action="store_true", help="quantise to int8 as the recipe's plan says")
    parser.add_argument("--distill", action="store_true", help="distil the student anew, even if it is current")
    parser.add_argument("--retune", action="store_true", help="measure the quantisation plan anew")
    parser.add_argument(
        "--profile", choices=PROFILES, help="invariant: exact in any company; throughput: fastest (default: the plan's)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model will be served")
    parser.add_argument(
        "--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="every stage's ONNX, reports"
    )
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="timed calls of each stage (default: 200)")
    options = parser.parse_args(arguments)
    recipe = recipes.load(options.model, options.recipe)
    if options.rounds < 10:
        parser.error(f"--rounds is {options.rounds}; at least 10 are needed for percentiles")
    if options.threads:
        torch.set_num_threads(options.threads)
    with command.progress() as progress:
        report = pipeline.run(
            recipe,
            options.variant,
            pipeline.Options(
                quantize=options.quantize,
                distill=options.distill,
                retune=options.retune,
                device=options.device,
                profile=options.profile,
                data=options.data,
                checkpoints=options.checkpoints,
                artifacts=options.artifacts,
                model_repository=options.model_repository,
                rounds=options.rounds,
            ),
            progress,
        )
    print_summary(report, options.artifacts)


def print_summary(report: Report, artifacts: Path) -> None:
    """The stages as a table, the ratios, and where the rest is."""
    table = Table(
        "stage", "p50 ms", "p99 ms", "MB", report.stages[0].metric.name, title=f"{report.model}/{report.variant}"
    )
    for stage in report.stages:
        latency = stage.latency_ms
        row = (f"{latency.p50:.3f}", f"{latency.p99:.3f}", f"{stage.size_bytes / 1e6:.2f}", f"{stage.metric.value:.4g}")
        table.add_row(stage.name, *row, style=None if stage.role == "chain" else "dim")
    console = Console()
    console.print(table)
    for label, ratio in report.comparisons.items():
        console.print(f"{ratio:6.2f}x {label}")
    if report.published:
        console.print(f"live: {report.published.stage} as {report.published.path}")
    console.print(f"report: {artifacts / report.model / report.variant / 'report.html'}")


if __name__ == "__main__":
    command.run(main)
