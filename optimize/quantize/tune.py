"""Decide operator by operator how it is quantised, by measuring: in low precision where the whole model gains by it.

Every method is tried on every group of like operators (same type, same weights' shape), the rest of the model in fp32,
all interleaved in one process on one thread. The score is the geometric mean of two ratios to fp32: time for a single
request and time for a batch. A method that makes either slower is not chosen. Times are the fastest fifth's, as what
else the machine does can only make a call slower.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import ModelProto
from rich.progress import Progress

from optimize import rewriting
from optimize.benchmark import interleaved, onnx_candidate
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.onnx_export import save
from optimize.quantize import METHODS, calibrate, quantize
from optimize.quantize.method import FP32, PROFILES, Method, Profile
from optimize.quantize.plan import Choice, Choices, Plan
from optimize.quantize.weights import weighted_nodes

INVARIANT_MAY_COST = 1.2  # the invariant profile is the default where it takes at most this much more time
_WORTH = 0.99  # a method must save at least 1 % of the whole model's time
_SLOWER = 1.03  # more than the noise of an interleaved run
_ROUNDS, _BATCH, _FASTEST = 100, 16, 20

Group = tuple[str, ...]


@dataclass(frozen=True)
class Ratio:
    """Time of a candidate as a share of fp32's."""

    alone: float
    batched: float

    @property
    def score(self) -> float:
        return math.sqrt(self.alone * self.batched)

    @property
    def slower(self) -> bool:
        return max(self.alone, self.batched) > _SLOWER

    def __str__(self) -> str:
        return f"the model takes {self.alone:.2f} of its fp32 time alone, {self.batched:.2f} in batches"


def tune(
    model: ModelProto,
    requests: Split,
    requested: Sequence[str] = (),
    rounds: int = _ROUNDS,
    progress: Progress | None = None,
    calibrated: bool = True,
    keep: Sequence[str] = (),
) -> Plan:
    """Measure a plan of both profiles, and which of them is to be the default.

    requested: methods that are only tried on request, by name. calibrated: whether the requests are real ones that
    may calibrate ranges; methods that need any are not tried otherwise. keep: operators with one of these in their
    names stay in fp32.
    """
    if len(requests) < _BATCH:
        raise UserError(f"a plan is measured with at least {_BATCH} requests, {len(requests)} were given")
    nodes = {weighted.name: weighted.node for weighted in weighted_nodes(rewriting.read(model))}
    groups: dict[Group, list[str]] = {}
    refused: dict[tuple[str, str], str] = {}
    for name, node in nodes.items():
        for method in _methods(node.op_type, requested):
            needs = method.name + " needs calibration data" if method.calibrated(node) and not calibrated else ""
            kept = next((f"'{part}' is to stay in fp32" for part in keep if part in name), "")
            refused[name, method.name] = kept or method.refuses(node) or needs
        against = [refused[name, method.name] for method in _methods(node.op_type, requested)]
        groups.setdefault((*_group(node), *against), []).append(name)
    trials: dict[str, Choices] = {FP32: {}}
    for index, (group, names) in enumerate(groups.items()):
        for method in _methods(group[0], requested):
            if refused[names[0], method.name]:
                continue
            trials[f"{index} {method.name}"] = {name: Choice(group[0], method.name, "") for name in names}
    ratios = _ratios(model, requests, trials, rounds, progress)
    choices: dict[Profile, Choices] = {}
    for profile in PROFILES:
        chosen: Choices = {}
        for index, (group, names) in enumerate(groups.items()):
            methods = [
                method for method in _methods(group[0], requested) if method.invariant or profile == "throughput"
            ]
            tried = {method.name: ratios.get(f"{index} {method.name}") for method in methods}
            reasons = {method.name: refused[names[0], method.name] for method in methods}
            if not methods and (names_of := [method.name for method in METHODS if method.operator == group[0]]):
                reasons[""] = f"{' or '.join(names_of)} only on request"
            chosen |= dict.fromkeys(names, choose(group[0], tried, reasons, requested))
        choices[profile] = {name: chosen[name] for name in nodes}
    combined = _ratios(model, requests, {FP32: {}, **{str(p): c for p, c in choices.items()}}, rounds, progress)
    for profile in PROFILES:
        if combined[profile].slower:
            reason = f"measured: with all choices of this profile together {combined[profile]}"
            choices[profile] = {name: Choice(node.op_type, FP32, reason) for name, node in nodes.items()}
            combined[profile] = Ratio(1.0, 1.0)
    cost = combined["invariant"].score / combined["throughput"].score
    default: Profile = "invariant" if cost <= INVARIANT_MAY_COST else "throughput"
    reason = f"measured: invariant takes {cost:.2f} times as long as throughput, up to {INVARIANT_MAY_COST} is accepted"
    return Plan(default, reason, choices)


def _group(node: ir.Node) -> Group:
    shapes = [tuple(array.shape) for value in node.inputs if (array := rewriting.constant(value)) is not None]
    return (node.op_type, *map(str, shapes))


def _methods(operator: str, requested: Sequence[str]) -> list[Method]:
    found = [method for method in METHODS if method.operator == operator]
    return [method for method in found if not method.on_request or method.name in requested]


def choose(
    operator: str, tried: Mapping[str, Ratio | None], refused: Mapping[str, str], requested: Sequence[str] = ()
) -> Choice:
    """What was asked for unless it is slower; else the best score of what is worth it; else fp32 and why."""
    measured = {name: ratio for name, ratio in tried.items() if ratio is not None}
    asked = {name: ratio for name, ratio in measured.items() if name in requested and not ratio.slower}
    worth = {name: ratio for name, ratio in measured.items() if ratio.score <= _WORTH and not ratio.slower}
    for candidates, why in ((asked, "asked for; "), (worth, "")):
        if candidates:
            best = min(candidates, key=lambda name: candidates[name].score)
            return Choice(operator, best, f"{why}measured: {candidates[best]}")
    if measured:
        best = min(measured, key=lambda name: measured[name].score)
        return Choice(operator, FP32, f"measured: by {best}, the best of {len(measured)}, {measured[best]}")
    reasons = "; ".join(sorted(set(filter(None, refused.values()))))
    return Choice(operator, FP32, reasons or f"no method for {operator} that this profile may use")


def _ratios(
    model: ModelProto, requests: Split, trials: dict[str, Choices], rounds: int, progress: Progress | None
) -> dict[str, Ratio]:
    """Every trial against fp32, interleaved."""
    ranges = calibrate(model, calibration_feeds(requests), *trials.values())
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for index, (name, choices) in enumerate(trials.items()):
            graph = quantize(model, choices, ranges) if choices else model
            runs[name] = onnx_candidate(name, save(graph, Path(folder) / f"{index}.onnx"), "int8", 0).run
        alone, batched = (
            {
                name: np.percentile(times, _FASTEST)
                for name, times in interleaved(runs, feeds, count, 3, progress).items()
            }
            for feeds, count in (
                ([requests.rows(i, i + 1) for i in range(min(len(requests), rounds))], rounds),
                (
                    [requests.rows(i, i + _BATCH) for i in range(0, len(requests) - _BATCH + 1, _BATCH)],
                    max(rounds // 4, 5),
                ),
            )
        )
    return {name: Ratio(float(alone[name] / alone[FP32]), float(batched[name] / batched[FP32])) for name in trials}


def calibration_feeds(requests: Split, items: int = 512, batch: int = 16) -> list[Arrays]:
    """Items spread evenly over a split, in batches."""
    step = max(math.ceil(len(requests) / items), 1)
    chosen = requests.take(slice(None, None, step))
    return [chosen.rows(start, start + batch) for start in range(0, len(chosen), batch)]
