"""Drop the initial state of an RNN when it is all zeros.

    LSTM(x, W, R, B, lengths, ConstantOfShape(f(x), 0), ConstantOfShape(f(x), 0))  =  LSTM(x, W, R, B, lengths)

The operators' specification gives zeros to an absent state. Exporters write the zeros out as Shape, Gather, Concat
and ConstantOfShape nodes, whose cost per request is small but whose benefit is none.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


def drop_zero_states(model: ModelProto) -> tuple[ModelProto, int]:
    """Returns a copy without zero states and how many were dropped. The zeros' own nodes go when unused."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dropped = 0
    for node in model.graph.node:
        for position in _STATES.get(node.op_type, ()):
            if position < len(node.input) and _is_zero(node.input[position], producers, constants):
                node.input[position] = ""
                dropped += 1
        if node.op_type in _STATES:
            while node.input and not node.input[-1]:
                del node.input[-1]
    _remove_unused(model)
    return model, dropped


def _is_zero(name: str, producers: dict[str, NodeProto], constants: dict[str, onnx.TensorProto]) -> bool:
    if name in constants:
        return not numpy_helper.to_array(constants[name]).any()
    node = producers.get(name)
    while node is not None and node.op_type in ("Slice", "Expand", "Reshape", "Identity", "Unsqueeze", "Squeeze"):
        node = producers.get(node.input[0])
    if node is None or node.op_type != "ConstantOfShape":
        return False
    return all(not np.any(numpy_helper.to_array(attribute.t)) for attribute in node.attribute)


def _remove_unused(model: ModelProto) -> None:
    while True:
        used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
        unused = [node for node in model.graph.node if not used & set(node.output)]
        if not unused:
            break
        for node in unused:
            model.graph.node.remove(node)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
