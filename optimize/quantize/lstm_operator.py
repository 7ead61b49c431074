"""LSTM by ONNX Runtime's own int8 operator, DynamicQuantizeLSTM: as it is, and with its activation scales pinned.

The operator takes one scale from the range of the whole input, and at every step one from the range of the hidden
states of the whole batch. That is what makes an answer depend on its company, and on where a sequence is cut. Both
ranges can be kept from moving, at the cost of two more inputs and two more hidden units:

    x'   = [clip(x, lo, hi), lo, hi]        ranges over [lo, hi], as calibrated; the new inputs' weights are 0
    h'   = [h, 1, -1]                       ranges over [-1, 1], in which every LSTM's h lies; likewise

The new units see neither x nor h: their gates are open by their biases, so that |c| grows by 1 a step and h = o tanh(c)
is as far from 0 as any unit's can be: the range is [-tanh(t), tanh(t)] after t steps from a state of zeros. A state
that is given is taken up as that of a long sequence, with h clipped to [-1, 1] and the new units at 1 and -1. So the
ranges, and with them the scales, depend on nothing but t: integer sums are exact, all else works element by element.
``pinned`` is invariant to the bit under batching, reordering and, where the state is given and returned, cutting, and
takes 3 to 21 % more time than the operator, most at narrow widths.

Weights have a scale for each output channel, or, some percent faster and less exact, one for each direction: the
methods whose names end in ``_coarse``.

Operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeLSTM.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.quantize.lstm import CELL
from optimize.quantize.method import Method, QuantizationError, Ranges
from optimize.quantize.product import per_channel, symmetric
from optimize.quantize.recurrence import directions, optional, refusal, sequences, used
from optimize.rewriting import CONTRIB, Replacement, constant, in_branch

GATES = 4  # input, output, forget, cell: ONNX's order
PINS = np.array([1, -1], np.float32)
_OPEN, _FAR = 50.0, 20.0  # sigmoid(50) = tanh(20) = 1 in float32

_LENGTHS, _H, _C = 4, 5, 6  # positions among the inputs
_DYNAMIC, _PINNED = "dynamic", "pinned"

Array = NDArray[np.float32]


def is_pinned(node: ir.Node) -> bool:
    """Whether a DynamicQuantizeLSTM was made by ``pinned``."""
    return any(value is not None and str(value.name).endswith(f"/{_PINNED}_W_int8") for value in node.inputs)


def _refuses_pinned(node: ir.Node) -> str:
    if in_branch(sequences(node)):
        return "its input lives inside a branch, where calibration may never see it"
    if (optional(node, _H) is None) != (optional(node, _C) is None):
        return "only one of its two states is given"
    return refusal(node, CELL)


def _dynamic(node: ir.Node, coarse: bool) -> None:
    new = Replacement(node)
    states = (optional(node, _H), optional(node, _C))
    new.finish(*_operator(new, _DYNAMIC, sequences(node), states, 0, coarse))


def _pinned(node: ir.Node, ranges: Ranges, coarse: bool) -> None:
    new, x = Replacement(node), sequences(node)
    if str(x.name) not in ranges:
        raise QuantizationError(f"'{node.name}': its input '{x.name}' has no calibrated range; observe it first")
    low, high = min(ranges[str(x.name)][0], 0), max(ranges[str(x.name)][1], 0)
    bounds = np.array([low, high if high > low else 1], np.float32)
    h, c = optional(node, _H), optional(node, _C)
    states = (h and _padded(new, _clipped(new, h, -PINS), PINS), c and _padded(new, c, _FAR * PINS))
    outputs = _operator(new, _PINNED, _padded(new, _clipped(new, x, bounds), bounds), states, len(PINS), coarse)
    size = new.constant("hidden_size", np.array([_hidden(node)]))
    zero, last = new.constant("zero", np.array([0])), new.constant("last_axis", np.array([-1]))
    wanted = zip(outputs, used(node), strict=False)
    new.finish(*(new.op("Slice", y, zero, size, last) if use else None for y, use in wanted))


def _clipped(new: Replacement, value: ir.Value, bounds: Array) -> ir.Value:
    return new.op("Clip", value, *(new.constant(f"bound_{bound:g}", bound) for bound in bounds))


def _padded(new: Replacement, value: ir.Value, pins: Array) -> ir.Value:
    """A value (.., .., size) with the pins at the end of its last axis: cheaper by Pad than by shapes and Concat."""
    by_one = new.constant("by_one", np.array([0, 0, 0, 0, 0, 1]))
    for pin in pins:
        value = new.op("Pad", value, by_one, new.constant(f"bound_{pin:g}", pin))
    return value


def _operator(
    new: Replacement, method: str, x: ir.Value, states: tuple[ir.Value | None, ir.Value | None], pins: int, coarse: bool
) -> tuple[ir.Value, ...]:
    """The operator with ``pins`` (0 or 2) hidden units and inputs more than the node has."""
    node, hidden = new.node, _hidden(new.node)
    weights = []
    for at, what in ((1, "W"), (2, "R")):
        array = constant(optional(node, at))
        assert array is not None
        count, _, size = array.shape
        padded = np.pad(array.reshape(count, GATES, hidden, size), ((0, 0), (0, 0), (0, pins), (0, pins)))
        transposed = padded.reshape(count, -1, size + pins).transpose(0, 2, 1)
        quantized, scales = symmetric(transposed, axis=(1, 2)) if coarse else per_channel(transposed)
        zeros = np.zeros(scales.shape, np.int8)
        parts: dict[str, NDArray[Any]] = {"int8": quantized, "scale": scales, "zero": zeros}
        weights.append([new.constant(f"{method}_{what}_{part}", array) for part, array in parts.items()])
    (w, w_scale, w_zero), (r, r_scale, r_zero) = weights
    bias = new.constant("bias", _bias(node, hidden, pins))
    inputs = (x, w, r, bias, optional(node, _LENGTHS), *states, None, w_scale, w_zero, r_scale, r_zero)
    direction = "bidirectional" if len(directions(node)) == 2 else directions(node)[0]
    return new.ops(3, "DynamicQuantizeLSTM", *inputs, domain=CONTRIB, hidden_size=hidden + pins, direction=direction)


def _bias(node: ir.Node, hidden: int, pins: int) -> Array:
    """(directions, 8 (hidden + pins)); those of the pins open their gates and write 1 and -1."""
    given = constant(optional(node, 3))
    count = len(directions(node))
    array = np.zeros((count, 2 * GATES * hidden), np.float32) if given is None else given
    padded = np.pad(array.reshape(count, 2, GATES, hidden), ((0, 0), (0, 0), (0, 0), (0, pins)))
    if pins:
        padded[:, 0, :, hidden:] = [[_OPEN, _OPEN]] * (GATES - 1) + [_OPEN * PINS]
    return padded.reshape(count, -1).astype(np.float32)


def _hidden(node: ir.Node) -> int:
    return node.attributes["hidden_size"].as_int()


def _methods(suffix: str, coarse: bool) -> list[Method]:
    return [
        Method(
            _DYNAMIC + suffix,
            "LSTM",
            invariant=False,
            refuses=lambda node: refusal(node, CELL),
            rewrite=lambda node, ranges: _dynamic(node, coarse),
        ),
        Method(
            _PINNED + suffix,
            "LSTM",
            invariant=True,
            refuses=_refuses_pinned,
            rewrite=lambda node, ranges: _pinned(node, ranges, coarse),
            calibrated=lambda node: [str(sequences(node).name)],
        ),
    ]


METHODS: list[Method] = [*_methods("", coarse=False), *_methods("_coarse", coarse=True)]
