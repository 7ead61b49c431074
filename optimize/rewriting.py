"""Edit an ONNX graph: new nodes in place of an old one, in the main graph or in the body of a Scan, Loop or If.

model = read(proto)
for node in model.graph.all_nodes():
    new = Replacement(node)
    new.finish(new.op("Add", new.op("MatMul", a, b), new.constant("bias", bias)))
proto = written(model)
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_ir.passes import common

CONTRIB = "com.microsoft"

logging.getLogger("onnx_ir").setLevel(logging.WARNING)  # it tells of every node that it removes


def read(model: ModelProto) -> ir.Model:
    """An editable copy. Every node has a name of its own; constants are initializers, of bodies too, never nodes."""
    opened = ir.serde.deserialize_model(ModelProto.FromString(model.SerializeToString()))
    common.NameFixPass()(opened)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(opened)
    for body in opened.graph.subgraphs():
        body.meta["opset_imports"] = opened.opset_imports  # a body has none of its own
    for node in opened.graph.all_nodes():  # an outer one before those in its bodies
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                outer = node.graph is not None and bool(node.graph.meta.get("branch"))
                body.meta["branch"] = outer or node.op_type == "If"
    return opened


def written(model: ir.Model) -> ModelProto:
    """The edited model without what nothing uses, its imports of operator sets complete."""
    common.RemoveUnusedNodesPass()(model)
    for domain in {node.domain for node in model.graph.all_nodes()}:
        model.opset_imports.setdefault(domain, 1)
    for domain in set(model.opset_imports) - {node.domain for node in model.graph.all_nodes()} - {""}:
        del model.opset_imports[domain]
    return ir.serde.serialize_model(model)


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of a constant, or None for what depends on the request."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def in_branch(value: ir.Value) -> bool:
    """Whether a value is inside a branch of an If, so that there may be none."""
    return value.graph is not None and bool(value.graph.meta.get("branch"))


class Replacement:
    """New nodes before ``node``; ``finish`` gives its outputs, under their old names, to its users and removes it."""

    def __init__(self, node: ir.Node) -> None:
        assert isinstance(node.graph, ir.Graph)
        self.node, self.graph = node, node.graph
        self.opset: int = self.graph.meta.get("opset_imports", self.graph.opset_imports).get("", 1)
        self._count = 0

    def constant(self, what: str, array: NDArray[Any] | np.generic) -> ir.Value:
        """A constant named after the node and ``what``."""
        return self.shared(f"{self.node.name}/{what}", array)

    def shared(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        """A constant that every node of the graph shares under ``name``."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
        self.graph.register_initializer(value)
        return value

    def op(self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.ops(1, operator, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, outputs: int, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """A node with several outputs; an attribute may be a graph."""
        name = f"{self.node.name}/{operator}_{self._count}"
        self._count += 1
        attrs = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, operator, inputs, attrs, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}:{index}"
        self.graph.insert_before(self.node, node)
        return tuple(node.outputs)

    def split(self, value: ir.Value, parts: int, axis: int = -1) -> tuple[ir.Value, ...]:
        """Equal parts of an axis."""
        if self.opset < 18:  # where the number became an attribute
            return self.ops(parts, "Split", value, axis=axis)
        return self.ops(parts, "Split", value, axis=axis, num_outputs=parts)

    def finish(self, *outputs: ir.Value | None) -> None:
        """``outputs`` in the order of the node's own; None for one that nothing uses."""
        for old, new in zip(self.node.outputs, outputs, strict=False):
            if new is None:
                continue
            new.type, new.shape = old.type, old.shape
            name = old.name
            old.name = f"{name}/replaced"
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            new.name = name
        self.graph.remove(self.node, safe=True)
