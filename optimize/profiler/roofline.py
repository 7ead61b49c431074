"""What every operator of an ONNX graph has to do in one run, and how fast the machine could do it.

Multiply-accumulates are counted as ``quantize.coverage`` counts them, and those of activations by activations too.
Bytes are the constants that an operator reads, at every step where it is recurrent, and the activations that it reads
and writes. All weights pass through the caches between two runs, so the first reading of each in a run comes from the
level that holds all of them; what a recurrence or a loop reads again comes from the level that holds just that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir
from onnx import ModelProto

from optimize import rewriting
from optimize.data.dataset import Arrays
from optimize.profiler.machine import Machine
from optimize.profiler.profile import Part, layer_of
from optimize.quantize.coverage import macs_of
from optimize.quantize.shapes import Ran, observed_shapes
from optimize.quantize.weights import OPERATORS, Inside, walk, weighted_nodes

VIEWS = {
    "Flatten",
    "Identity",
    "Reshape",
    "Shape",
    "Size",
    "Squeeze",
    "Unsqueeze",
    "Loop",
    "Scan",
    "If",
}  # copy nothing
PICKS = {"Gather", "GatherElements", "GatherND", "Slice", "Split"}  # read only what they give
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}


@dataclass(frozen=True)
class Activations:
    """Bytes that an operator got and gave in one run, as the runtime tells."""

    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True)
class Operator:
    """A node and what it does in one run. weight_bytes: its constants; again_bytes: what of them is read again, after
    the first time, from something of again_held bytes."""

    node: ir.Node
    inside: Inside
    layer: str
    calls: float
    macs: float
    low: bool
    weight_bytes: int
    again_bytes: float
    again_held: int

    def part(self, machine: Machine, ms: float, activations: Activations, model_bytes: int) -> Part:
        """It as a part of a profile. model_bytes: of all constants of the model."""
        weights, read, written = float(self.weight_bytes), activations.read, activations.written
        if self.node.op_type in VIEWS:
            weights = read = written = 0.0
        elif self.node.op_type in PICKS:
            weights, read = min(weights, written), min(read, written)
        moving = machine.moving_s(weights, model_bytes) + machine.moving_s(self.again_bytes, self.again_held)
        moving += machine.moving_s(read + written, (read + written) / self.calls if self.calls else 0.0)
        multiplying = machine.multiplying_s(self.macs, self.low)
        return Part(
            name=str(self.node.name),
            operator=self.node.op_type,
            layer=self.layer,
            ms=ms,
            calls=self.calls,
            macs=self.macs,
            moved_bytes=weights + self.again_bytes + read + written,
            weight_bytes=weights,
            arithmetic_ms=1e3 * multiplying,
            limit_ms=1e3 * max(moving, multiplying),
            low=self.low,
        )


def operators(model: ModelProto, feeds: Sequence[Arrays]) -> list[Operator]:
    """Every node in the order of ``walk``; calls and multiply-accumulates are means over the requests.

    Raises UserError when the graph does not run.
    """
    opened = rewriting.read(model)
    places = list(walk(opened.graph))
    low = {weighted.node: weighted.multiplies_low for weighted in weighted_nodes(opened)}
    held = Counter[ir.Node]()  # by bodies, by the node that has them
    for node, inside in places:
        held.update(dict.fromkeys([at for at, _ in inside], sum(constants(node).values())))
    ran: dict[int, list[Ran]] = {}
    for feed in feeds:
        for number, times in observed_shapes(model, feed, (), real=True).items():
            ran.setdefault(number, []).extend(times)
    found = []
    for number, (node, inside) in enumerate(places):
        times, weights = ran.get(number, []), sum(constants(node).values())
        calls = len(times) / len(feeds)
        recurrent = _recurrent_bytes(node)
        steps = sum(one.inputs[0][0] - 1 for one in times) / len(feeds) if recurrent else 0.0
        used_by = [user.node for output in node.outputs for user in output.uses()]
        names = [str(value.name) for value in node.outputs] + [str(user.name) for user in used_by]
        has_body = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        found.append(
            Operator(
                node=node,
                inside=inside,
                layer=layer_of(str(node.name), *([] if has_body else names)),
                calls=calls,
                macs=sum(_macs(node, one) for one in times) / len(feeds),
                low=low.get(node, node.op_type in OPERATORS and OPERATORS[node.op_type].integer),
                weight_bytes=weights,
                again_bytes=weights * max(calls - 1, 0.0) + recurrent * steps,
                again_held=held[inside[-1][0]] if inside else recurrent,
            )
        )
    return found


def model_bytes(graph: ir.Graph) -> int:
    """Bytes of all constants, each once."""
    return sum({value: size for node, _ in walk(graph) for value, size in constants(node).items()}.values())


def constants(node: ir.Node) -> dict[ir.Value, int]:
    """The constants that a node reads, and their bytes."""
    arrays = {value: rewriting.constant(value) for value in node.inputs if value is not None}
    return {value: array.nbytes for value, array in arrays.items() if array is not None}


def _recurrent_bytes(node: ir.Node) -> int:
    """Of the weights that are read at every step."""
    array = rewriting.constant(node.inputs[2]) if node.op_type in RECURRENT else None
    return 0 if array is None else array.nbytes


def _macs(node: ir.Node, ran: Ran) -> int:
    """Multiply-accumulates of one time that an operator ran: with weights, and of attention's queries, keys, values."""
    count = macs_of(node, ran) if node.op_type in OPERATORS else 0
    match node.op_type:
        case "Attention" | "QAttention":  # all keys, (batch, time, width)
            return count + 2 * prod(ran.outputs[0]) * ran.inputs[0][1]
        case "MultiHeadAttention":
            return prod(ran.inputs[0][:2]) * ran.inputs[1][1] * (ran.inputs[0][-1] + ran.outputs[0][-1])
        case _:
            return count
