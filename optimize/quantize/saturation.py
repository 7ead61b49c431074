"""What a CPU without VNNI makes of int8 weights, computed here, so that any machine can tell.

Such a CPU multiplies unsigned activations a by signed weights w in pairs (the instruction vpmaddubsw) and keeps the sum
of each pair in 16 bits, where it saturates:

    a0 w0 + a1 w1   at most 32767   but up to 255 * 127 * 2 = 64770

ONNX Runtime's AVX2 and AVX-512 kernels use it on neighbours along the inner axis (rows 2i and 2i + 1). Weights of seven
bits never saturate (255 * 64 * 2 = 32640), nor do unsigned weights, whose kernel is another. With VNNI, or on ARM, the
sums have 32 bits. ONNX Runtime's own remedies: ``reduce_range`` in onnxruntime.quantization (seven bits), and the
session option ``session.x64quantprecision``, which turns int8 weights into unsigned ones at load and is slower.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto

from optimize.benchmark import session
from optimize.data.dataset import Arrays
from optimize.quantize.exposure import expose
from optimize.quantize.weights import Weighted, walk
from optimize.rewriting import constant, read

_SUMS_IN_32_BITS = {"avx_vnni", "avx512_vnni", "amx_int8"}
_X86 = {"avx2", "avx512f"}
_ROWS = 256  # of activations, at most, that a product is emulated on

# Positions of activation, weights and the activation's zero point (None: quantised by the operator itself).
_PRODUCTS: dict[str, tuple[int, int, int | None]] = {
    "MatMulInteger": (0, 1, 2),
    "MatMulIntegerToFloat": (0, 1, 4),
    "DynamicQuantizeMatMul": (0, 1, None),
    "QLinearMatMul": (0, 3, 2),
    "QGemm": (0, 3, 2),
    "QAttention": (0, 1, 6),
}


@dataclass(frozen=True)
class Saturation:
    """possible: share of the pairs of weights that saturate under some activations. error: root mean square error of
    the product on the activations given, as a share of its own root mean square; None where there were none."""

    possible: float
    error: float | None


def saturates(isa: Collection[str]) -> bool:
    """Whether a CPU with these features (as /proc/cpuinfo names them) sums pairs in 16 bits."""
    return bool(_X86 & set(isa)) and not _SUMS_IN_32_BITS & set(isa)


def possible(weights: NDArray[np.int8]) -> float:
    """Share of the pairs that can leave 16 bits; weights (..., inputs, outputs)."""
    even, odd = _pairs(weights)
    most = 255 * (np.maximum(even, 0) + np.maximum(odd, 0))
    least = 255 * (np.minimum(even, 0) + np.minimum(odd, 0))
    return float(((most > 32767) | (least < -32768)).mean())


def product(activations: NDArray[Any], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Unsigned (rows, inputs) by signed (inputs, outputs), as a CPU without VNNI multiplies."""
    even, odd = _pairs(weights)
    first, second = _pairs(activations.T)
    total = np.zeros((len(activations), weights.shape[1]), np.int32)
    for pair in range(len(even)):
        total += np.clip(np.outer(first[pair], even[pair]) + np.outer(second[pair], odd[pair]), -32768, 32767)
    return total


def saturation(model: ModelProto, weighted: Weighted, number: int, requests: Sequence[Arrays]) -> Saturation | None:
    """What happens in one operator, or None if it has no int8 weights; number: the node's in the order of ``walk``.

    requests: what to run the model on to see activations; for convolutions, the recurrence inside an LSTM, and what is
    in a branch of an If, only the worst case is told.
    """
    if not weighted.multiplies_low or weighted.node.op_type == "MatMulNBits":
        return None
    node = weighted.node
    arrays = {at: array for at in weighted.weights if (array := constant(node.inputs[at])) is not None}
    signed = {at: array for at, array in arrays.items() if array.dtype == np.int8}
    if not signed:
        return None
    share = max(possible(_by_inputs(node, array)) for array in signed.values())
    activation, at, zero_point = _PRODUCTS.get(node.op_type, (0, -1, None))
    if at not in signed or signed[at].ndim != 2 or not share or not requests:
        return Saturation(share, None)
    values = [activation] if zero_point is None or zero_point >= len(node.inputs) else [activation, zero_point]
    seen = _observed(model, number, values, requests)
    return Saturation(share, _error(seen, _by_inputs(node, signed[at])) if seen else None)


def _pairs(rows: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Even and odd rows, an odd one out paired with zeros."""
    wide = rows.astype(np.int32)
    if wide.shape[-2] % 2:
        wide = np.concatenate([wide, np.zeros_like(wide[..., :1, :])], axis=-2)
    return wide[..., ::2, :], wide[..., 1::2, :]


def _by_inputs(node: ir.Node, weights: NDArray[Any]) -> NDArray[Any]:
    """(..., inputs, outputs); a convolution's as its kernel reads them, channels innermost."""
    if "Conv" in node.op_type:
        return np.moveaxis(weights, 1, -1).reshape(len(weights), -1).T
    return weights.T if "transB" in node.attributes and node.attributes["transB"].as_int() else weights


def _error(seen: list[list[NDArray[Any]]], weights: NDArray[Any]) -> float:
    """Relative error over all that was observed: (trips, ..., inputs) activations, zero points where not computed."""
    wrong, right = 0.0, 0.0
    for activation, *given in seen:
        rows = activation.reshape(len(activation), -1, activation.shape[-1])
        if rows.dtype.kind == "f":
            rows, zero_points = _quantized(rows)
        else:
            offset = 128 if rows.dtype == np.int8 else 0  # the kernels flip the sign of signed activations
            rows = rows.astype(np.int32) + offset
            zero_points = (given[0].astype(np.int32) if given else np.zeros(1, np.int32)) + offset
            zero_points = zero_points.reshape(len(rows) if zero_points.size > 1 else 1, -1, 1)
        centred = (rows - zero_points).reshape(-1, rows.shape[-1])
        flat = rows.reshape(centred.shape)
        some = slice(None, None, -(-len(flat) // _ROWS))
        exact = flat[some] @ weights.astype(np.int32)
        wrong += float(np.square((product(flat[some], weights) - exact).astype(float)).sum())
        right += float(np.square((centred[some] @ weights.astype(np.int32)).astype(float)).sum())
    return float(np.sqrt(wrong / right)) if right else 0.0


def _quantized(rows: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """DynamicQuantizeLinear with one scale for each trip: (trips, rows, inputs) to unsigned, and the zero points."""
    low = np.minimum(rows.min(axis=(1, 2), keepdims=True), 0)
    high = np.maximum(rows.max(axis=(1, 2), keepdims=True), 0)
    scale = np.where(high > low, (high - low) / 255, 1)
    zero_point = np.rint(-low / scale).clip(0, 255)
    return np.rint(rows / scale + zero_point).clip(0, 255).astype(np.int32), zero_point.astype(np.int32)


def _observed(
    model: ModelProto, number: int, inputs: list[int], requests: Sequence[Arrays]
) -> list[list[NDArray[Any]]] | None:
    """Some inputs of a node for each request, their trips first; None for a node in a branch."""
    opened = read(model)
    node, inside = next(place for at, place in enumerate(walk(opened.graph)) if at == number)
    shown = []
    for at in inputs:
        value = node.inputs[at]
        assert value is not None
        if (output := expose(opened.graph, value, inside)) is None:
            return None
        shown.append(output)
    names = [output.name for output, _ in shown]
    runs = session(ir.serde.serialize_model(opened).SerializeToString())
    return [
        [
            array.reshape(-1, *array.shape[trips:])
            for array, (_, trips) in zip(runs.run(names, request), shown, strict=True)
        ]
        for request in requests
    ]
