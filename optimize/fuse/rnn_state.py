"""Drop the initial state of an RNN when it is all zeros.

    LSTM(x, W, R, B, lengths, ConstantOfShape(f(x), 0), ConstantOfShape(f(x), 0))  =  LSTM(x, W, R, B, lengths)

The operators' specification gives zeros to an absent state. Exporters write the zeros out as Shape, Gather, Concat
and ConstantOfShape nodes, whose cost per request is small but whose benefit is none.
"""

from __future__ import annotations

import onnx_ir as ir

from optimize.fuse.editing import is_op, rewrite
from optimize.rewriting import constant

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


@rewrite
def drop_zero_states(model: ir.Model) -> int:
    """Returns how many zero states were dropped. The zeros' own nodes go when unused."""
    dropped = 0
    for node in model.graph.all_nodes():
        for position in _STATES.get(node.op_type, ()):
            if position < len(node.inputs) and is_zero(node.inputs[position]):
                node.replace_input_with(position, None)
                dropped += 1
    return dropped


def is_zero(value: ir.Value | None) -> bool:
    """Whether a value is zero throughout, whatever its shape."""
    while value is not None and is_op(value, "Slice", "Expand", "Reshape", "Identity", "Unsqueeze", "Squeeze"):
        value = value.producer().inputs[0]  # type: ignore[union-attr]
    if (array := constant(value)) is not None:
        return not array.any()
    node = value.producer() if value is not None and is_op(value, "ConstantOfShape") else None
    fill = node.attributes.get("value") if node is not None else None
    return node is not None and (fill is None or not fill.as_tensor().numpy().any())
