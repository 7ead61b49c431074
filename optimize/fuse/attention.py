"""Fuse scaled dot-product attention into one operator, its projections included where they have one input.

    heads(y) = Transpose(Reshape(y, [0, 0, h, d]), 0 2 1 3)                                (batch, h, time, d)
    unheads(Softmax(scale * heads(q) heads(k)^T + mask) heads(v)) = attention(q, k, v, mask)

    q, k, v = x Wq + bq, x Wk + bk, x Wv + bv:    com.microsoft.Attention(x, [Wq Wk Wv], [bq bk bv], keep, bias)
    any others, and no mask:                      com.microsoft.MultiHeadAttention(q, k, v)

since [x Wq, x Wk, x Wv] = x [Wq Wk Wv]. A mask of keys, (batch, time) and true for padding, written as
Where(padding, c, scores) or as scores + Where(padding, c, 0), becomes ``keep`` = not padding and mask_filter_value c;
any other (batch, 1 or h, time, time) that is added becomes ``bias``. Where a mask is written over the scores, a row
whose keys are all masked averages differently: its answer means nothing in either form.

Only where q, k and v arrive as (batch, time, h*d), so that the operator takes over the transposes: rotary positions,
relative positions that are not added, and the like stay. Milliseconds, one thread, 64 tokens, 4 heads of 64, before
and after (ONNX Runtime 1.31; 1.19 gains more):

    batch                          1                 8
    Attention                      .146 -> .133      1.34 -> 1.28
    Attention, keys masked         .179 -> .163      1.47 -> 1.42
    Attention, bias                .179 -> .168      1.47 -> 1.43
    MultiHeadAttention alone       .041 -> .038      .282 -> .264
    MultiHeadAttention, masked     .046 -> .048      .309 -> .328      so this one is not done

Merging the three products without the rest is slower (.146 -> .148, 1.34 -> 1.40): Split copies. So there is no pass
for that alone. Parity: 1e-6.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.fuse.editing import attribute, constant_operand, is_op, is_private, number, only_user, rewrite
from optimize.fuse.rearrangement import Rearrangement, chain_above, emit, is_rearrangement, of_chain
from optimize.fuse.rnn_state import is_zero
from optimize.fuse.sizes import ONE, Size, dimension, product, sizes_of
from optimize.rewriting import CONTRIB, Replacement, constant

_HUGE = -1000.0  # masks of this and below leave nothing after softmax


class _Mask(NamedTuple):
    """What hides keys: ``padding`` true where ``hidden`` says so, with its ``fill``; or an added ``bias``."""

    padding: ir.Value | None = None
    hidden: bool = True
    fill: float = 0.0
    bias: ir.Value | None = None


class _Projection(NamedTuple):
    """x W + b."""

    source: ir.Value
    weight: NDArray[Any]
    bias: NDArray[Any]
    name: str


@rewrite
def fuse_attention(model: ir.Model) -> int:
    """Returns how many attentions were fused."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Softmax" and node.domain == ""]
    return sum(_fuse(node) for node in nodes)


def _fuse(softmax: ir.Node) -> int:
    weights, shape = softmax.outputs[0], sizes_of(softmax.outputs[0])
    last = only_user(weights)
    if shape is None or len(shape) != 4 or shape[1].symbols or attribute(softmax, "axis", -1) not in (-1, 3):
        return 0
    if last is None or last.op_type != "MatMul" or last.domain != "" or last.inputs[0] is not weights:
        return 0
    unmasked, mask = _unmasked(softmax.inputs[0], shape)
    scores, scale = _unscaled(unmasked)
    matmul = scores.producer() if scores is not None and is_op(scores, "MatMul") and is_private(scores) else None
    if matmul is None or mask is None:
        return 0
    queries, query_scale = _unscaled(matmul.inputs[0])
    keys, key_scale = _unscaled(matmul.inputs[1])
    q, k, v = _as_rows(queries, (0, 2, 1, 3)), _as_rows(keys, (0, 3, 1, 2)), _as_rows(last.inputs[1], (0, 2, 1, 3))
    answer = sizes_of(last.outputs[0])
    if q is None or k is None or v is None or answer is None or answer[0] != shape[0]:
        return 0
    projections = [each for each in map(_projection, (q, k, v)) if each is not None]
    together = len(projections) == 3 and len({each.source for each in projections}) == 1
    if not together and mask != _Mask():
        return 0
    new = Replacement(last)
    attributes = {"num_heads": shape[1].coefficient, "scale": scale * query_scale * key_scale}
    if together:
        rows = _attention(new, projections, mask, attributes)
    else:
        rows = new.op("MultiHeadAttention", q, k, v, domain=CONTRIB, **attributes)
    new.finish(_heads(new, rows, answer, weights.dtype))
    return 1


def _attention(new: Replacement, projections: list[_Projection], mask: _Mask, attributes: dict[str, Any]) -> ir.Value:
    """com.microsoft.Attention under the name of the product that it contains."""
    keep = bias = None
    if mask.padding is not None:
        kept = new.op("Not", mask.padding) if mask.hidden else mask.padding
        keep = new.op("Cast", kept, to=ir.DataType.INT32.value)
        attributes = attributes | {"mask_filter_value": mask.fill}
    elif mask.bias is not None:
        bias = mask.bias
        if (sizes_of(bias) or [])[1] == ONE:
            heads = np.array([1, attributes["num_heads"], 1, 1], np.int64)
            bias = new.op("Expand", bias, new.constant("heads", heads))
    weight = new.constant("weight", np.concatenate([each.weight for each in projections], axis=1))
    offset = new.constant("bias", np.concatenate([each.bias for each in projections]))
    inputs = [projections[0].source, weight, offset, keep, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    rows = new.op("Attention", *inputs, domain=CONTRIB, **attributes)
    node = rows.producer()
    assert node is not None
    node.name = projections[0].name
    return rows


def _heads(new: Replacement, rows: ir.Value, answer: list[Size], dtype: ir.DataType | None) -> ir.Value:
    """Back to (batch, heads, time, width), from which the graph goes on; mostly that cancels afterwards."""
    batch, heads, time, width = answer
    whole = Rearrangement([batch, time, product([heads, width])])
    assert whole.reshape([batch, time, heads, width])
    rows.shape = ir.Shape([dimension(each) for each in whole.shape(whole.source)])
    if dtype is not None:
        rows.dtype = dtype
    whole.result = [whole.result[axis] for axis in (0, 2, 1, 3)]
    steps = whole.steps()
    assert steps is not None
    return emit(new, rows, steps)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """``value`` without the constant factors applied to it last, and their product."""
    scale = 1.0
    while value is not None and is_op(value, "Mul", "Div") and is_private(value):
        node = value.producer()
        operands = constant_operand(node) if node is not None else None
        factor = number(operands[1]) if operands is not None else None
        if node is None or operands is None or factor is None:
            break
        if node.op_type == "Div" and operands[0] is not node.inputs[0]:
            break
        scale *= factor if node.op_type == "Mul" else 1 / factor
        value = operands[0]
    return value, scale


def _unmasked(value: ir.Value | None, shape: list[Size]) -> tuple[ir.Value | None, _Mask | None]:
    """The scores before the mask, and the mask; None for one that cannot be said to the operator."""
    node = value.producer() if value is not None and is_op(value, "Add", "Where") and is_private(value) else None
    if node is None or value is None:
        return value, _Mask()
    if node.op_type == "Where":
        padding, fill = _padding(node.inputs[0], shape), number(node.inputs[1])
        known = padding is not None and fill is not None and fill <= _HUGE
        return node.inputs[2], _Mask(padding, True, fill or 0.0) if known else None
    for scores, mask in (node.inputs, node.inputs[::-1]):
        unscaled, _ = _unscaled(scores)
        if mask is None or not is_op(unscaled, "MatMul"):
            continue
        if (hiding := _added(mask, shape)) is not None:
            return scores, hiding
        sizes = sizes_of(mask)
        if sizes in ([shape[0], ONE, *shape[2:]], shape):
            return scores, _Mask(bias=mask)
    return value, None


def _added(mask: ir.Value, shape: list[Size]) -> _Mask | None:
    """Where(padding, c, 0) or Where(keep, 0, c), turned to (batch, 1 or heads, 1, time) before or after."""
    value: ir.Value | None = mask
    while value is not None and not is_op(value, "Where"):
        value = _looser(value)
    node = value.producer() if value is not None else None
    if node is None or value is None or _flat(mask, value, shape) is None:
        return None
    condition, chosen, other = node.inputs
    padding = _padding(condition, shape)
    for hidden, fill, zero in ((True, number(chosen), other), (False, number(other), chosen)):
        if padding is not None and fill is not None and fill <= _HUGE and is_zero(zero):
            return _Mask(padding, hidden, fill)
    return None


def _padding(value: ir.Value | None, shape: list[Size]) -> ir.Value | None:
    """The (batch, time) of which ``value`` is the same as (batch, 1 or heads, 1, time), or itself."""
    source = value
    while source is not None and len(sizes_of(source) or ()) != 2:
        source = _looser(source)
    return _flat(value, source, shape) if source is not None and value is not None else None


def _flat(value: ir.Value | None, source: ir.Value, shape: list[Size]) -> ir.Value | None:
    """``source`` when it holds one number for each item and key and ``value`` the same ones, for any head and query."""
    batch, heads, _, keys = shape
    whole = ([batch, keys], [batch, ONE, ONE, keys], [batch, heads, ONE, keys])
    inner = [size for size in sizes_of(source) or () if size != ONE]
    return source if sizes_of(value) in whole and inner == [batch, keys] else None


def _looser(value: ir.Value) -> ir.Value | None:
    """The input of a node that keeps the order of all numbers, or repeats them for every head."""
    node = value.producer()
    if node is None or node.domain != "" or not node.inputs:
        return None
    repeats = node.op_type == "Expand" and len(sizes_of(node.inputs[0]) or ()) == len(sizes_of(value) or ())
    keeps = is_rearrangement(node) and node.op_type != "Transpose"
    return node.inputs[0] if keeps or repeats else None


def _as_rows(value: ir.Value | None, perm: tuple[int, ...]) -> ir.Value | None:
    """The (batch, time, heads * width) of which ``value`` is the heads, (batch, time, heads, width) after ``perm``."""
    chain = chain_above(value)
    for start in range(len(chain)):
        whole = of_chain(chain[start:])
        if whole is None or len(whole.result) != 4:
            continue
        batch, time, heads, width = (whole.result[axis] for axis in perm)
        if whole.source == [batch, time, heads + width]:
            return chain[start].inputs[0]
    return None


def _projection(value: ir.Value) -> _Projection | None:
    """``value`` as x W + b, or as one of the equal parts of that."""
    parts, index = 1, 0
    if not is_private(value):
        return None
    if is_op(value, "Split"):
        node = value.producer()
        assert node is not None
        packed, last = node.inputs[0], (-1, len(value.shape or ()) - 1)
        equal = all(sizes_of(each) == sizes_of(value) for each in node.outputs)
        if packed is None or attribute(node, "axis", 0) not in last or not equal or not is_private(packed):
            return None
        parts, index, value = len(node.outputs), list(node.outputs).index(value), packed
    offset = None
    if is_op(value, "Add"):
        node = value.producer()
        operands = constant_operand(node) if node is not None else None
        if operands is None or not is_private(operands[0]):
            return None
        value, offset = operands[0], constant(operands[1])
    node = value.producer() if is_op(value, "MatMul") else None
    weight = constant(node.inputs[1]) if node is not None else None
    if node is None or weight is None or node.inputs[0] is None or weight.ndim != 2 or len(value.shape or ()) != 3:
        return None
    if offset is None:
        offset = np.zeros(weight.shape[1], weight.dtype)
    if offset.shape != weight.shape[1:]:
        return None
    columns = slice(weight.shape[1] // parts * index, weight.shape[1] // parts * (index + 1))
    return _Projection(node.inputs[0], weight[:, columns], offset[columns], node.name or "")
