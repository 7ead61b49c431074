"""Shapes that follow from the names of the axes, as constants instead of being computed at every request.

    Reshape(x, Concat(Shape(x)[0], Shape(x)[1], 4, 64))  =  Reshape(x, [0, 0, 4, 64])     0: as in x, -1: what is left
    Shape(x)[2]                                          =  256                           where that axis is static

The sizes come from ``axis_sizes``: "4*batch" is known to be four times "batch". They stay in the model as the shapes
of its values, where the passes that follow read them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from optimize.fuse.axis_sizes import with_axis_sizes
from optimize.fuse.editing import attribute, is_op, rewrite
from optimize.fuse.sizes import reshape_target, sizes_of
from optimize.rewriting import Replacement, constant


def static_shapes(model: ModelProto) -> tuple[ModelProto, int]:
    """Returns a copy with inferred shapes written in, and how many shapes and sizes became constants."""
    return _to_constants(with_axis_sizes(model))


@rewrite
def _to_constants(model: ir.Model) -> int:
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.domain == "" and node.op_type == "Reshape":
            count += _constant_target(node)
        elif node.domain == "" and node.op_type in ("Gather", "Slice") and is_op(node.inputs[0], "Shape"):
            count += _constant_size(node)
    return count


def _constant_target(node: ir.Node) -> int:
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    if constant(node.inputs[1]) is not None or before is None or after is None:
        return 0
    target = reshape_target(before, after)
    if target is None:
        return 0
    node.attributes.pop("allowzero", None)
    new = Replacement(node)
    node.replace_input_with(1, new.constant("shape", np.array(target, np.int64)))
    return 1


def _constant_size(node: ir.Node) -> int:
    """Index a row of placeholders, -1 for what only the request tells; done when no such is picked."""
    shape = node.inputs[0]
    assert shape is not None
    producer = shape.producer()
    operands = [constant(value) for value in node.inputs[1:]]
    assert producer is not None
    known = sizes_of(producer.inputs[0])
    partial = "end" in producer.attributes or attribute(producer, "start", 0)
    if known is None or partial or any(operand is None for operand in operands):
        return 0
    row = np.array([-1 if each.symbols else each.coefficient for each in known], np.int64)
    if node.op_type == "Gather":
        picked = row[operands[0]]
    else:
        start, stop = (int(operand.item()) for operand in operands[:2] if operand is not None)
        step = int(operands[3].item()) if len(operands) > 3 and operands[3] is not None else 1
        picked = row[slice(start, stop, step)] if step > 0 else np.array([-1])
    if np.any(picked < 0):
        return 0
    if node.outputs[0].is_graph_output():  # a constant cannot take an output's name
        return 0
    new = Replacement(node)
    ir.convenience.replace_all_uses_with(node.outputs[0], new.constant("static", np.array(picked, np.int64)))
    return 1
