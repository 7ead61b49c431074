"""GRU and LSTM written out in stock operators, with int8 products: what their rewrites have in common.

    x_t W + h_{t-1} R          x: (time, batch, features), h: (1, batch, hidden), weights (inputs, gates * hidden)

The first product does not depend on the recurrence: it is made for all steps at once. The second is made once a step,
in the body of a Scan, which takes any number of steps; a sequence of one step needs no Scan. Gates that have the same
activation share a product, and all products of a step share one quantised h. Unrolling does not pay: each copy of a
step packs weights of its own, which together leave the cache, and a Scan's own cost is 1 of 15 microseconds a step.

How x and h are quantised makes the method (``activation`` tells what the quantisers are):

              x         h         a row depends on
    dynamic   dynamic   dynamic   its batch, and where the sequence was cut
    static    static    unit      nothing else
    per_row   per_row   unit      nothing else

For the hidden state of either operator starts at 0 and is ever after a mean of values in (-1, 1), or a product of two
such: its range [-1, 1] needs no calibration. (An initial state from outside that exceeds it saturates.) The last two
are invariant to the bit: integer sums are exact, all else works element by element or row by row.

``sequence_lens`` is a mask: beyond its length a sequence keeps its state and gives zeros. Run backwards, it thus starts
at its last valid step from the initial state, as the operators do. An empty sequence has a last state of zeros, as in
ONNX Runtime.

On an x86 CPU without VNNI, ONNX Runtime adds pairs of 8-bit products in 16 bits, where they saturate if the weights use
all eight bits (``reduce_range`` in its documentation); whoever serves on such a machine has to check for it.

Operators: https://onnx.ai/onnx/operators/onnx__GRU.html and onnx__LSTM.html.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from optimize.quantize.activation import Array, Quantizer, dynamic, per_row, product, static, unit
from optimize.quantize.method import Method, Ranges
from optimize.quantize.product import refuses_inputs, refuses_weights
from optimize.rewriting import Replacement, constant, in_branch

_X, _W, _R, _B, _LENGTHS, _STATES = range(6)  # positions of the inputs, that of the first initial state last

Values = Sequence[ir.Value]
Step = Callable[[Replacement, Values, Values], Values]
"""The next states (1, batch, hidden) from a step's slices (batch, gates) of the projected input and the states."""


@dataclass(frozen=True)
class Cell:
    """One step of a recurrent operator.

    operator: its ONNX type. attribute: one that it must have, and its value. activations: of one direction. groups: how
    many gates are in each group of those with one activation, in ONNX's order. states: how many, h being the first.
    inner_bias: the recurrent bias of the last group is added to its recurrent product alone, before anything else.
    step(new, inputs, recurrent, states): makes the next states from the groups' products x W and h R.
    """

    operator: str
    attribute: tuple[str, int]
    activations: tuple[str, ...]
    groups: tuple[int, ...]
    states: int
    inner_bias: bool
    step: Callable[[Replacement, Values, Values, Values], Values]


def method(cell: Cell, name: str) -> Method:
    """The rewrite of a cell by ``dynamic``, ``static`` or ``per_row``."""

    def refuses(node: ir.Node) -> str:
        if name == "static" and in_branch(sequences(node)):
            return "its input lives inside a branch, where calibration may never see it; use per_row"
        return refusal(node, cell)

    def rewrite(node: ir.Node, ranges: Ranges) -> None:
        ways = {"dynamic": (dynamic, dynamic), "static": (static(ranges), unit), "per_row": (per_row, unit)}
        write_out(node, cell, *ways[name])

    return Method(
        name,
        cell.operator,
        invariant=name != "dynamic",
        refuses=refuses,
        rewrite=rewrite,
        calibrated=lambda node: [str(sequences(node).name)] if name == "static" else [],
    )


def refusal(node: ir.Node, cell: Cell) -> str:
    """Why a node is not the plain operator with constant weights, or "" if it is."""
    for at in (_W, _R):
        weights = constant(optional(node, at))
        if reason := refuses_weights(weights):
            return reason
        assert weights is not None
        if reason := refuses_inputs(weights.shape[2]):
            return reason
    if optional(node, _B) is not None and constant(optional(node, _B)) is None:
        return "its bias is no constant"
    if optional(node, _STATES + cell.states) is not None:
        return "it has peepholes"
    attributes = node.attributes
    activations = attributes["activations"].as_strings() if "activations" in attributes else ()
    if activations and [name.lower() for name in activations] != list(cell.activations) * len(directions(node)):
        return f"its activations are {', '.join(activations)}, not the operator's own"
    if "clip" in attributes:
        return "it clips"
    for name, value in (("layout", 0), cell.attribute):
        if (attributes[name].as_int() if name in attributes else 0) != value:
            return f"its {name} is not {value}"
    return ""


def write_out(node: ir.Node, cell: Cell, for_input: Quantizer, for_hidden: Quantizer) -> None:
    """Put products and steps in the place of a node that ``refusal`` has nothing against."""
    new, x = Replacement(node), sequences(node)
    with_y, *with_states = used(node)
    valid = _valid(new)
    quantized = for_input(new, x)
    outputs: list[ir.Value] = []
    lasts: list[Values] = []
    for index, name in enumerate(directions(node)):
        groups = _groups(node, cell, index, name)
        inputs = [product(new, quantized, f"{group.name}_W", group.w, group.w_bias) for group in groups]
        states: Values = [_initial(new, which, index) for which in range(cell.states)]
        step = _step(cell, groups, for_hidden)
        if x.shape is not None and x.shape[0] == 1 and valid is None:
            states = step(new, inputs, states)
            outputs.append(new.op("Unsqueeze", states[0], new.constant("axis_0", np.array([0]))))
        else:
            output, states = _scan(new, name, step, inputs, states, valid, with_y)
            outputs += output
        lasts.append(states)
    y = _joined(new, outputs, 1) if with_y else None
    last = [_joined(new, of_directions, 0) for of_directions in zip(*lasts, strict=True)]
    if valid is not None:
        zero = new.constant("zero", np.array(0, np.float32))
        last = [new.op("Where", valid.any, state, zero) for state in last]
        if y is not None:
            y = new.op("Where", new.op("Unsqueeze", valid.steps, new.constant("axis_1", np.array([1]))), y, zero)
    new.finish(y, *(state if use else None for state, use in zip(last, with_states, strict=False)))


def sequences(node: ir.Node) -> ir.Value:
    """The first input, x: (time, batch, features)."""
    x = node.inputs[_X]
    assert x is not None
    return x


def optional(node: ir.Node, at: int) -> ir.Value | None:
    """An input that may be absent."""
    return node.inputs[at] if at < len(node.inputs) else None


def used(node: ir.Node) -> list[bool]:
    """For each output, whether anything uses it."""
    return [bool(output.uses()) or output.is_graph_output() for output in node.outputs]


def directions(node: ir.Node) -> list[str]:
    """Which ways the node runs, in the order of its weights."""
    name = node.attributes["direction"].as_string() if "direction" in node.attributes else "forward"
    return ["forward", "reverse"] if name == "bidirectional" else [name]


def body(new: Replacement, name: str, inputs: dict[str, tuple[ir.DataType, int]]) -> tuple[Replacement, Values]:
    """An empty body for a Scan, to put nodes into, and its inputs, given by name as element type and rank."""
    values = [
        ir.Value(name=f"{new.node.name}/{name}/{key}", type=ir.TensorType(dtype), shape=ir.Shape([None] * rank))
        for key, (dtype, rank) in inputs.items()
    ]
    end = ir.node("Identity", [values[0]], name=f"{new.node.name}/{name}")  # nodes are put before it
    graph = ir.Graph(values, [], nodes=[end], name=end.name)
    graph.meta["opset_imports"] = new.graph.meta.get("opset_imports", new.graph.opset_imports)
    return Replacement(end), values


def closed(inner: Replacement, outputs: dict[ir.Value, int]) -> ir.Graph:
    """The body once its nodes are there; outputs: float tensors with their rank."""
    for value, rank in outputs.items():
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([None] * rank)
    inner.graph.remove(inner.node, safe=True)
    inner.graph.outputs.extend(outputs)
    return inner.graph


class _Group(NamedTuple):
    """Weights (inputs, outputs) of gates with one activation. r_bias is None where w_bias is the sum of both biases."""

    name: str
    w: Array
    r: Array
    w_bias: Array | None
    r_bias: Array | None


class _Valid(NamedTuple):
    """steps: (time, batch, 1), whether a step is within its sequence. any: (1, batch, 1), whether there is such one."""

    steps: ir.Value
    any: ir.Value


def _groups(node: ir.Node, cell: Cell, index: int, direction: str) -> list[_Group]:
    w, r, bias = (
        array if array is None else array[index] for array in (constant(optional(node, at)) for at in (_W, _R, _B))
    )
    assert w is not None
    assert r is not None
    groups, start = [], 0
    for number, gates in enumerate(cell.groups):
        part = slice(start, start + gates * r.shape[1])
        start = part.stop
        w_bias, r_bias = (None, None) if bias is None else (half[part] for half in np.split(bias, 2))
        if w_bias is not None and not (cell.inner_bias and number == len(cell.groups) - 1):
            w_bias, r_bias = w_bias + r_bias, None
        groups.append(_Group(f"{direction}_{number}", w[part].T, r[part].T, w_bias, r_bias))
    return groups


def _initial(new: Replacement, which: int, index: int) -> ir.Value:
    """The initial state of one direction, (1, batch, hidden)."""
    given = optional(new.node, _STATES + which)
    if given is not None and len(directions(new.node)) == 1:
        return given
    if given is not None:
        return new.op("Gather", given, new.constant(f"index_{index}", np.array([index])), axis=0)
    x, r = sequences(new.node), constant(new.node.inputs[_R])
    assert r is not None
    size = r.shape[2]
    if x.shape is not None and isinstance(x.shape[1], int):
        return new.constant("zeros", np.zeros((1, x.shape[1], size), np.float32))
    batch = new.op("Gather", new.op("Shape", x), new.constant("index_1", np.array([1])))
    one, size_of_state = new.constant("one_axis", np.array([1])), new.constant("hidden_axis", np.array([size]))
    return new.op("ConstantOfShape", new.op("Concat", one, batch, size_of_state, axis=0))


def _valid(new: Replacement) -> _Valid | None:
    lengths = optional(new.node, _LENGTHS)
    if lengths is None:
        return None
    zero, one = new.constant("int_0", np.array(0, np.int32)), new.constant("int_1", np.array(1, np.int32))
    time = new.op("Gather", new.op("Shape", sequences(new.node)), new.constant("index_time", np.array(0)))
    times = new.op("Range", zero, new.op("Cast", time, to=int(ir.DataType.INT32)), one)
    times = new.op("Reshape", times, new.constant("over_time", np.array([-1, 1, 1])))
    lengths = new.op("Reshape", lengths, new.constant("over_batch", np.array([1, -1, 1])))
    return _Valid(new.op("Less", times, lengths), new.op("Less", zero, lengths))


def _step(cell: Cell, groups: list[_Group], quantizer: Quantizer) -> Step:
    def step(new: Replacement, inputs: Values, states: Values) -> Values:
        quantized = quantizer(new, states[0])
        recurrent = [
            product(new, quantized, f"{group.name}_R", group.r, group.r_bias, few_rows=True) for group in groups
        ]
        return cell.step(new, inputs, recurrent, states)

    return step


def _scan(
    new: Replacement, direction: str, step: Step, inputs: Values, states: Values, valid: _Valid | None, with_y: bool
) -> tuple[Values, Values]:
    """The output (time, 1, batch, hidden), if it is used, and the last states (1, batch, hidden)."""
    scanned = [*inputs] if valid is None else [*inputs, valid.steps]
    inner, values = body(
        new,
        direction,
        {f"state_{i}": (ir.DataType.FLOAT, 3) for i in range(len(states))}
        | {f"input_{i}": (ir.DataType.FLOAT, 2) for i in range(len(inputs))}
        | ({} if valid is None else {"valid": (ir.DataType.BOOL, 2)}),
    )
    before, slices = values[: len(states)], values[len(states) :]
    after = step(inner, slices[: len(inputs)], before)
    if valid is None:
        output = inner.op("Identity", after[0])  # a graph cannot give one value twice
    else:
        output = after[0]
        after = [inner.op("Where", slices[-1], *pair) for pair in zip(after, before, strict=True)]
    ran = new.ops(
        len(states) + with_y,
        "Scan",
        *states,
        *scanned,
        body=closed(inner, dict.fromkeys([*after, output] if with_y else after, 3)),
        num_scan_inputs=len(scanned),
        scan_input_directions=[int(direction == "reverse")] * len(scanned),
        scan_output_directions=[int(direction == "reverse")] * with_y,
    )
    return ran[len(states) :], ran[: len(states)]


def _joined(new: Replacement, of_directions: Values, axis: int) -> ir.Value:
    return of_directions[0] if len(of_directions) == 1 else new.op("Concat", *of_directions, axis=axis)
