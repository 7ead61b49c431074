"""What can be done to one operator: each ``Method`` rewrites a node of one ONNX type to compute it in low precision.

    replacement(s) of a MatMul:  dynamic   one activation scale for the tensor that has just arrived  (throughput)
                                 static    an activation scale calibrated beforehand                  (invariant)
                                 per_row   an activation scale for each row                           (invariant)

A method is *invariant* when a row of the answer never depends on the other rows of the batch. Rewrites edit the graph
in place, work inside the bodies of Scan, Loop and If too, and use only operators that the target runtime has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from optimize.errors import UserError

Profile = Literal["invariant", "throughput"]
PROFILES: tuple[Profile, ...] = ("invariant", "throughput")
FP32 = "fp32"  # the method of an operator that is left alone
STORED_ONLY = "dequantize8"  # the method that makes weights smaller and nothing faster

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest value that each activation took on the calibration data, by the name of the tensor."""


class QuantizationError(UserError):
    """Something that was asked for was not quantised."""


@dataclass(frozen=True)
class Method:
    """One way of computing one operator.

    name: as it stands in plans. operator: ONNX type of the nodes it is for. invariant: see above.
    refuses: why a node cannot be done this way, or "" if it can. calibrated: the values whose range ``rewrite`` needs.
    rewrite: replaces the node in its graph; keeps the names of its outputs. on_request: not tried unless asked for.
    """

    name: str
    operator: str
    invariant: bool
    refuses: Callable[[ir.Node], str]
    rewrite: Callable[[ir.Node, Ranges], None]
    calibrated: Callable[[ir.Node], list[str]] = lambda _: []
    on_request: bool = False
