"""A request as JSON, for programs without a client: the body of ``POST /v2/models/<model>/infer`` (KServe v2).

    {"inputs": [{"name": "history", "datatype": "FP32", "shape": [1, 72, 16], "data": [5113.2, 17.1, ...]}, ...]}

Plain JSON numbers are readable and work from any language, but are larger and slower than the bytes that the
clients send.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from clients.signature import DATATYPES, DTYPES, Array


def encode(inputs: Mapping[str, Array]) -> str:
    """The request body. Numbers are written so that reading them back gives the same bits."""
    return json.dumps({"inputs": [_entry(name, array) for name, array in inputs.items()]}, allow_nan=False)


def decode(body: str) -> dict[str, Array]:
    """The arrays of a request's ``inputs``, or of an answer's ``outputs``, by name."""
    message = json.loads(body)
    return {
        entry["name"]: np.array(entry["data"], DTYPES[entry["datatype"]]).reshape(entry["shape"])
        for entry in message.get("inputs", message.get("outputs", []))
    }


def _entry(name: str, array: Array) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": DATATYPES[np.dtype(array.dtype)],
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
    }
