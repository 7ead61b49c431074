"""LSTM with int8 products.

    i, o, f = sigmoid(x W_iof + h R_iof + b_iof)
    c'      = f c + i tanh(x W_c + h R_c + b_c)         the cell state stays fp32
    h'      = o tanh(c')

The steps are written out, as ``recurrence`` tells: invariant to the bit, wherever the sequence is cut. Where the range
of its input can be calibrated the operator of ``lstm_operator`` is faster, and as invariant.
"""

from __future__ import annotations

from optimize.quantize.method import Method
from optimize.quantize.recurrence import Cell, Values, method
from optimize.rewriting import Replacement


def _step(new: Replacement, inputs: Values, recurrent: Values, states: Values) -> Values:
    (x_iof, x_c), (h_iof, h_c), (_, cell) = inputs, recurrent, states
    into, out, forget = new.split(new.op("Sigmoid", new.op("Add", x_iof, h_iof)), 3)
    candidate = new.op("Tanh", new.op("Add", x_c, h_c))
    cell = new.op("Add", new.op("Mul", forget, cell), new.op("Mul", into, candidate))
    return [new.op("Mul", out, new.op("Tanh", cell)), cell]


CELL = Cell(
    "LSTM",
    attribute=("input_forget", 0),
    activations=("sigmoid", "tanh", "tanh"),
    groups=(3, 1),
    states=2,
    inner_bias=False,
    step=_step,
)

METHODS: list[Method] = [method(CELL, name) for name in ("static", "per_row")]
