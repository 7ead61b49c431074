"""Embedding tables in eight bits: a quarter of the memory, for a table that is looked up and never multiplied.

    T[i] = q[i] s[i],  q in [-127, 127]        Gather(T, i)  =  Cast(Gather(q, i)) * Gather(s, i)

The scale belongs to a row of the table, so the error of a token depends on no other token. Dequantising before the
lookup would be shorter, but ONNX Runtime folds it at load and keeps the table in fp32. It saves memory and not time,
so it is done only when asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimize.quantize.method import Method, Ranges
from optimize.quantize.product import per_channel, refuses_weights
from optimize.rewriting import Replacement, constant


def _rewrite(node: ir.Node, ranges: Ranges) -> None:
    value, indices = node.inputs[:2]
    table = constant(value)
    assert value is not None
    assert table is not None
    quantized, scales = per_channel(table.T)
    new = Replacement(node)
    rows = new.op("Gather", _beside(value, "int8", quantized.T), indices)
    scale = new.op("Gather", _beside(value, "scale", scales[:, None]), indices)
    new.finish(new.op("Mul", new.op("Cast", rows, to=int(ir.DataType.FLOAT)), scale))


def _beside(table: ir.Value, what: str, array: NDArray[Any]) -> ir.Value:
    """A constant in the graph that has the table: all who look up the same, in bodies too, share it."""
    graph, name = table.graph, f"{table.name}/{what}"
    assert graph is not None
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name)))
    return graph.initializers[name]


def _refuses(node: ir.Node) -> str:
    table = constant(node.inputs[0])
    if reason := refuses_weights(table):
        return reason
    assert table is not None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if table.ndim != 2 or axis not in (0, -2):
        return f"it looks up axis {axis} of a table of shape {table.shape}, only rows of (entries, features) are done"
    return ""


METHODS: list[Method] = [Method("int8_table", "Gather", invariant=True, refuses=_refuses, rewrite=_rewrite)]
