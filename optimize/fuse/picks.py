"""Pick one step before the axes are turned around, not after.

    Gather(Transpose(x, p), i, axis=a)  =  Gather(x, i, axis=p[a])       when the axes that are left keep their order

as a model does that reads the last step of an RNN: x is (time, batch, width) and only the pick needs it turned.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimize.fuse.editing import attribute, is_op, is_private, rewrite
from optimize.fuse.rearrangement import permutation
from optimize.rewriting import Replacement, constant


@rewrite
def pick_before_transposing(model: ir.Model) -> int:
    """Returns how many Transpose nodes went."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Gather" and node.domain == ""]
    return sum(_pick(node) for node in nodes)


def _pick(node: ir.Node) -> int:
    turned = node.inputs[0]
    transpose = turned.producer() if turned is not None and is_op(turned, "Transpose") else None
    if turned is None or transpose is None or not is_private(turned) or "perm" not in transpose.attributes:
        return 0
    index, perm = constant(node.inputs[1]), permutation(transpose, 0)
    axis = perm[int(attribute(node, "axis", 0)) % len(perm)]
    left = [each for each in perm if each != axis]
    if index is None or np.ndim(index) != 0 or left != sorted(left):
        return 0
    new = Replacement(node)
    new.finish(new.op("Gather", transpose.inputs[0], node.inputs[1], axis=axis))
    return 1
