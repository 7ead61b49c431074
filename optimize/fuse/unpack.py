"""Take apart a packed projection where it comes, not after it was turned around.

    Gather(R(x), 0), Gather(R(x), 1), Gather(R(x), 2)   =   R'(x_0), R'(x_1), R'(x_2)    x_0, x_1, x_2 = Split(x)

R rearranges (batch, time, 3*d) to (3, batch, time, d), as torch's attention does with queries, keys and values from
one product. When the gathered axis is the outer factor of an axis of x, a Split of that axis gives the same numbers,
and what is left of R for each (R') is at most one node.
"""

from __future__ import annotations

import onnx_ir as ir

from optimize.fuse.editing import attribute, number, rewrite
from optimize.fuse.rearrangement import chain_above, emit, of_chain
from optimize.fuse.sizes import dimension
from optimize.rewriting import Replacement


@rewrite
def unpack(model: ir.Model) -> int:
    """Returns how many Gather nodes were replaced."""
    return sum(_split(value) for value in [node.outputs[0] for node in model.graph.all_nodes()])


def _split(value: ir.Value) -> int:
    gathers: dict[int, ir.Node] = {}
    for user, position in value.uses():
        index = number(user.inputs[1]) if (user.op_type, position) == ("Gather", 0) else None
        if index is None or user.inputs[1] is None or user.inputs[1].shape != ir.Shape([]) or index in gathers:
            return 0
        gathers[int(index)] = user
    chain = chain_above(value)
    whole = of_chain(chain) if len(gathers) > 1 and chain else None
    axes = {int(attribute(user, "axis", 0)) for user in gathers.values()}
    source = chain[0].inputs[0] if chain else None
    if whole is None or source is None or value.is_graph_output() or len(axes) != 1:
        return 0
    axis = axes.pop() % len(whole.result)
    picked = whole.result[axis]
    if len(picked) != 1 or whole.sizes[picked[0]] != (len(gathers), ()) or set(gathers) != set(range(len(gathers))):
        return 0
    packed = next(index for index, factors in enumerate(whole.source) if picked[0] in factors)
    if whole.source[packed][0] != picked[0]:
        return 0
    del whole.source[packed][0], whole.result[axis]
    steps = whole.steps()
    if steps is None or len(steps) > 1:
        return 0
    new = Replacement(chain[0])
    parts = new.split(source, len(gathers), packed)
    for index, part in enumerate(parts):
        part.shape = ir.Shape([dimension(each) for each in whole.shape(whole.source)])
        if value.dtype is not None:
            part.dtype = value.dtype
        gather = Replacement(gathers[index])
        result = emit(gather, part, steps)
        gather.finish(result if steps else gather.op("Identity", result))
    return len(gathers)
