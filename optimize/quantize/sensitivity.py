"""Which operators cost the accuracy: each quantised alone, then greedily out until the loss is within its limit.

    python -m optimize.quantize.sensitivity --model load_forecast      # as a report; nothing is changed

Losses are relative to the fp32 graph on the validation split, never on the test split: an exclusion is a decision.
Every loss that has been measured is kept in a journal, so that an interrupted search goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from optimize import command, fuse, onnx_export, recipes, streaming, verify
from optimize.benchmark import runner, session
from optimize.checkpoint import load_checkpoint, path_of, replace_file
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.quantize import calibrate, plan, quantize
from optimize.quantize.method import FP32, PROFILES, Profile
from optimize.quantize.plan import Choices
from optimize.quantize.tune import calibration_feeds
from optimize.recipes import Metric
from optimize.specs import ModelSpec

LOG = logging.getLogger(__name__)

Loss = Callable[[Choices], float]


@dataclass(frozen=True)
class Sensitivity:
    """Relative losses of the metric, positive is worse: all quantised, each operator quantised alone, and what is left
    when ``excluded`` stay in fp32, in the order in which they were taken out."""

    everything: float
    alone: dict[str, float]
    excluded: dict[str, float]

    @property
    def remaining(self) -> float:
        return list(self.excluded.values())[-1] if self.excluded else self.everything


def search(choices: Choices, loss: Loss, limit: float, progress: Progress | None = None) -> Sensitivity:
    """Take operators out, the one that costs most alone first, until the loss is at most ``limit``.

    Raises UserError when even fp32 throughout misses the limit: then quantisation is not what costs the accuracy.
    """
    quantised = [name for name, choice in choices.items() if choice.quantised]
    bar = progress.add_task("sensitivity", total=len(quantised)) if progress else None
    everything = loss(choices)
    alone = {}
    for name in quantised:
        alone[name] = loss({name: choices[name]})
        if progress and bar is not None:
            progress.advance(bar)
    excluded: dict[str, float] = {}
    left, remaining = dict(choices), everything
    for name in sorted(quantised, key=lambda name: -alone[name]):
        if remaining <= limit:
            break
        left = {key: choice for key, choice in left.items() if key != name}
        remaining = loss(left)
        excluded[name] = remaining
    if not remaining <= limit:
        raise UserError(
            f"the metric loss is {remaining:.2%} with every operator in fp32, allowed are {limit:.2%}: quantisation is "
            "not what costs the accuracy; train or distil longer"
        )
    return Sensitivity(everything, alone, excluded)


def exclude(choices: Choices, found: Sensitivity) -> Choices:
    """The choices with the excluded operators in fp32, each with what it cost."""
    return choices | {
        name: replace(
            choices[name],
            method=FP32,
            reason=f"sensitivity: by {choices[name].method} it alone costs {found.alone[name]:+.2%} of the metric; "
            f"without it {remaining:+.2%} are left",
        )
        for name, remaining in found.excluded.items()
    }


def metric_loss(
    model: ModelProto,
    spec: ModelSpec,
    metric: Metric,
    split: Split,
    calibration: list[Arrays],
    journal: Path | None = None,
) -> Loss:
    """``Metric.loss`` of some choices to ``model`` on a split; what the journal already holds is not run.

    spec: the model's; one with states is run chunk by chunk. calibration: the requests on which ranges are observed,
    those that the published model is calibrated on. Raises UserError for a journal that cannot be read.
    """
    digest = hashlib.sha256(model.SerializeToString(deterministic=True) + metric.name.encode())
    for arrays in (split.inputs, split.targets, *calibration):
        for name, array in sorted(arrays.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    identity = digest.hexdigest()[:16]
    known = _read(journal) if journal and journal.exists() else {}

    def value(choices: Choices) -> float:
        methods = {name: choice.method for name, choice in sorted(choices.items()) if choice.quantised}
        key = f"{identity} {json.dumps(methods)}"
        if key not in known:
            graph = quantize(model, choices, calibrate(model, calibration, choices))
            run = streaming.whole(runner(session(graph.SerializeToString())), spec)
            known[key] = metric(verify.answers(run, split), split)
            if journal:
                replace_file(journal, json.dumps(known, indent=2).encode())
        return known[key]

    def loss(choices: Choices) -> float:
        base, ours = value({}), value(choices)
        return metric.loss(ours, base)

    return loss


def _read(journal: Path) -> dict[str, float]:
    try:
        return {key: float(value) for key, value in json.loads(journal.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"sensitivity journal '{journal}' cannot be read ({error}); delete it") from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--profile", choices=PROFILES, help="(default: the one of the committed plan)")
    parser.add_argument("--limit", type=float, metavar="SHARE", help="(default: the recipe's tolerance)")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="of the journal")
    options = parser.parse_args(arguments)
    recipe = recipes.load(options.model, options.recipe)
    name, variant = recipe.variant(options.variant)
    assert recipe.file is not None
    committed = plan.read(recipe.file.with_suffix(".plan.json"), name)
    if committed is None:
        raise UserError(f"'{recipe.name}/{name}' has no plan yet; run {recipe.export(name)} first")
    profile: Profile = options.profile or committed.profile
    network = variant.networks[variant.published]
    path = path_of(options.checkpoints, recipe.name, *recipe.origin(name, variant.published))
    module, _ = load_checkpoint(path, network)
    step = streaming.served(module, variant.spec)
    model, _ = fuse.fuse(onnx_export.export(step, variant.spec, variant.opset_version))
    journal = options.artifacts / recipe.name / name / "sensitivity.json"
    limit = variant.tolerances.metric_loss if options.limit is None else options.limit
    data = recipe.load(options.data)
    requests = streaming.steps(runner(session(model.SerializeToString())), variant.spec, data.train)
    calibration = calibration_feeds(requests)
    loss = metric_loss(model, variant.spec, recipe.metric, data.validation, calibration, journal)
    with command.progress() as progress:
        found = search(committed.choices[profile], loss, limit, progress)
    table = Table("operator", "method", f"loss of {recipe.metric.name} alone", "left without it")
    for operator, cost in sorted(found.alone.items(), key=lambda item: -item[1]):
        left = f"{found.excluded[operator]:+.3%}" if operator in found.excluded else ""
        table.add_row(operator, committed.choices[profile][operator].method, f"{cost:+.3%}", left)
    Console().print(table, f"all quantised: {found.everything:+.3%}; limit {limit:.3%}; journal: {journal}", sep="\n")


if __name__ == "__main__":
    command.run(main)
