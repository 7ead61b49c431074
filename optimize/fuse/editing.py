"""What every rewrite shares: a graph that can be edited, and the questions that are asked before a node is replaced.

@rewrite
def double_negation(model: ir.Model) -> int: ...        # edits in place, returns how many rewrites it made

model, count = double_negation(model)                   # ModelProto in, ModelProto out
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes import common

from optimize.rewriting import Replacement, constant, read, written

Rewrite = Callable[[ModelProto], tuple[ModelProto, int]]


def rewrite(edit: Callable[[ir.Model], int]) -> Rewrite:
    """A pass from an edit, repeated until it finds nothing more to do.

    The argument stays as it is; what nothing uses any more is gone from the result.
    """

    @functools.wraps(edit)
    def apply(model: ModelProto) -> tuple[ModelProto, int]:
        opened = read(model)
        count = 0
        while found := edit(opened):
            common.RemoveUnusedNodesPass()(opened)
            count += found
        return (written(opened), count) if count else (model, 0)

    return apply


def is_op(value: ir.Value | None, *operators: str, domain: str = "") -> bool:
    """Whether ``value`` comes from one of the ``operators``."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type in operators and node.domain == domain


def is_private(value: ir.Value) -> bool:
    """Whether only one input of one node reads ``value``: then it may change or vanish together with that node."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, of the same graph; None when there are more, or it is an answer."""
    if not is_private(value):
        return None
    (usage,) = value.uses()
    producer = value.producer()
    return usage.node if producer is None or usage.node.graph is producer.graph else None


def attribute(node: ir.Node, name: str, default: int | float) -> int | float:
    """A number among the attributes."""
    found = node.attributes.get(name)
    return default if found is None else (found.as_float() if isinstance(default, float) else found.as_int())


def number(value: ir.Value | None) -> float | None:
    """A constant of one element, or None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def constant_operand(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """``(data, constant)`` of an operator with two inputs, in either order; None when not just one is constant."""
    first, second = node.inputs[:2]
    if first is None or second is None or (constant(first) is None) == (constant(second) is None):
        return None
    return (second, first) if constant(first) is not None else (first, second)


def bypass(node: ir.Node, value: ir.Value) -> None:
    """``value`` in place of the node's only output, which goes; an answer of the graph keeps its name."""
    new = Replacement(node)
    if keeps_identity(node, value):
        new.finish(new.op("Identity", value))
    elif node.outputs[0].is_graph_output():
        new.finish(value)
    else:
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        new.graph.remove(node, safe=True)


def keeps_identity(node: ir.Node, value: ir.Value) -> bool:
    """Whether something must stand for ``node`` when ``value`` takes its place: both have a name to keep."""
    named = value.is_graph_output() or value.is_graph_input() or value.is_initializer() or value.graph is not node.graph
    return named and node.outputs[0].is_graph_output()
