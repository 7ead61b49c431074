"""Take a trained model to a Triton model repository: smaller, faster, and proven to answer like the original.

python -m optimize.export --quantize                               # the built-in load forecaster
python -m optimize.export --quantize --recipe path/to/my_recipe.py # your own model
python -m optimize.export --onnx model.onnx --states h:hn c:cn     # an ONNX model with states, made elsewhere

The last one publishes the file as it is, for streams: wrapped, so that its states are named as Triton pairs them and
the batch is the first axis, and proven to answer as before. Its time axis is fixed with --chunk, where it is dynamic.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from optimize import adopt, command, pipeline, recipes, tracking
from optimize.adopt.asked import Asked
from optimize.errors import UserError
from optimize.quantize.method import PROFILES
from optimize.recipes import Recipe
from optimize.report import Report
from optimize.work import Options

OF_RECIPES = (
    "model", "recipe", "variant", "data", "checkpoints", "threads", "distill", "retune", "device", "candidate",
    "mlflow",
)  # fmt: skip
OF_ONNX = ("states", "name", "lengths", "batch_axis", "chunk", "constant", "chunk_matters", "calibration")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--quantize", action="store_true", help="quantise to int8 as the recipe's plan says; --onnx: as measured now"
    )
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
    parser.add_argument(
        "--candidate", action="store_true", help="serve it beside the live version: see python -m optimize.release"
    )
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="timed calls of each stage (default: 200)")
    parser.add_argument("--mlflow", metavar="URI", help="log the run there: sqlite:///FILE or a server's http://...")
    _add_onnx(parser)
    options = parser.parse_args(arguments)
    _refuse_mixed(parser, options)
    if options.rounds < 10:
        parser.error(f"--rounds is {options.rounds}; at least 10 are needed for percentiles")
    if options.onnx:
        with command.progress() as progress:
            adopted = _adopted(options, progress)
        _print_adopted(adopted)
        return
    recipe = recipes.load(options.model, options.recipe)
    if options.threads:
        torch.set_num_threads(options.threads)
    with command.progress() as progress, _recorded(recipe, options):
        report = pipeline.run(
            recipe,
            options.variant,
            Options(
                quantize=options.quantize,
                distill=options.distill,
                retune=options.retune,
                device=options.device,
                profile=options.profile,
                candidate=options.candidate,
                data=options.data,
                checkpoints=options.checkpoints,
                artifacts=options.artifacts,
                model_repository=options.model_repository,
                rounds=options.rounds,
            ),
            progress,
        )
    print_summary(report, options.artifacts, "candidate" if options.candidate else "live")


def print_summary(report: Report, artifacts: Path, role: str = "live") -> None:
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
        console.print(f"{role}: {report.published.stage} as {report.published.path}")
    console.print(f"report: {artifacts / report.model / report.variant / 'report.html'}")


def _add_onnx(parser: argparse.ArgumentParser) -> None:
    onnx = parser.add_argument_group("an ONNX model with states, made elsewhere")
    onnx.add_argument("--onnx", type=Path, metavar="FILE", help="publish this model instead of a recipe's")
    onnx.add_argument(
        "--states", nargs="+", default=(), metavar="IN:OUT", help="each input that is a state, and its next value"
    )
    onnx.add_argument("--name", metavar="NAME", help="the served model's name (default: the file's)")
    onnx.add_argument("--chunk", nargs="+", default=(), metavar="N", help="size of a dynamic time axis; or AXIS=N ...")
    onnx.add_argument(
        "--batch-axis",
        nargs="+",
        default=(),
        metavar="AXIS",
        help="where the batch is: a dynamic axis' name, or INPUT:NUMBER ... (default: the name that all inputs share)",
    )
    onnx.add_argument("--constant", nargs="+", default=(), metavar="IN=VALUE", help="inputs to fix, such as sr=16000")
    onnx.add_argument("--lengths", metavar="IN", help="the input that says how much of a chunk is meant")
    onnx.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE.npz",
        help="recorded streams: an array (streams, chunks, ...) for each input that is no state; seeded ones stand in",
    )
    onnx.add_argument(
        "--chunk-matters",
        action="store_true",
        help="answers depend on where chunks are cut: do not hold that against it",
    )


def _refuse_mixed(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """A model is a recipe's or a file; what is said of one means nothing for the other."""
    of_other = OF_RECIPES if options.onnx else OF_ONNX
    odd = [name for name in of_other if getattr(options, name) != parser.get_default(name)]
    if odd:
        option = "--" + odd[0].replace("_", "-")
        raise UserError(
            f"{option} is for a recipe's model, and --onnx publishes a file as it is; leave out one of them"
            if options.onnx
            else f"{option} is for a model from elsewhere; name its file with --onnx, or leave it out"
        )


def _recorded(recipe: Recipe, options: argparse.Namespace) -> AbstractContextManager[None]:
    """Logs the run if that was asked for."""
    if not options.mlflow:
        return nullcontext()
    variant, _ = recipe.variant(options.variant)
    asked = ("quantize", "distill", "retune", "profile", "device", "candidate", "rounds")
    parameters = {name: getattr(options, name) for name in asked}
    return tracking.recorded(
        options.mlflow, recipe.name, variant, options.artifacts / recipe.name / variant, parameters
    )


def _adopted(options: argparse.Namespace, progress: Progress) -> adopt.Adopted:
    return adopt.adopt(
        options.onnx,
        options.name,
        Asked(
            tuple(options.states),
            options.lengths,
            tuple(options.batch_axis),
            tuple(options.chunk),
            tuple(options.constant),
        ),
        adopt.Options(
            options.artifacts,
            options.model_repository,
            not options.chunk_matters,
            options.calibration,
            options.quantize,
            options.profile,
            options.rounds,
        ),
        progress,
    )


def _print_adopted(adopted: adopt.Adopted) -> None:
    """What was made of the file's tensors, what was proven, and where it is."""
    layout, console = adopted.layout, Console()
    table = Table("in the file", "shape", "served as", "shape", title=adopted.spec.name)
    for port in (*layout.given, *layout.answered):
        shapes = (", ".join(map(str, sizes)) for sizes in (port.shape, ("batch", *port.row)))
        before, after = (f"({sizes})" for sizes in shapes)
        table.add_row(escape(port.name), before, port.served, after)
    for name, array in layout.constants.items():
        table.add_row(escape(name), str(array.shape), "", f"fixed at {escape(str(array.tolist()))}")
    console.print(table)
    for gate in adopted.proof.gates:
        console.print(f"{gate.name}: {gate.value:.3g} (at {'least' if gate.at_least else 'most'} {gate.limit:.3g})")
    for note in adopted.proof.notes:
        console.print(f"[yellow]{note}[/yellow]")
    published = adopted.published
    console.print(f"{'already published' if published.reused else 'published'}: {published.path}")


if __name__ == "__main__":
    command.run(main)
