"""How much of a model really is in low precision: of its weight bytes, and of its multiply-accumulates.

Both are read off the graph that will be served, not off what a tool says it did, and they are two different facts. An
int8 weight behind DequantizeLinear is stored in eight bits and multiplied in fp32: the runtime writes it out in fp32
when it loads the model, or fuses it, as its version sees fit. It counts for the bytes and not for the products.

Weights are the constants that an operator multiplies by; scales, zero points and biases are none. Products are those
with weights: what attention multiplies, activations by activations, is not among them. What is in the body of a Scan
or Loop counts once for every trip; of an If both branches count. Bytes count as the fp32 bytes they stand for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir
from onnx import ModelProto, inliner

from optimize import rewriting
from optimize.data.dataset import Arrays
from optimize.quantize.method import FP32, STORED_ONLY
from optimize.quantize.plan import Choice
from optimize.quantize.shapes import Ran, observed_shapes, zeros
from optimize.quantize.weights import Weighted, walk, weighted_nodes


@dataclass(frozen=True)
class Coverage:
    """What of a graph is in low precision, and what is not.

    weight_bytes_fraction: share of the weights that is stored in at most eight bits. mac_fraction: share of the
    multiply-accumulates that multiplies eight bits by eight bits. operators: how many of each type have weights;
    operators_before: the same of the graph it was made from. kept_fp32: operators whose weights are in fp32, without
    those that ``refusals`` gives a reason for. stored_only: operators whose weights are in eight bits, but not their
    products. constants: operators left out of all shares because what they multiply by was never trained.
    """

    weight_bytes_fraction: float
    mac_fraction: float
    operators: dict[str, int] = field(default_factory=dict)
    kept_fp32: list[str] = field(default_factory=list)
    operators_before: dict[str, int] = field(default_factory=dict)
    stored_only: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)


def coverage(
    model: ModelProto,
    *,
    sizes: Mapping[str, int] | None = None,
    trip_counts: Mapping[str, int] | None = None,
    inputs: Arrays | None = None,
    constants: Collection[str] = (),
    refusals: Mapping[str, str] | None = None,
    before: ModelProto | None = None,
) -> Coverage:
    """Measure a graph, running it once on zeros; shares are 0 for a model without weights.

    sizes: of dynamic axes, by name; a batch is 1 and anything else 16 without one. trip_counts: of Loops that do not
    say theirs, by the node's name; 16 without one. inputs: a request to run on instead of zeros, for which Loops take
    as many trips as they take.
    constants: names of nodes or initializers that look like weights but were not trained, such as filter banks.
    refusals: why a node was left in fp32, by its name. before: the graph that this one was made from. Raises UserError
    when the graph does not run.
    """
    model = _without_functions(model)
    opened = rewriting.read(model)
    numbers = {node: number for number, (node, _) in enumerate(walk(opened.graph))}
    found = weighted_nodes(opened)
    trained = [weighted for weighted in found if not _is_listed(weighted, constants)]
    ran = (
        observed_shapes(
            model,
            zeros(model, sizes or {}) | (inputs or {}),
            [numbers[w.node] for w in trained],
            trip_counts,
            real=inputs is not None,
        )
        if trained
        else {}
    )
    macs = Counter[bool]()
    for weighted in trained:
        macs[weighted.multiplies_low] += sum(macs_of(weighted.node, one) for one in ran[numbers[weighted.node]])
    fp32 = [weighted.name for weighted in trained if not weighted.stored_low]
    reasons = {name: reason for name, reason in (refusals or {}).items() if name in fp32}
    return Coverage(
        weight_bytes_fraction=_share(_sizes(trained)),
        mac_fraction=_share(macs),
        operators=_types(trained),
        kept_fp32=[name for name in fp32 if name not in reasons],
        operators_before=operators(before) if before else {},
        stored_only=[w.name for w in trained if w.stored_low and _multiplies(w) and not w.multiplies_low],
        constants=[weighted.name for weighted in found if _is_listed(weighted, constants)],
        refusals=reasons,
    )


def operators(model: ModelProto) -> dict[str, int]:
    """How many operators of each type have weights."""
    return _types(weighted_nodes(rewriting.read(_without_functions(model))))


def planned_share(before: ModelProto, after: ModelProto, plan: Mapping[str, Choice]) -> tuple[float, list[str]]:
    """Of the weights that a plan wants in low precision, the share that is, and the planned operators that are not.

    What became of an operator is told by the names of the nodes: a rewrite of node N makes nodes N/<what>. Weights
    that the runtime would write out in fp32 again are not in low precision, unless the plan asks for just that. The
    share is 1 for a plan that wants none.
    """
    planned = {w.name: sum(w.sizes.values()) for w in weighted_nodes(rewriting.read(before))}
    wanted = [name for name, choice in plan.items() if choice.method != FP32]
    low = Counter[str]()
    for weighted in weighted_nodes(rewriting.read(after)):
        origin = _origin(weighted.name, planned)
        asked = plan[origin].method if origin in plan else FP32
        if origin and (weighted.stays_low or (weighted.stored_low and asked == STORED_ONLY)):
            low[origin] += sum(weighted.sizes.values())
    done = {name: min(low[name], planned[name]) for name in wanted if name in planned}
    missed = [name for name in wanted if name not in planned or done[name] < planned[name]]
    total = sum(planned[name] for name in done)
    return (sum(done.values()) / total if total else float(not missed)), missed


def macs_of(node: ir.Node, ran: Ran) -> int:
    """Multiply-accumulates with weights of one time that an operator ran."""
    output = prod(ran.outputs[0]) if ran.outputs else 0
    match node.op_type:
        case "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM":  # (time, batch, features): every weight at every step
            return prod(ran.inputs[0][:2]) * (prod(ran.inputs[1]) + prod(ran.inputs[2]))
        case "Attention" | "QAttention":
            return prod(ran.inputs[0][:-1]) * prod(ran.inputs[1])
        case "Conv" | "FusedConv" | "ConvInteger" | "QLinearConv":
            return output * prod(ran.inputs[3 if node.op_type == "QLinearConv" else 1][1:])
        case "ConvTranspose":
            return prod(ran.inputs[0]) * prod(ran.inputs[1][1:])
        case "Gather":
            return 0
        case _:  # a matrix product: every element of the result sums over the inner axis
            transposed = node.attributes["transA"].as_int() if "transA" in node.attributes else 0
            return output * ran.inputs[0][-2 if transposed else -1]


def _origin(name: str, nodes: Iterable[str]) -> str:
    """Which of ``nodes`` a node was made from, by its name, or "": the longest that fits, as names may nest."""
    made_from = [node for node in nodes if name == node or name.startswith(f"{node}/")]
    return max(made_from, key=len, default="")


def _multiplies(weighted: Weighted) -> bool:
    return weighted.node.op_type != "Gather"


def _is_listed(weighted: Weighted, names: Collection[str]) -> bool:
    return weighted.name in names or any(root.name in names for root in weighted.sizes)


def _sizes(nodes: Iterable[Weighted]) -> Counter[bool]:
    """Weights stored in low precision (True) and not; an initializer that several nodes share counts once."""
    shared = {root: (weighted.stored_low, size) for weighted in nodes for root, size in weighted.sizes.items()}
    counts = Counter[bool]()
    for low, size in shared.values():
        counts[low] += size
    return counts


def _types(nodes: Iterable[Weighted]) -> dict[str, int]:
    return dict(Counter(weighted.node.op_type for weighted in nodes))


def _share(counts: Mapping[bool, int]) -> float:
    total = counts[True] + counts[False]
    return counts[True] / total if total else 0.0


def _without_functions(model: ModelProto) -> ModelProto:
    """Functions of the model's own written out, as the runtime does."""
    return inliner.inline_local_functions(model) if model.functions else model
