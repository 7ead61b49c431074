"""Small graphs by hand, for what must be found in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Shape = Sequence[int | str]
Arrays = Mapping[str, NDArray[Any] | np.generic]

CONTRIB = "com.microsoft"


def node(operator: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> NodeProto:
    """Inputs and outputs separated by blanks, '-' for an absent one; named after its first output."""
    read, written = (["" if name == "-" else name for name in text.split()] for text in (inputs, outputs))
    name = attributes.pop("name", written[0])
    return helper.make_node(operator, read, written, name, domain=domain, **attributes)


def graph(
    nodes: Sequence[NodeProto], inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], weights: Arrays | None = None
) -> GraphProto:
    """A graph or a body; its inputs and outputs are float32."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    return helper.make_graph(nodes, "graph", _ports(inputs), _ports(outputs), initializers)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Arrays | None = None,
    opset: int = 17,
) -> ModelProto:
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph(nodes, inputs, outputs, weights), opset_imports=opsets, ir_version=8)


def loop_body(nodes: Sequence[NodeProto], weights: Arrays | None = None, carried: Shape = ("batch", 8)) -> GraphProto:
    """Of a Loop that carries ``h`` to ``h_next``."""
    body = graph(nodes, {"h": carried}, {"h_next": carried}, weights)
    body.input.insert(0, helper.make_tensor_value_info("going", TensorProto.BOOL, []))
    body.input.insert(0, helper.make_tensor_value_info("step", TensorProto.INT64, []))
    body.output.insert(0, helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []))
    body.node.append(node("Identity", "going", "goes_on"))
    return body


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bytes_(*shape: int, largest: int = 127, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(np.int8)


def _ports(shapes: Mapping[str, Shape]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in shapes.items()]
