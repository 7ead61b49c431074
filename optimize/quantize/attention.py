"""com.microsoft.Attention, whose weights project the input to queries, keys and values: softmax(q k^T) v stays in fp32.

    Attention(x, W, b, mask)  =  QAttention(q(x), q(W), b, s_x, s_W, mask, z_x)                    dynamic, static
                              =  MultiHeadAttention(split(q(x) q(W) s_x s_W), b, mask, bias)       in parts

QAttention writes its heads where they are needed, which a product, a Split and MultiHeadAttention cannot: it takes
0.80 to 0.92 of their time (measured, 64 tokens, width 144 to 512) and errs the same. But it takes one activation scale
only and adds no bias to the attention, so per_row, and whatever has such a bias, is built of the three parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.quantize import product
from optimize.quantize.method import Method, Ranges
from optimize.quantize.product import (
    Product,
    calibrated_scale,
    per_channel,
    refuses_inputs,
    refuses_weights,
)
from optimize.rewriting import CONTRIB, Replacement, constant, in_branch

OPERATOR = "Attention"
_INPUTS = ("x", "weights", "bias", "mask", "past", "attention_bias", "past_sequence_length")


def _dynamic(node: ir.Node, ranges: Ranges) -> None:
    if _in_parts(node):
        return _parts(node, product.dynamic, ranges)
    new = Replacement(node)
    _q_attention(new, *new.ops(3, "DynamicQuantizeLinear", node.inputs[0]))


def _static(node: ir.Node, ranges: Ranges) -> None:
    if _in_parts(node):
        return _parts(node, product.static, ranges)
    new = Replacement(node)
    scale, zero_point = calibrated_scale(new, _observed(node), ranges)
    _q_attention(new, new.op("QuantizeLinear", node.inputs[0], scale, zero_point), scale, zero_point)


def _q_attention(new: Replacement, x: ir.Value, scale: ir.Value, zero_point: ir.Value) -> None:
    node = new.node
    weights, weights_scale = per_channel(_weights(node))
    outputs = new.ops(
        len(node.outputs),
        "QAttention",
        x,
        new.constant("weights_int8", weights),
        _input(node, "bias"),
        scale,
        new.constant("weights_scale", weights_scale),
        _input(node, "mask"),
        zero_point,
        None,
        _input(node, "past"),
        domain=CONTRIB,
        **_attributes(node),
    )
    new.finish(*outputs)


def _per_row(node: ir.Node, ranges: Ranges) -> None:
    _parts(node, product.per_row, ranges)


def _parts(node: ir.Node, way: product.Way, ranges: Ranges) -> None:
    new = Replacement(node)
    x = _input(node, "x")
    assert x is not None
    weights = _weights(node)
    projected = way(new, Product(x, weights, None, _observed(node)), ranges)
    sizes = new.constant("sizes", np.full(3, weights.shape[1] // 3))
    q, k, v = new.ops(3, "Split", projected, sizes, axis=2)
    operands = [q, k, v, _input(node, "bias"), _input(node, "mask"), _input(node, "attention_bias")]
    attributes = _attributes(node)
    attributes.pop("unidirectional", None)
    attributes.pop("do_rotary", None)
    new.finish(new.op("MultiHeadAttention", *operands, domain=CONTRIB, **attributes))


def _in_parts(node: ir.Node) -> bool:
    return _input(node, "attention_bias") is not None


def _refuses(node: ir.Node) -> str:
    weights = constant(_input(node, "weights"))
    if reason := refuses_weights(weights):
        return reason
    assert weights is not None
    if "qkv_hidden_sizes" in node.attributes:
        return "its queries, keys and values have widths of their own, which QAttention does not know"
    if _input(node, "bias") is None:
        return "it has no bias, without which ONNX Runtime crashes"
    if _input(node, "past_sequence_length") is not None:
        return "QAttention has no past_sequence_length"
    if _in_parts(node) and (reason := _refuses_parts(node)):
        return reason
    return refuses_inputs(weights.shape[0])


def _refuses_static(node: ir.Node) -> str:
    x = _input(node, "x")
    if x is not None and in_branch(x):
        return "its activation lives inside a branch, where calibration may never see it; use per_row"
    return _refuses(node)


def _refuses_per_row(node: ir.Node) -> str:
    return _refuses_parts(node) or _refuses(node)


def _refuses_parts(node: ir.Node) -> str:
    mask = _input(node, "mask")
    if mask is not None and (mask.shape is None or len(mask.shape) != 2):
        return "MultiHeadAttention takes its mask only as (batch, time)"
    if any(_attributes(node).get(name) for name in ("unidirectional", "do_rotary")) or _input(node, "past") is not None:
        return "it is causal, rotary or has a past, which MultiHeadAttention writes in another way"
    return ""


def _input(node: ir.Node, name: str) -> ir.Value | None:
    position = _INPUTS.index(name)
    return node.inputs[position] if position < len(node.inputs) else None


def _weights(node: ir.Node) -> NDArray[Any]:
    weights = constant(_input(node, "weights"))
    assert weights is not None
    return weights


def _observed(node: ir.Node) -> str:
    x = _input(node, "x")
    assert x is not None
    return str(x.name)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _method(name: str, rewrite: Callable[[ir.Node, Ranges], None], refuses: Callable[[ir.Node], str]) -> Method:
    return Method(
        name,
        OPERATOR,
        invariant=name != "dynamic",
        refuses=refuses,
        rewrite=rewrite,
        calibrated=lambda node: [_observed(node)] if name == "static" else [],
    )


METHODS: list[Method] = [
    _method("dynamic", _dynamic, _refuses),
    _method("static", _static, _refuses_static),
    _method("per_row", _per_row, _refuses_per_row),
]
