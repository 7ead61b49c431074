"""GRU with int8 products; ONNX Runtime has no quantised GRU operator of its own.

    z, r = sigmoid(x W_zr + h R_zr + b_zr)
    n    = tanh(x W_n + b_n + r (h R_n + c_n))          the reset gate after the product: linear_before_reset = 1
    h'   = n + z (h - n)                                = (1 - z) n + z h

This is PyTorch's flavour. With linear_before_reset = 0 the second product would wait for the reset gate of its own
step: another function, and refused. ``recurrence`` tells what the methods are.
"""

from __future__ import annotations

from optimize.quantize.method import Method
from optimize.quantize.recurrence import Cell, Values, method
from optimize.rewriting import Replacement


def _step(new: Replacement, inputs: Values, recurrent: Values, states: Values) -> Values:
    (x_zr, x_n), (h_zr, h_n), (h,) = inputs, recurrent, states
    update, reset = new.split(new.op("Sigmoid", new.op("Add", x_zr, h_zr)), 2)
    n = new.op("Tanh", new.op("Add", x_n, new.op("Mul", reset, h_n)))
    return [new.op("Add", n, new.op("Mul", update, new.op("Sub", h, n)))]


CELL = Cell(
    "GRU",
    attribute=("linear_before_reset", 1),
    activations=("sigmoid", "tanh"),
    groups=(2, 1),
    states=1,
    inner_bias=True,
    step=_step,
)
METHODS: list[Method] = [method(CELL, name) for name in ("dynamic", "static", "per_row")]
