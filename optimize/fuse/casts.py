"""Casts that undo or continue one another.

    Cast(Cast(x, to=t1), to=t2)  =  Cast(x, to=t2)      when t1 holds every number of x's type exactly
    Cast(x, to=type of x)        =  x

int64 in float64 is not exact, nor float32 in float16: such a pair rounds on purpose and stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimize.fuse.editing import attribute, bypass, is_op, keeps_identity, rewrite


@rewrite
def merge_casts(model: ir.Model) -> int:
    """Returns how many casts were shortened or removed."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Cast" or node.domain != "" or node.inputs[0] is None:
            continue
        inner = node.inputs[0].producer() if is_op(node.inputs[0], "Cast") else None
        source = inner.inputs[0] if inner is not None else None
        if source is not None and _holds(_type(node.inputs[0]), _type(source)):
            node.replace_input_with(0, source)
            count += 1
        value = node.inputs[0]
        if value is not None and _type(value) == attribute(node, "to", 0):
            if keeps_identity(node, value):
                continue
            bypass(node, value)
            count += 1
    return count


def _type(value: ir.Value) -> ir.DataType | None:
    cast = value.producer() if is_op(value, "Cast") else None
    return value.dtype if cast is None else ir.DataType(int(attribute(cast, "to", 0)))


def _holds(wide: ir.DataType | None, narrow: ir.DataType | None) -> bool:
    if wide is None or narrow is None or ir.DataType.STRING in (wide, narrow):
        return False
    try:
        to, source = np.dtype(wide.numpy()), np.dtype(narrow.numpy())
    except TypeError:
        return False
    exact = not (source.kind in "iu" and to.kind == "f" and source.itemsize >= to.itemsize)
    return to.kind in "biuf" and source.kind in "biuf" and exact and np.can_cast(source, to, "safe")
