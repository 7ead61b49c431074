"""A graph made elsewhere under names and in a layout that Triton serves: batch first, ``state_*`` and ``next_state_*``.

    state_h (batch, layers, hidden) -> Transpose -> h (layers, batch, hidden) -> the graph as it was -> hn -> Transpose
    -> next_state_h (batch, layers, hidden)

Nothing in between is touched: its answers are the original's to the bit. Axes other than the batch keep their order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes import common

from optimize.adopt.foreign import Layout, Port
from optimize.onnx_export import BATCH
from optimize.specs import ModelSpec, StateSpec, TensorSpec


def spec(name: str, layout: Layout, max_batch: int = 64) -> ModelSpec:
    """The description of the wrapped model. Raises SpecError for a type that is not served."""
    return ModelSpec(
        name,
        tuple(TensorSpec(port.served, port.dtype, port.row) for port in layout.inputs),
        tuple(TensorSpec(port.served, port.dtype, port.row) for port in layout.outputs),
        tuple(StateSpec(state.what, state.before.dtype, state.before.row) for state in layout.states),
        max_batch,
    )


def wrap(model: ModelProto, layout: Layout) -> ModelProto:
    """The model with inputs and outputs as they are served; its constants are initializers."""
    opened = ir.serde.deserialize_model(ModelProto.FromString(model.SerializeToString()))
    graph = opened.graph
    inputs = {str(value.name): value for value in graph.inputs}
    places = {str(value.name): place for place, value in enumerate(graph.outputs)}
    graph.inputs.clear()
    for name, array in layout.constants.items():
        value = ir.Value(name=f"{name}/constant", const_value=ir.tensor(array, name=f"{name}/constant"))
        graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(inputs[name], value, replace_graph_outputs=True)
    for port in layout.given:
        served = ir.Value(name=port.served, type=inputs[port.name].type, shape=ir.Shape([BATCH, *port.row]))
        graph.inputs.append(served)
        inner = _moved(graph, served, port, first=True)
        ir.convenience.replace_all_uses_with(inputs[port.name], inner, replace_graph_outputs=True)
    answers = list(graph.outputs)
    graph.outputs.clear()
    for port in layout.answered:
        value = answers[places[port.name]]
        moved = _moved(graph, value, port, first=False)
        if moved is value and (value.producer() is None or answers.count(value) > 1):
            moved = _node(graph, "Identity", [value], first=False)
        moved.type, moved.shape, moved.name = value.type, ir.Shape([BATCH, *port.row]), port.served
        graph.outputs.append(moved)
    common.NameFixPass()(opened)  # inside, a name that is now an input's or output's
    wrapped = ir.serde.serialize_model(opened)
    del wrapped.graph.value_info[:]  # sizes of a batch or a chunk that are no longer those
    return wrapped


def _moved(graph: ir.Graph, value: ir.Value, port: Port, first: bool) -> ir.Value:
    """The value with its batch where the other side wants it. first: it comes in, and goes to the graph."""
    if len(port.shape) == 1:
        name = f"{port.served}/{'flat' if first else 'column'}"
        shape = ir.Value(name=name, const_value=ir.tensor(np.array([-1] if first else [-1, 1]), name=name))
        graph.register_initializer(shape)
        return _node(graph, "Reshape", [value, shape], first)
    if port.axis:
        return _node(graph, "Transpose", [value], first, perm=port.from_served if first else port.to_served)
    return value


def _node(
    graph: ir.Graph, operator: str, inputs: list[ir.Value], first: bool, perm: list[int] | None = None
) -> ir.Value:
    attributes = ir.convenience.convert_attributes({"perm": perm} if perm else {})
    node = ir.Node("", operator, inputs, attributes, name=f"served/{operator}_{len(graph)}")
    if first:
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
    node.outputs[0].name = f"{node.name}:0"
    return node.outputs[0]
