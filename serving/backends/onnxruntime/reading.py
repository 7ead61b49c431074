"""A request's arrays, checked against the model's contract.

    arrays, rows = read(contract, request)      # in the order of contract.inputs, without copies

This runs once for each request, while the others of the instance wait, so what costs microseconds is avoided here.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx_contract import Contract
from openings import Step
from turns import Turn

Array = npt.NDArray[Any]


class RequestError(ValueError):
    """The client's mistake: what was expected of the tensor and what came."""


class Work(NamedTuple):
    """A request that passed the checks: its place among the requests, and its arrays in the order of the inputs.

    turn, slot: of a stream's request. step: of one whose stream still begins as others did.
    """

    place: int
    request: Any
    arrays: list[Array]
    rows: int
    turn: Turn | None = None
    slot: int = 0
    step: Step | None = None


def read(contract: Contract, request: Any) -> tuple[list[Array], int]:
    """The request's arrays and how many rows they have; raises RequestError naming the tensor that is wrong."""
    given = {tensor.name(): tensor for tensor in request.inputs()}
    batched = contract.max_batch > 0
    arrays: list[Array] = []
    rows = None
    for tensor in contract.inputs:
        if tensor.name not in given:
            raise RequestError(f"input '{tensor.name}' is missing")
        array = given[tensor.name].as_numpy()
        shape = array.shape
        if array.dtype != tensor.dtype:
            raise RequestError(f"input '{tensor.name}': expected {tensor.dtype}, got {array.dtype}")
        if not tensor.fits(shape[1:] if batched else shape):
            wanted = [*(["batch"] if batched else []), *tensor.shape]
            raise RequestError(f"input '{tensor.name}': expected shape {_shape(wanted)}, got {_shape(shape)}")
        if not array.size:
            raise RequestError(f"input '{tensor.name}': shape {_shape(shape)} holds nothing")
        if tensor.is_floating and not _is_finite(array):
            where = np.argwhere(~np.isfinite(array))[0]
            raise RequestError(
                f"input '{tensor.name}': expected finite numbers, got {array[tuple(where)]} at {_shape(where)}"
            )
        if batched:
            if rows is not None and shape[0] != rows:
                raise RequestError(f"input '{tensor.name}': expected {rows} rows like the first input, got {shape[0]}")
            rows = shape[0]
        arrays.append(array)
    return arrays, rows or 1


def _is_finite(array: Array) -> bool:
    """Whether all are finite. NaN and infinities survive a sum of squares, a third of the time of looking at each.

    Large numbers overflow it too, so only the good news is final.
    """
    return isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _shape(sizes: Any) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"
