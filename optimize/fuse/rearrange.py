"""Merge chains of Reshape, Transpose, Squeeze, Unsqueeze and Flatten into the fewest nodes that do the same.

    Transpose(Transpose(x, p), q) = Transpose(x, p[q])        = x    when q undoes p
    Reshape(Reshape(x, s), t)     = Reshape(x, t)             = x    when t is the shape of x
    Squeeze(Unsqueeze(x, a), a)   = x
    Reshape(Transpose(Reshape(x (t, 4b, d) ...                       a permutation of factors: see ``rearrangement``

A value in the middle that something else reads, or that is an answer of the graph, ends the chain.
"""

from __future__ import annotations

import onnx_ir as ir

from optimize.fuse.editing import bypass, keeps_identity, only_user, rewrite
from optimize.fuse.rearrangement import chain_above, emit, is_rearrangement, steps_of
from optimize.rewriting import Replacement


@rewrite
def rearrange(model: ir.Model) -> int:
    """Returns by how many nodes the chains are shorter."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.graph is None or not is_rearrangement(node) or is_rearrangement(only_user(node.outputs[0])):
            continue
        count += _merge(node)
    return count


def _merge(last: ir.Node) -> int:
    """Replace the longest chain above ``last`` that can be said in fewer nodes."""
    chain = chain_above(last.outputs[0])
    for start in range(len(chain)):
        part = chain[start:]
        steps, source = steps_of(part), part[0].inputs[0]
        if steps is None or source is None:
            continue
        saved = len(part) - (len(steps) or int(keeps_identity(last, source)))
        if saved <= 0:
            continue
        if steps:
            new = Replacement(last)
            new.finish(emit(new, source, steps))
        else:
            bypass(last, source)
        for node in reversed(part[:-1]):
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        return saved
    return 0
