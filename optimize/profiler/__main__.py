"""Profile the ONNX stages of a model that python -m optimize.export left in artifacts/, and its torch networks.

python -m optimize.profiler                                            # the built-in load forecaster
python -m optimize.profiler --model speech --variant gru --batch 8
python -m optimize.profiler --recipe my_recipe.py --stage student_onnx_int8 --json

Single requests, and batches, of the test data. Of the torch networks it is the published one, unless --stage names
others. Writes profile.json (every operator), profile.md and profile.svg beside the artefacts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optimize import command, recipes, report_tables, streaming
from optimize.benchmark import precision_of
from optimize.checkpoint import load_checkpoint, path_of
from optimize.errors import UserError
from optimize.profiler import stages
from optimize.profiler.machine import measured
from optimize.profiler.onnx_profile import opened
from optimize.profiler.profile import Profile
from optimize.recipes import Recipe, Variant

_SHOWN = ("calls", "ms", "share", "limit, ms", "of the limit")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--stage",
        nargs="+",
        metavar="NAME",
        help="such as teacher_torch_fp32 (default: all in ONNX, the published network in torch)",
    )
    parser.add_argument(
        "--batch", type=int, default=stages.BATCH, metavar="N", help="beside single requests; 1: none (default: 16)"
    )
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="profiled runs, at most (default: 200)")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="where the stages are")
    parser.add_argument("--json", action="store_true", help="print profile.json instead of tables")
    options = parser.parse_args(arguments)
    for name, least in (("batch", 1), ("rounds", 10)):
        if (value := getattr(options, name)) < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")
    recipe = recipes.load(options.model, options.recipe)
    name, variant = recipe.variant(options.variant)
    folder = options.artifacts / recipe.name / name
    files = _files(recipe, name, folder)
    sources = _sources(recipe, name, variant, files, options)
    split = recipe.load(options.data).test
    requests = streaming.steps(opened(next(iter(files.values()))), variant.spec, split, 8 * options.batch)
    with command.progress() as progress:
        machine = measured()
        found = stages.profile_stages(sources, requests, variant.spec, machine, options.batch, options.rounds, progress)
    paths = stages.write(found, f"{recipe.name}/{name}", machine, folder)
    if options.json:
        print(paths[0].read_text(), end="")
    else:
        _show(found, str(machine), paths)


def _files(recipe: Recipe, variant: str, folder: Path) -> dict[str, Path]:
    """The ONNX stages by name, in the order of the pipeline."""
    files = {path.stem: path for path in sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)}
    if not files:
        raise UserError(f"'{folder}' has no ONNX models to profile; make them with {recipe.export(variant)}")
    return files


def _sources(
    recipe: Recipe, name: str, variant: Variant, files: dict[str, Path], options: argparse.Namespace
) -> list[stages.Source]:
    """The stages asked for, torch networks that have weights first."""
    weights = {
        f"{network}_torch_fp32": (network, path)
        for network in variant.networks
        if (path := path_of(options.checkpoints, recipe.name, *recipe.origin(name, network))).exists()
    }
    known = [*weights, *files]
    asked = options.stage or [stage for stage in known if stage in files or weights[stage][0] == variant.published]
    if unknown := [stage for stage in asked if stage not in known]:
        raise UserError(f"{recipe.name}/{name} has no stage '{unknown[0]}'; there are {', '.join(known)}")
    sources = []
    for stage in asked:
        if stage in files:
            sources.append(stages.Source(stage, precision_of(stage), files[stage]))
            continue
        network, path = weights[stage]
        module, _ = load_checkpoint(path, variant.networks[network])
        if streaming.can_stream(module, variant.spec):
            sources.append(stages.Source(stage, "fp32", module))
        elif options.stage:
            raise UserError(
                f"stage '{stage}' answers whole recordings only, so it has no step to profile; leave it out"
            )
    return sources


def _show(profiles: Sequence[Profile], machine: str, paths: Sequence[Path]) -> None:
    console = Console()
    for profile in profiles:
        for by in ("operator", "layer") if profile.batch == 1 else ("operator",):
            console.print(_table(profile, by))
        console.print(stages.overhead(profile), highlight=False)
    console.print(f"one thread of this machine: {machine}", highlight=False)
    for profile in profiles:
        if profile.verdict:
            console.print(f"[bold]{profile.label}[/bold]: {escape(profile.verdict)}.", highlight=False)
    console.print(f"written: {', '.join(map(str, paths))}", highlight=False)


def _table(profile: Profile, by: Literal["operator", "layer"]) -> Table:
    """What fits a terminal of the report's table."""
    made = report_tables.time_table([profile], by)
    shown = [place for place, heading in enumerate(made.headings) if heading in (by, *_SHOWN)]
    table = Table(title=f"{profile.label}, by {by}")
    for place in shown:
        table.add_column(made.headings[place], justify="right" if made.numeric[place] else "left")
    for row in made.rows:
        table.add_row(*(escape(row.cells[place]) for place in shown))
    return table


if __name__ == "__main__":
    command.run(main)
