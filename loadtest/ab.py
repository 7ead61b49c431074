"""An A/B test of two versions that a running Triton serves, on the recipe's held-out test items.

    python -m optimize.export --quantize --profile throughput --candidate   # beside the live version
    python -m loadtest.ab --model load_forecast --rate 100 --duration 60
    python -m optimize.release promote --model load_forecast                # or withdraw

Every user asks for one test item, whose true answer is known; the router (clients/router.py) sends it to the live
version or to the candidate, by a hash of its id. Requests start when they are due (open loop), and latency counts from
then. Reported are, of each arm and of the difference, the metric and the latencies with 95 % intervals, and what to do:
promote, keep, or go on (loadtest/comparison.py says by which rules, and what is assumed).

Tests of this kind need many users: an interval of 1 % of a metric whose items scatter as much as its mean takes tens of
thousands. The report of an export compares the same items in both models, which needs far fewer: look there first.

Exit status: 0 for a run that was made, whatever it recommends (--json FILE has "recommendation"); 2 for a mistake.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from clients.client import DEFAULT_ADDRESS, checked_address
from clients.router import Target
from loadtest import thresholds
from loadtest.arms import Traffic, replay
from loadtest.command import count, new_file, not_negative, positive, run
from loadtest.comparison import Comparison, Estimate, Limits, Summary, compare
from loadtest.pacing import ARRIVALS
from loadtest.workloads import read_arrays
from optimize import command, recipes
from optimize.data.dataset import Split
from optimize.errors import UserError
from optimize.recipes import Metric

TARGET = "target_"  # before a target's name in a file of requests


def read_items(file: Path, metric: Metric) -> Split:
    """Requests of a .npz file with their true answers, whose names begin with ``target_``. Raises UserError."""
    arrays = read_arrays(file)
    inputs = {name: array for name, array in arrays.items() if not name.startswith(TARGET)}
    targets = {name.removeprefix(TARGET): array for name, array in arrays.items() if name.startswith(TARGET)}
    if not inputs or not targets:
        raise UserError(
            f"'{file}' has {', '.join(arrays)}: {metric.name} needs the true answers too; give an array for each "
            f"input, and one for each target as {TARGET}NAME"
        )
    return Split(inputs, targets, np.arange(len(next(iter(inputs.values())))))


def report(found: Comparison, note: str) -> str:
    """The result as text."""
    shown = [
        ("", "versions", "users", "requests", "failed", found.metric, "p50 ms", "p95 ms", "p99 ms"),
        _row("control", found.control),
        _row("candidate", found.candidate),
        ("difference", "", "", "", "", _share(found.loss, " points" if found.points else " %"),
         *(_share(change, " %") for change in found.slowdown.values())),
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    advice = {
        "promote": "python -m optimize.release promote",
        "keep": "python -m optimize.release withdraw",
        "go on": "more requests alone do not settle it"
        if found.more_requests is None
        else f"about {found.more_requests:,} more requests, if the figures stay as they are",
    }[found.recommendation]
    late = max(found.control.late_p99_ms, found.candidate.late_p99_ms)
    return "\n".join(
        [
            *lines,
            f"in brackets: 95 % intervals; difference: positive is worse; latencies from when a request was due; the "
            f"generator was {late:.2f} ms late (p99)",
            *([note] if note else []),
            f"{found.recommendation} ({advice})",
            *(f"  {reason}" for reason in found.reasons),
        ]
    )


def to_json(found: Comparison, traffic: Traffic) -> str:
    """All figures and the settings they belong to; null for what is not known."""
    settings = {name: getattr(traffic, name) for name in ("users", "rate", "duration_s", "split", "salt", "seed")}
    content = {"model": traffic.spec.name, **settings, "items": len(traffic.items), **asdict(found)}
    return thresholds.to_json(content)


def _row(name: str, arm: Summary) -> tuple[str, ...]:
    counts = (", ".join(arm.versions) or "-", str(arm.users), str(arm.requests), str(arm.failed))
    return (name, *counts, *(_number(each) for each in (arm.metric, *arm.latency_ms.values())))


def _number(found: Estimate) -> str:
    return f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"


def _share(found: Estimate, unit: str) -> str:
    return f"{found.value:+.2%} ({found.low:+.2%} to {found.high:+.2%})".replace("%", unit)


def _note(traffic: Traffic, requests: int) -> str:
    """Where items come again, which a response cache answers without the model."""
    different = min(requests, traffic.users, len(traffic.items))
    if requests <= different:
        return ""
    return (
        f"{requests - different:,} of {requests:,} requests repeat another's item ({different:,} are different): where "
        "the model has a response cache, it answers them"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    recipe = recipes.load(options.model, options.recipe)
    _, variant = recipe.variant(options.variant)
    name = variant.spec.name
    if variant.spec.states:
        raise UserError(f"'{name}' keeps the state of streams, and only single requests can be replayed; choose a "
                        "--variant without states")  # fmt: skip
    file = options.requests_file
    items = read_items(file, recipe.metric) if file else recipe.load(options.data).test
    versions = [None, None] if options.versions is None else [Target(name, version) for version in options.versions]
    traffic = Traffic(
        spec=variant.spec,
        items=items,
        users=options.users or len(items),
        rate=options.rate,
        duration_s=options.duration,
        split=options.split,
        salt=options.salt,
        control=versions[0],
        candidate=versions[1],
        arrivals=options.arrivals,
        deadline_s=options.deadline,
        seed=options.seed,
    )
    arms = asyncio.run(replay(checked_address(options.address, "grpc"), traffic))
    limits = Limits(
        variant.tolerances.metric_loss if options.tolerance is None else options.tolerance, options.slowdown
    )
    found = compare(arms, items, recipe.metric, limits, options.duration)
    print(f"{name}: {found.control.requests + found.candidate.requests:,} requests, {options.rate:g} a second, "
          f"{options.split:.0%} to the candidate")  # fmt: skip
    print(report(found, _note(traffic, found.control.requests + found.candidate.requests)))
    if options.json is not None:
        options.json.write_text(to_json(found, traffic))
    return 0


def _between(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected a share between 0 and 1, such as 0.5")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--address", default=DEFAULT_ADDRESS["grpc"], metavar="HOST:PORT", help="gRPC; default: %(default)s")
    add("--versions", nargs=2, metavar=("A", "B"), help="two versions of one model that are both loaded, control first "
        "(default: the live version and its candidate)")  # fmt: skip
    add(
        "--split",
        type=_between,
        default=0.5,
        help="share of the users who get the candidate; default: %(default)s",
    )
    add("--salt", default="loadtest.ab", help="name of the test: another one, other users; default: %(default)s")
    add("--users", type=count, metavar="N", help="who ask for an item each (default: as many as there are items)")
    add("--rate", type=positive, default=50.0, help="requests per second, of both arms together; default: %(default)s")
    add("--duration", type=positive, default=30.0, metavar="SECONDS", help="default: %(default)s")
    add("--arrivals", choices=tuple(ARRIVALS), default="poisson", help="default: %(default)s")
    add("--deadline", type=positive, default=10.0, metavar="SECONDS", help="of a request; default: %(default)s")
    add("--requests-file", type=Path, metavar="FILE.npz",
        help=f"items instead of the recipe's: an array for each input, and each target as {TARGET}NAME")  # fmt: skip
    add("--tolerance", type=not_negative, metavar="SHARE",
        help="the most that the metric may lose (default: the recipe's tolerance)")  # fmt: skip
    add("--slowdown", type=not_negative, default=0.1, metavar="SHARE",
        help="the most that the p95 latency may grow; default: %(default)s")  # fmt: skip
    add("--seed", type=int, default=0, help="of the order of the users; default: %(default)s")
    add("--json", type=new_file, metavar="FILE", help="write all figures there")
    return parser


if __name__ == "__main__":
    run(main)
