"""A product with trained weights, y = x W + b, in eight bits: three ways to scale the activations.

    W[k, n] = q_W[k, n] s_W[n]          int8, symmetric, a scale for each output channel
    x[m, k] = (q_x[m, k] - z) s_x       uint8
    y[m, n] = s_x s_W[n] sum_k (q_x[m, k] - z) q_W[k, n] + b[n]

The ways differ in where s_x and z come from:

    dynamic   DynamicQuantizeMatMul                           the range of the whole tensor that has just arrived
    static    QuantizeLinear, MatMulIntegerToFloat            the range on calibration data
    per_row   s_x[m] = max_k |x[m, k]| / 127, z = 128, from plain operators around MatMulIntegerToFloat

All but ``dynamic`` are invariant to the bit: integer sums are exact, and what surrounds them works element by element
or row by row. Activations are uint8 because ONNX Runtime has no fast x86 kernel for two signed operands (8 to 40
times slower, measured). Nodes that quantise the same activation are written for each product and merged at load. What
is not a number does not survive quantisation, and neighbours are not affected by it.

Weights per channel: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018), 2.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.quantize.method import QuantizationError, Ranges
from optimize.rewriting import CONTRIB, Replacement

MAX_INPUTS = (2**31 - 1) // (255 * 127)  # more terms than this could overflow the 32-bit sum

_ZERO = np.uint8(128)  # uint8 for 0.0 in a symmetric range
_STEP = np.float32(1 / 127)
_SMALLEST_ROW = np.finfo(np.float32).tiny  # divides a row of zeros, which stay zeros


@dataclass(frozen=True)
class Product:
    """y = x W + b. x: (..., inputs); weights: (inputs, outputs); bias: (outputs,) or None.

    observed: name of the tensor whose range is x's: x itself, or what x was transposed from.
    """

    x: ir.Value
    weights: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    observed: str


Way = Callable[[Replacement, Product, Ranges], ir.Value]


def symmetric(weights: NDArray[Any], axis: int | tuple[int, ...]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 with one scale for all weights along ``axis``: W = q s, q in [-127, 127].

    Returns q of the same shape, and s without those axes; weights that are all zeros get s = 1.
    """
    largest = np.abs(weights).max(axis=axis, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weights / scales).clip(-127, 127).astype(np.int8), scales.squeeze(axis)


def per_channel(weights: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 of (..., inputs, outputs) with a scale for each output channel, (..., outputs)."""
    return symmetric(weights, -2)


def refuses_weights(weights: NDArray[Any] | None) -> str:
    """Why an operator's weights cannot be quantised, or ""; None stands for weights that are no constant."""
    if weights is None:
        return "its weights are no constant"
    if weights.dtype != np.float32:
        return f"its weights are {weights.dtype}, only float32 is quantised"
    return "" if weights.size and np.isfinite(weights).all() else "its weights are empty or not finite"


def refuses_inputs(inputs: int) -> str:
    """Why a product over that many inputs cannot be quantised, or ""."""
    return f"{inputs} inputs could overflow the 32-bit sum, {MAX_INPUTS} are the most" if inputs > MAX_INPUTS else ""


def affine(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point such that uint8 covers [low, high] and 0.0 has a code of its own."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255 or 1)
    return scale, np.uint8(np.rint(-low / scale).clip(0, 255))


def calibrated_scale(new: Replacement, observed: str, ranges: Ranges) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of an activation as constants; raises QuantizationError when it was not observed."""
    if observed not in ranges:
        name = new.node.name
        raise QuantizationError(f"'{name}': its activation '{observed}' has no calibrated range; observe it first")
    scale, zero_point = affine(*ranges[observed])
    return new.shared(f"{observed}/scale", scale), new.shared(f"{observed}/zero_point", zero_point)


def dynamic(new: Replacement, product: Product, ranges: Ranges) -> ir.Value:
    """One activation scale for the tensor that has just arrived."""
    weights, scales, bias = _constants(new, product)
    return new.op("DynamicQuantizeMatMul", product.x, weights, scales, None, bias, domain=CONTRIB)


def static(new: Replacement, product: Product, ranges: Ranges) -> ir.Value:
    """A calibrated activation scale; what leaves the calibrated range is clipped.

    Raises QuantizationError when ``ranges`` lacks the activation.
    """
    step, zero = calibrated_scale(new, product.observed, ranges)
    weights, scales, bias = _constants(new, product)
    quantized = new.op("QuantizeLinear", product.x, step, zero)
    return new.op("MatMulIntegerToFloat", quantized, weights, step, scales, zero, None, bias, domain=CONTRIB)


def per_row(new: Replacement, product: Product, ranges: Ranges) -> ir.Value:
    """An activation scale for each row."""
    largest = row_maximum(new, product.x)
    step, zero = new.constant("step", _STEP), new.shared(f"{new.graph.name}/uint8_zero", _ZERO)
    weights, scales, bias = _constants(new, product)
    scaled = new.op("Mul", product.x, new.op("Reciprocal", largest))  # to [-1, 1]; dividing takes longer
    quantized = new.op("QuantizeLinear", scaled, step, zero)
    result = new.op("MatMulIntegerToFloat", quantized, weights, step, scales, zero, domain=CONTRIB)
    result = new.op("Mul", result, largest)
    return result if bias is None else new.op("Add", result, bias)


def row_maximum(new: Replacement, x: ir.Value) -> ir.Value:
    """The largest magnitude of each row, (..., 1), above 0 so that it divides a row of zeros too."""
    absolute = new.op("Abs", x)
    if new.opset < 18:  # where axes became an input
        largest = new.op("ReduceMax", absolute, axes=[-1], keepdims=1)
    else:
        largest = new.op("ReduceMax", absolute, new.constant("last_axis", np.array([-1])), keepdims=1)
    return new.op("Max", largest, new.constant("smallest_row", _SMALLEST_ROW))


def _constants(new: Replacement, product: Product) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    quantized, scales = per_channel(product.weights)
    bias = None if product.bias is None else new.constant("bias", product.bias)
    return new.constant("weights_int8", quantized), new.constant("weights_scale", scales), bias
