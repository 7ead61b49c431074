"""Find the serving settings that give the most under a latency limit, on a running Triton, and keep them.

    python -m optimize.tune --model load_forecast --p99-ms 20          # requests per second
    python -m optimize.tune --model speech --variant lstm              # real-time streams; p99 within their chunk

What is published is served by a Triton of its own, on free ports of this machine, which takes one candidate after the
other: profile, instances x threads, preferred batches, queue delay. The most that each sustains is searched with an
open loop. The first candidate is the present settings; the best is measured against them once more, in turns, and
written beside the recipe only if it wins. The last lines say which command publishes it.

Interrupted, the same command goes on where it was; nothing is measured twice. Generator and server share this machine's
cores, so levels are lower than between two machines, for all candidates alike; "at least": the generator was the limit.
Status: 0; 2 for a mistake, or when nothing is within the limit; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from loadtest import command

# The processes that make the load import this module too, so what needs torch is imported where it is used.


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from rich.console import Console

    from optimize import recipes
    from optimize.command import progress as progress_bars
    from optimize.serving_tuner import result, tuning
    from optimize.serving_tuner.proving_ground import Effort, Run
    from optimize.serving_tuner.search import Measured

    asked = tuning.Options(
        p99_ms=options.p99_ms,
        trials=options.trials,
        minutes=options.minutes,
        rounds=options.rounds,
        cores=options.cores,
        profile=options.profile,
        streams=options.streams,
        effort=Effort(
            options.seconds, ceiling=options.most, processes=options.processes, seed=options.seed, inputs=options.inputs
        ),
        artifacts=options.artifacts,
        model_repository=options.model_repository,
    )
    recipe, console = recipes.load(options.model, options.recipe), Console()
    logging.getLogger("optimize.rollout").setLevel(logging.WARNING)  # it would tell of every candidate
    with progress_bars() as progress:
        bar = progress.add_task("tuning", total=options.trials)

        def candidate(known: Measured, number: int, best: int) -> None:
            progress.console.print(result.line(known), highlight=False)
            progress.update(bar, completed=number, description=f"tuning, best {best}")

        def run(each: Run) -> None:
            progress.update(bar, description=f"tuning, {each.level}: {each.finding}")

        def stage(what: str) -> None:
            progress.update(bar, description=what)

        found = tuning.tune(recipe, options.variant, asked, tuning.Watcher(candidate, run, stage))
    console.print(result.table(found))
    for words in (
        *result.verdict(found),
        f"details: {asked.artifacts / recipe.name / recipe.variant(options.variant)[0]}",
    ):
        console.print(words, highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    add, whole = parser.add_argument, command.count
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="NAME", help="a built-in recipe; default: load_forecast")
    which.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe file of your own")
    add("--variant", metavar="V", help="a variant of the recipe; default: its first")
    add("--p99-ms", type=float, metavar="MS", help="limit on the p99; of streams by default their chunk's duration")
    add("--streams", action="store_true", help="insist on real-time streams; a model with states is always asked so")
    add("--profile", choices=("invariant", "throughput"), help="only this one; default: all that the last export left")
    add("--trials", type=whole, default=40, metavar="N", help="candidates in all; default: %(default)s")
    add("--minutes", type=command.positive, default=60.0, help="most that the search takes; default: %(default)s")
    add("--rounds", type=whole, default=5, metavar="N", help="best against present, in turns; default: %(default)s")
    cores = os.cpu_count() or 1
    add("--cores", type=whole, default=cores, metavar="N", help="limit on instances x threads; default: %(default)s")
    add("--seconds", type=command.positive, default=1.5, help="of one run of load; default: %(default)s")
    most = "the most requests per second, or streams, to try; default: %(default)s"
    add("--max-rate", "--max-streams", dest="most", type=whole, default=4096, metavar="N", help=most)
    processes = max(cores // 2, 1)
    add("--processes", type=whole, default=processes, metavar="N", help="that make load; default: %(default)s")
    add("--inputs", type=Path, metavar="FILE.npz", help="requests for a model without streams, an array an input")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="of the last export; journal, result")
    add("--model-repository", type=Path, default=Path("model_repository"), metavar="DIR")
    return parser


if __name__ == "__main__":
    command.run(main)
