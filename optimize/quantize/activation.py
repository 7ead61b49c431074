"""An activation in eight bits, quantised once for all the products that take it.

    q = for_input(new, x)                       uint8: one QuantizeLinear, or what else the quantiser needs
    gates = product(new, q, "W", weights, bias)
    other = product(new, q, "V", ...)

The quantisers differ in where the scale comes from:

    dynamic   scale and zero point of the whole tensor that has just arrived
    static    those of its range on calibration data
    unit      those of [-1, 1]
    per_row   each row is divided by its largest magnitude, then unit, and its products multiplied back
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.quantize.method import Ranges
from optimize.quantize.product import calibrated_scale, per_channel, row_maximum
from optimize.rewriting import CONTRIB, Replacement

_UNIT_SCALE, _UNIT_ZERO = np.array(1 / 127, np.float32), np.array(128, np.uint8)
_NOTHING = 1e-30  # a channel of such weights counts as zeros, else a bias divided by its scale could overflow

Array = NDArray[np.float32]


class Quantized(NamedTuple):
    """values: uint8. scale, zero_point: scalars. rows: (..., 1), what to multiply the rows of a product by, if any."""

    values: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    rows: ir.Value | None = None


Quantizer = Callable[[Replacement, ir.Value], Quantized]


def dynamic(new: Replacement, x: ir.Value) -> Quantized:
    """The range of the tensor that has just arrived."""
    return Quantized(*new.ops(3, "DynamicQuantizeLinear", x))


def static(ranges: Ranges) -> Quantizer:
    """The range on calibration data; what leaves it is clipped. Raises QuantizationError when there is none."""

    def quantize(new: Replacement, x: ir.Value) -> Quantized:
        return _linear(new, x, *calibrated_scale(new, str(x.name), ranges))

    return quantize


def unit(new: Replacement, x: ir.Value) -> Quantized:
    """The range [-1, 1], that of a hidden state."""
    return _linear(new, x, new.constant("unit_scale", _UNIT_SCALE), new.constant("unit_zero_point", _UNIT_ZERO))


def per_row(new: Replacement, x: ir.Value) -> Quantized:
    """The range of each row."""
    largest = row_maximum(new, x)
    return unit(new, new.op("Div", x, largest))._replace(rows=largest)


def _linear(new: Replacement, x: ir.Value, scale: ir.Value, zero_point: ir.Value) -> Quantized:
    return Quantized(new.op("QuantizeLinear", x, scale, zero_point), scale, zero_point)


def product(
    new: Replacement, x: Quantized, what: str, weights: Array, bias: Array | None, few_rows: bool = False
) -> ir.Value:
    """x (..., inputs) times weights (inputs, outputs), plus bias (outputs,). what: names the constants.

    MatMulIntegerToFloat works out a multiplier for each channel at every call. For few rows, those of one step, that
    takes longer than a Mul afterwards, so the channels' scales then stand outside.
    """
    weights = np.where(np.abs(weights).max(axis=0) < _NOTHING, 0, weights)
    quantized, scales = per_channel(weights)
    int8, step = new.constant(f"{what}_int8", quantized), new.constant(f"{what}_scale", scales)
    inside, factors = (new.constant("one", np.array(1, np.float32)), [step]) if few_rows else (step, [])
    offset, late = None, None
    if bias is not None and x.rows is None:
        offset = new.constant(f"{what}_bias", bias / scales if few_rows else bias)
    elif bias is not None:
        late = new.constant(f"{what}_bias", bias)
    result = new.op("MatMulIntegerToFloat", x.values, int8, x.scale, inside, x.zero_point, None, offset, domain=CONTRIB)
    for factor in factors if x.rows is None else [*factors, x.rows]:
        result = new.op("Mul", result, factor)
    return result if late is None else new.op("Add", result, late)
