"""Embedding tables in eight bits: a quarter of the memory, for a table that is looked up and never multiplied.

    T[i] = q[i] s[i],  q in [-127, 127]        Gather(T, i)  =  Cast(Gather(q, i)) * Gather(s, i)

The scale belongs to a row of the table, so the error of a token depends on no other token. Dequantising before the
lookup would be shorter, but ONNX Runtime folds it at load and keeps the table in fp32. It saves memory and not time,
so it is done only when asked for.
"""

from __future__ import annotations

import onnx_ir as ir

from optimize.quantize.method import Method, Ranges
from optimize.quantize.product import per_channel, refuses_weights
from optimize.rewriting import Replacement, constant


def _rewrite(node: ir.Node, ranges: Ranges) -> None:
    table = constant(node.inputs[0])
    assert table is not None
    quantized, scales = per_channel(table.T)
    new = Replacement(node)
    indices = node.inputs[1]
    rows = new.op("Gather", new.constant("table_int8", quantized.T), indices)
    scale = new.op("Gather", new.constant("table_scale", scales[:, None]), indices)
    new.finish(new.op("Mul", new.op("Cast", rows, to=int(ir.DataType.FLOAT)), scale))


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
