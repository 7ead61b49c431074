"""Multiply a table of positions by weights once, at build time.

    Slice(C, rows) W + b  =  Slice(C W + b, rows)            C constant, the axis of the slice not the last

as relative positions do: the projection of 2 * time - 1 rows at every request becomes a table. Done where the table
does not grow by it. Parity: float rounding, 1e-6 relative to answers of size 1.
"""

from __future__ import annotations

import onnx_ir as ir

from optimize.fuse.editing import constant_operand, is_op, is_private, rewrite
from optimize.rewriting import Replacement, constant


@rewrite
def fold_tables(model: ir.Model) -> int:
    """Returns how many products and sums went into tables."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type in ("MatMul", "Add") and node.domain == ""]
    return sum(_fold(node) for node in nodes)


def _fold(node: ir.Node) -> int:
    operands = constant_operand(node)
    cut = operands[0] if operands is not None else None
    rows = cut.producer() if cut is not None and is_op(cut, "Slice") and is_private(cut) else None
    if operands is None or rows is None or (node.op_type == "MatMul" and operands[0] is not node.inputs[0]):
        return 0
    table, other = constant(rows.inputs[0]), constant(operands[1])
    axes = constant(rows.inputs[3]) if len(rows.inputs) > 3 else None
    if table is None or other is None or axes is None or any(axis % table.ndim == table.ndim - 1 for axis in axes):
        return 0
    if other.ndim != (2 if node.op_type == "MatMul" else 1):
        return 0
    result = table @ other if node.op_type == "MatMul" else table + other
    if result.size > table.size or (node.op_type == "Add" and result.shape != table.shape):
        return 0
    new = Replacement(node)
    new.finish(new.op("Slice", new.constant("table", result.astype(table.dtype)), *rows.inputs[1:]))
    return 1
