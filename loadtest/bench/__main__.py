"""Every stage of every model side by side: in process, and through a real Triton by gRPC and HTTP.

    make bench                                                  # every built-in recipe that was exported
    python -m loadtest.bench --model load_forecast speech       # after python -m optimize.export --quantize --model ...
    python -m loadtest.bench --recipe my_recipe.py --quick

In process: one and two threads, all stages in turn. Through Triton: one caller beside the same stage in this process,
then 1, 4, 16 and 64 callers by each protocol (streams, of a model with states, only by gRPC). The result is bench.json,
bench.md and bench.html under --artifacts; latencies through Triton go into the recipes' reports, too. --quick: a
tenth of the work, and of the ONNX stages only the first and what is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from loadtest.bench import in_process, page, served
from loadtest.bench.results import Bench, Benched, ModelBench, summary, to_json
from loadtest.bench.served import Effort
from loadtest.command import positive
from optimize import command, recipes, report
from optimize.benchmark import environment
from optimize.errors import UserError
from optimize.recipes import Recipe
from optimize.report_tables import Row, Table

IN_PROCESS_S = 15.0  # for each number of threads
QUICK_S, QUICK = 2.0, Effort(requests=100, turns=1, seconds=0.25)


def bench(
    recipe: Recipe,
    variant: str | None,
    artifacts: Path,
    checkpoints: Path,
    data: Path | None,
    effort: Effort,
    in_process_s: float,
    quick: bool,
    progress: Progress,
) -> ModelBench:
    """Measure one model. Raises UserError when there is no report of it, or a file is missing."""
    name, chosen = recipe.variant(variant)
    folder = artifacts / recipe.name / name
    found = in_process.read_report(folder, f"python -m optimize.export --quantize --model {recipe.name}")
    files = in_process.onnx_stages(found, folder)
    if quick:
        live = found.published.stage if found.published else list(files)[-1]
        files = {stage: files[stage] for stage in dict.fromkeys((next(iter(files)), live))}
    stages = [
        stage for stage in found.stages if stage.name in files or (stage.runtime, stage.role) == ("torch", "chain")
    ]
    requests = in_process.requests_of(chosen.spec, files, recipe.load(data).test)
    latencies = in_process.measured(recipe, name, stages, files, checkpoints, requests, in_process_s, progress)
    through = served.measured(chosen, files, requests, effort, progress)
    short = replace(found, stages=stages, profiles=[], plan={})
    benched = [Benched(stage, latencies[stage.name], through.get(stage.name)) for stage in stages]
    return ModelBench(short, benched, "chunks" if chosen.spec.states else "requests")


def write(found: Bench, artifacts: Path) -> list[Path]:
    """bench.json, .md and .html, and the latencies through Triton into each recipe's report."""
    for model in found.models:
        folder = artifacts / model.report.model / model.report.variant
        whole = report.from_json((folder / "report.json").read_text())
        latencies = {it.name: it.served.client_ms for it in model.stages if it.served}
        report.write(report.with_server_latency(whole, latencies), folder)
    rendered = {"bench.json": to_json(found), "bench.md": page.markdown(found), "bench.html": page.html(found)}
    for name, text in rendered.items():
        (artifacts / name).write_text(text, encoding="utf-8")
    return [artifacts / name for name in rendered]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.bare_parser(__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--model", nargs="+", metavar="NAME", help="built-in recipes (default: all that were exported)")
    choice.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe file of your own")
    parser.add_argument("--variant", metavar="V", help="of the recipe (default: its first)")
    parser.add_argument("--data", type=Path, metavar="FILE", help="the data file (default: looked for in $DATA_DIR)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR", help="trained weights")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="of the last export")
    parser.add_argument("--seconds", type=positive, default=1.0, metavar="S", help="of a turn under load (default: 1)")
    parser.add_argument("--quick", action="store_true", help="under three minutes, and rough")
    options = parser.parse_args(arguments)
    chosen = _chosen(options.model, options.recipe, options.artifacts)
    effort, in_process_s = (QUICK, QUICK_S) if options.quick else (Effort(seconds=options.seconds), IN_PROCESS_S)
    models = []
    with command.progress() as progress:
        for recipe in chosen:
            progress.console.print(f"{recipe.name}:")
            models.append(
                bench(recipe, options.variant, options.artifacts, options.checkpoints, options.data, effort,
                      in_process_s, options.quick, progress)
            )  # fmt: skip
    settings = {**asdict(effort), "in_process_s": in_process_s, "quick": options.quick}
    paths = write(found := Bench(environment(threads=1), models, settings), options.artifacts)
    Console().print(command.terminal(_turned(summary(found))))
    print(f"all stages and loads: {', '.join(map(str, paths))}")


def _turned(table: Table) -> Table:
    """Its rows as columns: few models have room in a terminal, many quantities have not."""
    columns = [row.cells for row in table.rows]
    rows = [Row([heading, *(cells[place] for cells in columns)]) for place, heading in enumerate(table.headings)]
    return Table(table.title, rows[0].cells, [False, *[True] * len(columns)], rows[1:], table.note)


def _chosen(models: list[str] | None, file: Path | None, artifacts: Path) -> list[Recipe]:
    if file is not None:
        return [recipes.load(None, file)]
    if models is not None:
        return [recipes.load(model, None) for model in models]
    loaded = [recipes.load(model, None) for model in recipes.BUILT_IN]
    found = [each for each in loaded if (artifacts / each.name / each.variant(None)[0] / "report.json").is_file()]
    if not found:
        raise UserError(f"'{artifacts}' has no exported model; run python -m optimize.export --quantize first")
    return found


if __name__ == "__main__":
    command.run(main)
