"""Fuse a layer norm that was written out.

    d = x - mean(x),  y = d / sqrt(mean(d^2) + eps) * gamma + beta   =   LayerNormalization(x, gamma, beta), last axis

The square is Pow(d, 2) or Mul(d, d). LayerNormalization is an operator from opset 17 on; below, nothing is done.
Tolerance: float rounding, 1e-6 relative to answers of size 1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimize.fuse.editing import attribute, constant_operand, is_op, number, only_user, rewrite
from optimize.rewriting import Replacement, constant


@rewrite
def fuse_layer_norm(model: ir.Model) -> int:
    """Returns how many layer norms were fused."""
    if model.opset_imports.get("", 0) < 17:
        return 0
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Div" and node.domain == ""]
    return sum(_fuse(node) for node in nodes)


def _fuse(div: ir.Node) -> int:
    """Match upwards from d / sqrt(mean(d^2) + eps), then take gamma and beta from below."""
    centred, root = div.inputs
    sub = _producer(centred, "Sub")
    variance = _producer(root, "Sqrt")
    shifted = _producer(variance.inputs[0], "Add") if variance is not None else None
    operands = constant_operand(shifted) if shifted is not None else None
    if sub is None or operands is None or root is None or centred is None:
        return 0
    epsilon, square = number(operands[1]), _mean_over_last(operands[0])
    source = sub.inputs[0]
    if (
        epsilon is None
        or source is None
        or _mean_over_last(sub.inputs[1]) is not source
        or not _is_square(square, centred)
    ):
        return 0
    used = [centred, square, operands[0], root, sub.inputs[1], shifted.outputs[0] if shifted is not None else None]
    if any(value is None or value.is_graph_output() for value in used) or not _only_inside(div, centred, root):
        return 0
    gamma, last = _vector_operand(div, "Mul")
    beta, last = _vector_operand(last, "Add") if gamma is not None else (None, last)
    new = Replacement(last)
    if gamma is None:
        width = source.shape[-1] if source.shape else None
        if not isinstance(width, int) or source.dtype is None:
            return 0
        gamma = new.constant("ones", np.ones(width, source.dtype.numpy()))
    new.finish(new.op("LayerNormalization", source, gamma, *([] if beta is None else [beta]), axis=-1, epsilon=epsilon))
    return 1


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    return value.producer() if value is not None and is_op(value, operator) else None


def _mean_over_last(value: ir.Value | None) -> ir.Value | None:
    """The x of ReduceMean(x) over the last axis, kept; None when ``value`` is something else."""
    node = _producer(value, "ReduceMean")
    if node is None or value is None or attribute(node, "keepdims", 1) != 1:
        return None
    axes = (
        node.attributes["axes"].as_ints()
        if "axes" in node.attributes
        else constant(node.inputs[1])
        if len(node.inputs) > 1
        else None
    )
    source = node.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    return source if axes is not None and [int(axis) for axis in axes] in ([-1], [rank - 1]) else None


def _is_square(value: ir.Value | None, of: ir.Value) -> bool:
    node = value.producer() if value is not None else None
    if node is None or node.inputs[0] is not of:
        return False
    return (node.op_type == "Mul" and node.inputs[1] is of) or (node.op_type == "Pow" and number(node.inputs[1]) == 2)


def _only_inside(div: ir.Node, centred: ir.Value, root: ir.Value) -> bool:
    """Whether d is read by its square and the division only, and everything between by one node."""
    inside = {div}
    value: ir.Value | None = root
    while value is not None and value is not centred:
        node = value.producer()
        if node is None or any(user.node not in inside for user in value.uses()):
            return False
        inside.add(node)
        value = next((each for each in node.inputs if each is not None and constant(each) is None), None)
    return all(user.node in inside for user in centred.uses())


def _vector_operand(node: ir.Node, operator: str) -> tuple[ir.Value | None, ir.Node]:
    """The constant vector that the only user multiplies by or adds, and that user."""
    user = only_user(node.outputs[0])
    operands = constant_operand(user) if user is not None and user.op_type == operator else None
    array = constant(operands[1]) if operands is not None else None
    shape = node.outputs[0].shape or node.inputs[0].shape if node.inputs[0] is not None else None
    width = shape[-1] if shape else None
    if (
        user is None
        or operands is None
        or array is None
        or array.ndim != 1
        or (isinstance(width, int) and array.size != width)
    ):
        return None, node
    return operands[1], user
