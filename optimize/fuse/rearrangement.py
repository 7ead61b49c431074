"""A chain of Reshape, Transpose, Squeeze and Unsqueeze as what it is: a permutation of the factors of the axes.

    x (time, 4*batch, 64)  ->  Transpose 1 0 2  ->  Reshape (batch, 4, time, 64)

    factors of x:       (t) (b h) (d)
    factors of result:  (b) (h) (t) (d)          so one Reshape to t b h d, and one Transpose, are enough

Reshape splits or merges axes and keeps the order of the factors, Transpose keeps the axes and changes their order, so
every chain is one permutation of factors, and every permutation is at most Reshape, Transpose, Reshape. Two chains in
a row are a chain; a chain whose factors end where they began is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from optimize.fuse.editing import attribute, is_private
from optimize.fuse.sizes import ONE, Size, dimension, divide, product, reshape_target, sizes_of
from optimize.rewriting import Replacement

OPERATORS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
Axes = list[list[int]]  # each axis as its factors, outermost first; an axis of size 1 has none
Step = tuple[str, list[int], list[Size]]  # operator, its perm or target shape, sizes of its result


class Rearrangement:
    """From ``source`` to ``result``, both lists of axes; a factor is an index into ``sizes``."""

    def __init__(self, shape: Sequence[Size]) -> None:
        self.sizes: list[Size] = []
        self.source: Axes = [[] if axis == ONE else [self.factor(axis)] for axis in shape]
        self.result: Axes = [list(axis) for axis in self.source]

    def factor(self, size: Size) -> int:
        """A new factor."""
        self.sizes.append(size)
        return len(self.sizes) - 1

    def apply(self, node: ir.Node) -> bool:
        """Append a node; False when the sizes do not tell how it splits the axes."""
        if node.op_type == "Transpose":
            perm = permutation(node, len(self.result))
            self.result = [self.result[axis] for axis in perm]
            return True
        after = sizes_of(node.outputs[0])
        return after is not None and self.reshape(after)

    def reshape(self, shape: Sequence[Size]) -> bool:
        """Regroup the factors in their order, splitting some; False when sizes do not divide."""
        pending = [factor for axis in self.result for factor in axis]
        axes: Axes = []
        for wanted in shape:
            axis: list[int] = []
            while wanted != ONE:
                if not pending:
                    return False
                fits = divide(wanted, self.sizes[pending[0]])
                if fits is None:
                    inner = divide(self.sizes[pending[0]], wanted)
                    if inner is None:
                        return False
                    pending[:1] = self._split(pending[0], wanted, inner)
                    fits = ONE
                axis.append(pending.pop(0))
                wanted = fits
            axes.append(axis)
        self.result = axes
        return not pending

    def _split(self, factor: int, outer: Size, inner: Size) -> list[int]:
        parts = [self.factor(outer), self.factor(inner)]
        for axes in (self.source, self.result):
            for axis in axes:
                if factor in axis:
                    position = axis.index(factor)
                    axis[position : position + 1] = parts
        return parts

    def shape(self, axes: Axes) -> list[Size]:
        """The sizes of some axes."""
        return [product([self.sizes[factor] for factor in axis]) for axis in axes]

    def steps(self) -> list[Step] | None:
        """The fewest nodes that do the same; None when a target shape needs more than Reshape can be told."""
        source, result = self.shape(self.source), self.shape(self.result)
        order = [factor for axis in self.source for factor in axis]
        wanted = [factor for axis in self.result for factor in axis]
        if order == wanted:
            if source == result:
                return []
            target = reshape_target(source, result)
            return None if target is None else [("Reshape", target, result)]
        if sorted(self.source) == sorted(self.result) and self.source.count([]) <= 1:
            return [("Transpose", [self.source.index(axis) for axis in self.result], result)]
        blocks = _runs(order, wanted, self.source)
        steps: list[Step] = []
        if blocks != self.source:
            target = reshape_target(source, self.shape(blocks))
            if target is None:
                return None
            steps.append(("Reshape", target, self.shape(blocks)))
        moved = sorted(blocks, key=lambda block: wanted.index(block[0]))
        steps.append(("Transpose", [blocks.index(block) for block in moved], self.shape(moved)))
        if moved != self.result:
            target = reshape_target(self.shape(moved), result)
            if target is None:
                return None
            steps.append(("Reshape", target, result))
        return steps


def permutation(node: ir.Node, rank: int) -> list[int]:
    """``perm`` of a Transpose; without one the axes are reversed."""
    perm = node.attributes.get("perm")
    return list(perm.as_ints()) if perm is not None else list(range(rank))[::-1]


def is_rearrangement(node: ir.Node | None) -> bool:
    """Whether a node only moves numbers to other places of the same graph's values."""
    if node is None or node.domain != "" or node.op_type not in OPERATORS:
        return False
    return not attribute(node, "allowzero", 0)


def chain_above(value: ir.Value | None) -> list[ir.Node]:
    """The longest chain that ends in ``value`` and that nothing else reads in between, first node first."""
    chain: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and is_rearrangement(node):
        if chain and (not is_private(value) or node.graph is not chain[0].graph):
            break
        chain.insert(0, node)
        value = node.inputs[0]
    return chain


def of_chain(chain: Sequence[ir.Node]) -> Rearrangement | None:
    """What a chain of nodes does altogether, or None when shapes are missing."""
    shape = sizes_of(chain[0].inputs[0])
    if shape is None or Size(0) in shape:
        return None
    whole = Rearrangement(shape)
    return whole if all(whole.apply(node) for node in _telling(chain)) else None


def steps_of(chain: Sequence[ir.Node]) -> list[Step] | None:
    """The fewest nodes for a chain; None when shapes are missing or cannot be said."""
    whole = of_chain(chain)
    if whole is not None:
        return whole.steps()
    before, after = sizes_of(chain[0].inputs[0]), sizes_of(chain[-1].outputs[0])
    if len(_telling(chain)) > 1 or chain[-1].op_type == "Transpose" or before is None or after is None:
        return None
    target = reshape_target(before, after)  # 2 x 3 to 3 x 2 splits no factor, but one Reshape says it
    return None if target is None else [("Reshape", target, after)]


def emit(new: Replacement, value: ir.Value, steps: Sequence[Step]) -> ir.Value:
    """The nodes of ``steps``, their shapes known."""
    for operator, argument, shape in steps:
        dtype = value.dtype
        if operator == "Transpose":
            value = new.op("Transpose", value, perm=argument)
        else:
            name = "shape_" + "_".join(map(str, argument))
            value = new.op("Reshape", value, new.constant(name, np.array(argument, np.int64)))
        value.shape = ir.Shape([dimension(each) for each in shape])
        if dtype is not None:
            value.dtype = dtype
    return value


def _telling(chain: Sequence[ir.Node]) -> list[ir.Node]:
    """Without the nodes whose shape the next one replaces."""
    following = [*chain[1:], None]
    return [
        node
        for node, after in zip(chain, following, strict=True)
        if node.op_type == "Transpose" or after is None or after.op_type == "Transpose"
    ]


def _runs(order: Sequence[int], wanted: Sequence[int], axes: Axes) -> Axes:
    """Factors that stay neighbours on the way from ``order`` to ``wanted``, together; axes of ``axes`` apart."""
    follows = dict(pairwise(wanted))
    starts = {axis[0] for axis in axes if axis}
    blocks: Axes = []
    for index, factor in enumerate(order):
        if index and follows.get(order[index - 1]) == factor and factor not in starts:
            blocks[-1].append(factor)
        else:
            blocks.append([factor])
    return blocks
