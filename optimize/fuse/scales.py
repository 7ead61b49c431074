"""Fold a constant factor into the weights that its operand was made of.

    c (x W + b)          =  x (c W) + c b          c: one number, or one for each column
    c (a B^T + d E^T)    =  a (c B)^T + d (c E)^T   and so on upwards, where c is one number

as in half-step feed-forward blocks (c = 1/2) and attention scores (c = 1 / sqrt(width)). The factor travels up through
Add, Sub, Neg, and what only moves numbers, and through one operand of a product, until weights take it; only where
every value on the way has one reader, and every branch of an Add takes it. A power of two changes no bit; any other
factor rounds weights once more: 1e-6 relative to answers of size 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from optimize.fuse.editing import bypass, constant_operand, is_private, number, rewrite
from optimize.rewriting import Replacement, constant

Edit = Callable[[], None]
_MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Neg", "Identity")


@rewrite
def fold_scales(model: ir.Model) -> int:
    """Returns how many factors were folded."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.domain != "" or node.op_type not in ("Mul", "Div"):
            continue
        operands = constant_operand(node)
        factor = constant(operands[1]) if operands is not None else None
        if operands is None or factor is None or factor.dtype.kind != "f":
            continue
        if factor.size != 1 and factor.ndim != 1:
            continue
        if node.op_type == "Div":
            if operands[0] is not node.inputs[0]:
                continue
            factor = 1 / factor
        edits = _into(operands[0], factor.reshape(()) if factor.size == 1 else factor)
        if edits is None:
            continue
        for edit in edits:
            edit()
        bypass(node, operands[0])
        count += 1
    return count


def _into(value: ir.Value | None, factor: NDArray[Any]) -> list[Edit] | None:
    """What to do so that ``value`` comes out multiplied by ``factor``; None where nothing takes it."""
    node = value.producer() if value is not None and is_private(value) else None
    if value is None or node is None or node.domain != "":
        return None
    if node.op_type in ("Add", "Sub"):
        branches = [_scaled(node, at, factor) or _into(node.inputs[at], factor) for at in (0, 1)]
        return None if None in branches else [edit for branch in branches for edit in branch or []]
    if node.op_type == "MatMul":
        taken = _scaled(node, 1, factor)
        if taken is None and factor.ndim == 0:
            taken = _into(node.inputs[0], factor) or _into(node.inputs[1], factor)
        return taken
    if node.op_type in _MOVING or (node.op_type == "Pad" and _pads_zeros(node)):
        return _into(node.inputs[0], factor) if factor.ndim == 0 else None
    if node.op_type in ("Gemm", "Conv") and factor.ndim == 0:
        parts = [_scaled(node, at, factor) for at in range(1, len(node.inputs))]
        return None if None in parts else [edit for part in parts for edit in part or []]
    return None


def _scaled(node: ir.Node, at: int, factor: NDArray[Any]) -> list[Edit] | None:
    """Multiply the constant input number ``at``; None when it is no constant, or others read it."""
    value = node.inputs[at]
    array = constant(value)
    if value is None or array is None or len(value.uses()) != 1 or array.dtype.kind != "f":
        return None
    if factor.ndim and (array.ndim == 0 or array.shape[-1] != factor.size):
        return None

    def edit() -> None:
        scaled = Replacement(node).constant(f"scaled_{at}", (array * factor).astype(array.dtype))
        node.replace_input_with(at, scaled)

    return [edit]


def _pads_zeros(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    return (mode is None or mode.as_string() == "constant") and (fill is None or number(fill) == 0)
