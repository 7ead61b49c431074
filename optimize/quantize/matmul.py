"""MatMul, Gemm and the pointwise Conv: products with trained weights, quantised in any way of ``product``.

MatMul  x W            and the Add of a constant bias, when nothing else uses the product
Gemm    x W + c        or x W^T + c
Conv    kernel 1:      Transpose, x W + b, Transpose; the rows are the positions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.quantize.method import Method, Ranges
from optimize.quantize.product import Product, Way, dynamic, per_row, refuses_inputs, refuses_weights, static
from optimize.rewriting import Replacement, constant, in_branch


def methods(name: str, way: Way, *, invariant: bool = True, calibrated: bool = False) -> list[Method]:
    """A way to compute products, for each operator that is one."""
    return [_method(name, way, operator, invariant, calibrated) for operator in _OPERATORS]


def _method(name: str, way: Way, operator: str, invariant: bool, calibrated: bool) -> Method:
    refuses, rewrite = _OPERATORS[operator]

    def reason(node: ir.Node) -> str:
        if calibrated and in_branch(_input(node)):
            return "its activation lives inside a branch, where calibration may never see it; use per_row"
        return refuses(node)

    return Method(
        name,
        operator,
        invariant,
        refuses=reason,
        rewrite=lambda node, ranges: rewrite(node, way, ranges),
        calibrated=lambda node: [str(_input(node).name)] if calibrated else [],
    )


def _rewrite_matmul(node: ir.Node, way: Way, ranges: Ranges) -> None:
    """y = x W, and with it the Add of a bias when nothing else uses the product."""
    x, weights = _input(node), _array(node, 1)
    add = _bias_add(node)
    new = Replacement(node)
    if add is None:
        new.finish(way(new, Product(x, weights, None, str(x.name)), ranges))
        return
    bias = _array(add, 0) if constant(add.inputs[1]) is None else _array(add, 1)
    Replacement(add).finish(way(new, Product(x, weights, bias, str(x.name)), ranges))
    new.graph.remove(node, safe=True)


def _rewrite_gemm(node: ir.Node, way: Way, ranges: Ranges) -> None:
    """y = x W + c, or x W^T + c."""
    x, weights = _input(node), _array(node, 1)
    weights = weights.T if _integer(node, "transB", 0) else weights
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = np.broadcast_to(_array(node, 2).reshape(-1), weights.shape[1:])
    new = Replacement(node)
    new.finish(way(new, Product(x, weights, bias, str(x.name)), ranges))


def _rewrite_conv(node: ir.Node, way: Way, ranges: Ranges) -> None:
    """(batch, channels, *positions): each position is a row of the product."""
    x, weights = _input(node), _array(node, 1)
    last = weights.ndim - 1
    bias = _array(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    new = Replacement(node)
    rows = new.op("Transpose", x, perm=[0, *range(2, last + 1), 1])
    matrix = weights.reshape(weights.shape[:2]).T
    result = way(new, Product(rows, matrix, bias, str(x.name)), ranges)
    new.finish(new.op("Transpose", result, perm=[0, last, *range(1, last)]))


def _refuses_matmul(node: ir.Node) -> str:
    reason = refuses_weights(constant(node.inputs[1]))
    if not reason and _array(node, 1).ndim != 2:
        return f"its weights have rank {_array(node, 1).ndim}, only (inputs, outputs) is quantised"
    return reason or refuses_inputs(_array(node, 1).shape[0])


def _refuses_gemm(node: ir.Node) -> str:
    if reason := refuses_weights(constant(node.inputs[1])):
        return reason
    if _integer(node, "transA", 0):
        return "it transposes its activation (transA), so rows are not rows of the batch"
    if any(node.attributes[name].as_float() != 1 for name in ("alpha", "beta") if name in node.attributes):
        return "alpha or beta is not 1"
    inputs, outputs = _array(node, 1).shape[:: -1 if _integer(node, "transB", 0) else 1]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant(node.inputs[2])
        if bias is None or bias.size not in (1, outputs) or bias.shape[-1:] not in ((), (bias.size,)):
            return "its third operand is no constant with one value for each output"
    return refuses_inputs(inputs)


def _refuses_conv(node: ir.Node) -> str:
    if reason := refuses_weights(constant(node.inputs[1])):
        return reason
    weights = _array(node, 1)
    if _integer(node, "group", 1) != 1:
        return "depthwise or grouped: left alone, ConvInteger is slower"
    if weights.shape[2:] != (1,) * (weights.ndim - 2):
        return (
            f"its kernel is {weights.shape[2:]}, only a pointwise one is a product; left alone, ConvInteger is slower"
        )
    if any(step != 1 for step in _integers(node, "strides")) or any(_integers(node, "pads")):
        return "it has strides or padding"
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return "its bias is no constant"
    return refuses_inputs(weights.shape[1])


def _bias_add(node: ir.Node) -> ir.Node | None:
    """The Add of a constant (outputs,) that alone uses a MatMul, if there is one."""
    users = list(node.outputs[0].uses())
    if len(users) != 1 or node.outputs[0].is_graph_output():
        return None
    add, position = users[0]
    if add.op_type != "Add" or add.domain or add.graph is not node.graph:
        return None
    bias = constant(add.inputs[1 - position])
    return add if bias is not None and bias.shape == _array(node, 1).shape[1:] else None


def _input(node: ir.Node) -> ir.Value:
    assert node.inputs[0] is not None
    return node.inputs[0]


def _array(node: ir.Node, position: int) -> NDArray[Any]:
    array = constant(node.inputs[position])
    assert array is not None
    return array


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _integers(node: ir.Node, name: str) -> Sequence[int]:
    return node.attributes[name].as_ints() if name in node.attributes else ()


_OPERATORS: dict[str, tuple[Callable[[ir.Node], str], Callable[[ir.Node, Way, Ranges], None]]] = {
    "MatMul": (_refuses_matmul, _rewrite_matmul),
    "Gemm": (_refuses_gemm, _rewrite_gemm),
    "Conv": (_refuses_conv, _rewrite_conv),
}

METHODS: list[Method] = [
    *methods("dynamic", dynamic, invariant=False),
    *methods("static", static, calibrated=True),
    *methods("per_row", per_row),
]
