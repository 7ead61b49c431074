"""The size of an axis as a product: 4 * batch, 64, time. Products are what Reshape splits and merges.

    divide(size("4*batch"), size("batch")) = size(4)

A size that is no product, such as "2*time - 1", is a symbol of its own: it equals itself and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir


class Size(NamedTuple):
    """``coefficient`` times the product of ``symbols`` (sorted; each stands for a positive whole number)."""

    coefficient: int
    symbols: tuple[str, ...] = ()


ONE = Size(1)


def size(axis: int | str) -> Size:
    """Read a size as shape inference writes it."""
    if isinstance(axis, int):
        return Size(axis)
    factors = axis.split("*")
    if not all(re.fullmatch(r"[\w.:/]+", factor) for factor in factors):
        return Size(1, (axis,))
    coefficient, symbols = 1, list[str]()
    for factor in factors:
        if factor.isdigit():
            coefficient *= int(factor)
        else:
            symbols.append(factor)
    return Size(coefficient, tuple(sorted(symbols)))


def dimension(size: Size) -> int | str:
    """The inverse of ``size``."""
    if not size.symbols:
        return size.coefficient
    return "*".join(([str(size.coefficient)] if size.coefficient != 1 else []) + list(size.symbols))


def divide(dividend: Size, divisor: Size) -> Size | None:
    """The quotient when it is a product again, else None."""
    rest = Counter(dividend.symbols)
    rest.subtract(divisor.symbols)
    if divisor.coefficient == 0 or dividend.coefficient % divisor.coefficient or any(n < 0 for n in rest.values()):
        return None
    return Size(dividend.coefficient // divisor.coefficient, tuple(sorted(rest.elements())))


def product(sizes: Sequence[Size]) -> Size:
    """Of all of them."""
    coefficient, symbols = 1, list[str]()
    for each in sizes:
        coefficient *= each.coefficient
        symbols += each.symbols
    return Size(coefficient, tuple(sorted(symbols)))


def sizes_of(value: ir.Value | None) -> list[Size] | None:
    """The sizes of a value's axes; None when one of them is unknown."""
    if value is None or value.shape is None:
        return None
    axes = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
    return [size(axis) for axis in axes if axis is not None] if None not in axes else None


def reshape_target(before: Sequence[Size], after: Sequence[Size]) -> list[int] | None:
    """The constant second input of a Reshape: 0 copies an axis, -1 is worked out; None when two would need that."""
    target = [
        each.coefficient if not each.symbols else 0 if index < len(before) and each == before[index] else -1
        for index, each in enumerate(after)
    ]
    return target if target.count(-1) <= 1 and Size(0) not in after else None
