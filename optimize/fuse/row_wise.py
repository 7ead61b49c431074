"""Move rearrangements past operators that treat every row alike, so that they meet and cancel.

    Transpose(f(Transpose(x, 1 0 2)), 1 0 2) = f(x)                 f: the last axis only, each row for itself
    Reshape(Gemm(Reshape(x, [-1, d]), W, b), [batch, time, e]) = x W + b

``f`` is a chain of MatMul or Gemm by a constant matrix, LayerNormalization or Softmax over the last axis, elementwise
functions (alone, they may have any axis last), and Add, Sub, Mul or Div with a constant that varies along the last
axis at most. With A before f and B behind it, both as permutations of factors, everything is put before f or
everything behind it, whichever needs fewer nodes; nothing is done where neither does. A Gemm becomes MatMul and Add,
since it takes two axes only.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optimize.fuse.editing import attribute, bypass, constant_operand, only_user, rewrite
from optimize.fuse.rearrangement import Step, chain_above, emit, is_rearrangement, of_chain
from optimize.fuse.sizes import Size, sizes_of
from optimize.rewriting import CONTRIB, Replacement, constant

_Plan = tuple[list[Step], list[Step]]  # before f and behind it
_ELEMENTWISE = {"Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Neg", "Exp", "Identity", "Cast"}
_ELEMENTWISE_CONTRIB = {"Gelu", "FastGelu", "QuickGelu"}


@rewrite
def move_past_rows(model: ir.Model) -> int:
    """Returns by how many nodes the graph is smaller, the Add that a Gemm leaves not counted."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.graph is not None and is_rearrangement(node) and not is_rearrangement(only_user(node.outputs[0])):
            count += _move(node)
    return count


def _move(last: ir.Node) -> int:
    before = chain_above(last.outputs[0])
    rows: list[ir.Node] = []
    value = last.outputs[0]
    while (user := only_user(value)) is not None and _is_row_wise(user, value):
        rows.append(user)
        value = user.outputs[0]
    behind: list[ir.Node] = []
    while (user := only_user(value)) is not None and is_rearrangement(user) and user.inputs[0] is value:
        behind.append(user)
        value = user.outputs[0]
    if not rows or not behind:
        return 0
    last_size = sizes_of(rows[-1].outputs[0])
    if last_size is None:
        return 0
    best: tuple[int, list[ir.Node], list[Step], list[Step]] | None = None
    for start in range(len(before)):
        for plan in (_all_before, _all_behind, _anywhere):
            part = before[start:]
            steps = plan(part, rows, last_size[-1], behind)
            if steps is not None and len(part) + len(behind) > len(steps[0]) + len(steps[1]):
                saved = len(part) + len(behind) - len(steps[0]) - len(steps[1])
                if best is None or saved > best[0]:
                    best = (saved, part, *steps)
    if best is None:
        return 0
    saved, part, first, second = best
    source = part[0].inputs[0]
    assert source is not None
    new = Replacement(rows[0])
    value = _rows_again(rows, last.outputs[0], emit(new, source, first))
    if second:
        end = Replacement(behind[-1])
        end.finish(emit(end, value, second))
    else:
        bypass(behind[-1], value)
    return saved


def _all_before(
    before: Sequence[ir.Node], rows: Sequence[ir.Node], after: Size, behind: Sequence[ir.Node]
) -> _Plan | None:
    """The steps when everything comes before f: what is behind must leave the last axis alone."""
    whole = of_chain(before)
    if whole is None:
        return None
    last = whole.result[-1]
    mark = whole.factor(after)
    whole.result[-1] = [mark]
    if not all(whole.apply(node) for node in behind) or whole.result[-1] != [mark]:
        return None
    whole.result[-1] = last
    steps = whole.steps()
    return None if steps is None else (steps, [])


def _all_behind(
    before: Sequence[ir.Node], rows: Sequence[ir.Node], after: Size, behind: Sequence[ir.Node]
) -> _Plan | None:
    """The steps when everything comes behind f: what is before must leave the last axis alone."""
    whole = of_chain(before)
    if whole is None or whole.source[-1] != whole.result[-1] or not whole.result[-1]:
        return None
    mark = whole.factor(after)
    whole.source[-1], whole.result[-1] = [mark], [mark]
    if not all(whole.apply(node) for node in behind):
        return None
    steps = whole.steps()
    return None if steps is None else ([], steps)


def _anywhere(
    before: Sequence[ir.Node], rows: Sequence[ir.Node], after: Size, behind: Sequence[ir.Node]
) -> _Plan | None:
    """The steps when f is elementwise: it may stand at any place."""
    if any(node.op_type not in _ELEMENTWISE | _ELEMENTWISE_CONTRIB for node in rows):
        return None
    whole = of_chain([*before, *behind])
    steps = whole.steps() if whole is not None else None
    return None if steps is None else (steps, [])


def _is_row_wise(node: ir.Node, value: ir.Value) -> bool:
    if node.inputs[0] is not value and node.op_type not in ("Add", "Mul"):
        return False
    if node.domain == CONTRIB:
        return node.op_type in _ELEMENTWISE_CONTRIB and len(node.inputs) == 1
    if node.domain != "":
        return False
    if node.op_type in _ELEMENTWISE:
        return True
    shape = sizes_of(value)
    if not shape:
        return False
    if node.op_type in ("Add", "Sub", "Mul", "Div"):
        operands = constant_operand(node)
        array = constant(operands[1]) if operands is not None else None
        return array is not None and array.ndim <= len(shape) and array.size in (1, *array.shape[-1:])
    if node.op_type in ("LayerNormalization", "Softmax"):
        return attribute(node, "axis", -1) in (-1, len(shape) - 1)
    matrix = constant(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
    return matrix is not None and matrix.ndim == 2 and (node.op_type == "MatMul" or is_plain_gemm(node))


def is_plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is x W + b and nothing else."""
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return (
        not attribute(node, "transA", 0)
        and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1
        and (len(node.inputs) < 3 or (bias is not None and bias.ndim == 1))
    )


def _rows_again(rows: Sequence[ir.Node], old: ir.Value, value: ir.Value) -> ir.Value:
    """The row-wise nodes on ``value`` in place of ``old``; their own names and attributes stay."""
    for node in rows:
        lead = list(value.shape or ())
        if node.op_type not in _ELEMENTWISE | _ELEMENTWISE_CONTRIB:
            assert node.outputs[0].shape
            lead[-1] = node.outputs[0].shape[-1]
        if node.op_type == "Gemm":
            value = _gemm(node, value)
        else:
            attributes = dict(node.attributes)
            if "axis" in attributes:
                attributes["axis"] = ir.AttrInt64("axis", -1)
            inputs = [value if each is old else each for each in node.inputs]
            again = ir.Node(node.domain, node.op_type, inputs, attributes.values(), name=node.name)
            again.outputs[0].name = f"{node.outputs[0].name}/moved"
            assert isinstance(node.graph, ir.Graph)
            node.graph.insert_before(rows[-1], again)
            value = again.outputs[0]
        value.shape, value.type = ir.Shape(lead), node.outputs[0].type
        old = node.outputs[0]
    return value


def _gemm(node: ir.Node, value: ir.Value) -> ir.Value:
    matrix = constant(node.inputs[1])
    assert matrix is not None
    new = Replacement(node)
    weight = new.constant("weight", matrix.T) if attribute(node, "transB", 0) else node.inputs[1]
    product = new.op("MatMul", value, weight)
    matmul = product.producer()
    assert matmul is not None
    matmul.name = node.name
    return new.op("Add", product, node.inputs[2]) if len(node.inputs) > 2 else product
