"""Where the trained weights of a graph are, and in what they are stored: read off the graph, bodies included.

A weight is whatever does not depend on the request and is multiplied by something that does. It is followed from the
operator back to the initializers through any operators in between:

    initializer -> Transpose -> Cast -> MatMul          the initializer is the MatMul's weight
    int8 initializer -> DequantizeLinear -> MatMul      so it is here, but the MatMul multiplies in fp32
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

SMALL_TABLE = 1024  # a Gather of fewer constants is indexing, no embedding


@dataclass(frozen=True)
class Operator:
    """weights: positions where an operator may have them. integer: it multiplies eight bits by eight bits."""

    weights: tuple[int, ...]
    integer: bool = False


OPERATORS = {
    "MatMul": Operator((0, 1)),
    "FusedMatMul": Operator((0, 1)),
    "Gemm": Operator((0, 1)),
    "FusedGemm": Operator((0, 1)),
    "Conv": Operator((1,)),
    "FusedConv": Operator((1,)),
    "ConvTranspose": Operator((1,)),
    "LSTM": Operator((1, 2)),
    "GRU": Operator((1, 2)),
    "RNN": Operator((1, 2)),
    "Attention": Operator((1,)),
    "Gather": Operator((0,)),
    "MatMulNBits": Operator((1,)),  # multiplies in eight bits at accuracy_level 4 only
    "DynamicQuantizeLSTM": Operator((1, 2), integer=True),
    "DynamicQuantizeMatMul": Operator((1,), integer=True),
    "MatMulInteger": Operator((0, 1), integer=True),
    "MatMulIntegerToFloat": Operator((0, 1), integer=True),
    "QLinearMatMul": Operator((0, 3), integer=True),
    "QGemm": Operator((0, 3), integer=True),
    "ConvInteger": Operator((1,), integer=True),
    "QLinearConv": Operator((3,), integer=True),
    "QAttention": Operator((1,), integer=True),
}

_LOW = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
_FLOAT = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}

Inside = tuple[tuple[ir.Node, str], ...]
"""The nodes in whose bodies something is, outermost first, each with the attribute that holds the body."""


@dataclass(frozen=True)
class Constant:
    """What does not depend on the request.

    roots: the initializers it is made of. unpacked: whether their type was changed on the way, as by DequantizeLinear.
    """

    roots: tuple[ir.Value, ...]
    unpacked: bool = False

    @property
    def elements(self) -> int:
        return sum(_size(root) for root in self.roots)

    @property
    def low(self) -> bool:
        """Whether it is stored in at most eight bits."""
        return all(root.dtype in _LOW for root in self.roots)


@dataclass(frozen=True)
class Weighted:
    """A node that works with weights, and these by their position among its inputs."""

    node: ir.Node
    inside: Inside
    weights: dict[int, Constant]

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def stored_low(self) -> bool:
        """Whether all its weights are stored in at most eight bits."""
        return all(weight.low for weight in self.weights.values())

    @property
    def stays_low(self) -> bool:
        """Whether they stay so in memory, instead of being written out in fp32 again when the model is loaded."""
        return self.stored_low and not any(weight.unpacked for weight in self.weights.values())

    @property
    def multiplies_low(self) -> bool:
        """Whether it multiplies eight bits by eight bits."""
        if self.node.op_type == "MatMulNBits":
            return _attribute(self.node, "accuracy_level", 0) == 4
        return OPERATORS[self.node.op_type].integer

    @property
    def sizes(self) -> dict[ir.Value, int]:
        """Number of weights in each initializer; those that are packed in bytes count as what they stand for."""
        if self.node.op_type == "MatMulNBits":
            (packed,) = self.weights.values()
            return {packed.roots[0]: _attribute(self.node, "K", 0) * _attribute(self.node, "N", 0)}
        return {root: _size(root) for weight in self.weights.values() for root in weight.roots}


def walk(graph: ir.Graph, inside: Inside = ()) -> Iterator[tuple[ir.Node, Inside]]:
    """Every node and where it is; a node comes before those in its bodies."""
    for node in graph:
        yield node, inside
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from walk(attribute.as_graph(), (*inside, (node, name)))


def weighted_nodes(model: ir.Model) -> list[Weighted]:
    """All nodes that work with weights, in bodies too, in graph order."""
    known: dict[ir.Value, Constant] = {}
    found = []
    for node, inside in walk(model.graph):
        parts = [known.get(value) or _initial(value) if value is not None else None for value in node.inputs]
        dynamic = any(value is not None and part is None for value, part in zip(node.inputs, parts, strict=True))
        if not dynamic:
            known |= {output: part for output in node.outputs if (part := _combined(node, parts)) is not None}
        elif node.op_type in OPERATORS:
            weights = {at: part for at in OPERATORS[node.op_type].weights if at < len(parts) and (part := parts[at])}
            if weights and all(_is_weight(node, part) for part in weights.values()):
                found.append(Weighted(node, inside, weights))
    return found


def _initial(value: ir.Value) -> Constant | None:
    """An initializer, or what a Constant node gives."""
    return None if ir.convenience.get_const_tensor(value, propagate_shape_type=True) is None else Constant((value,))


def _combined(node: ir.Node, parts: list[Constant | None]) -> Constant | None:
    """What the outputs of a node are made of whose inputs are all constants."""
    given = [part for part in parts if part is not None]
    if not given or any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return None
    if node.op_type == "Concat":
        return Constant(tuple({root: None for part in given for root in part.roots}), given[0].unpacked)
    largest = max(given, key=lambda part: part.elements)  # the others are shapes, axes, scales and the like
    return Constant(largest.roots, largest.unpacked or node.op_type in ("DequantizeLinear", "Cast"))


def _is_weight(node: ir.Node, part: Constant) -> bool:
    """Whether its type and shape are a weight's: not an index, and not a few constants to choose from."""
    arithmetic = all(root.dtype in _LOW | _FLOAT for root in part.roots)
    rows = all(root.shape is not None and len(root.shape) > 1 and root.shape[-1] != 1 for root in part.roots)
    table = rows and part.elements >= SMALL_TABLE  # a column is scales
    return arithmetic and (node.op_type != "Gather" or table)


def _size(root: ir.Value) -> int:
    assert root.shape is not None
    return prod(root.shape.numpy())


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
