"""Graphs of a few nodes for the tests of quantisation, and what is done with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from optimize import rewriting
from optimize.benchmark import session
from optimize.quantize.calibration import observe
from optimize.quantize.method import Method, Ranges
from optimize.target_runtime import CONTRIB_OPERATORS, MAX_OPSETS

Array = NDArray[Any]
CONTRIB = "com.microsoft"


def graph(
    nodes: Sequence[NodeProto], constants: Mapping[str, Array], x: Array, rank_out: int | None = None, opset: int = 17
) -> ModelProto:
    """A checked model from ``x`` (batch first, the other axes dynamic but the last) to ``y``."""
    last = x.shape[-1] if x.ndim > 1 else None
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    shape: list[Any] = [None if x.ndim == 1 else "batch", *(f"axis_{axis}" for axis in range(1, x.ndim - 1)), last]
    rank_out = x.ndim if rank_out is None else rank_out
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, shape[-x.ndim :])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"out_{axis}" for axis in range(rank_out)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return model


def answer(model: ModelProto, x: Array) -> Array:
    result: Array = session(model.SerializeToString()).run(["y"], {"x": x})[0]
    return result


def rewritten(
    model: ModelProto, method: Method, ranges: Ranges | None = None, feeds: Iterable[Array] = ()
) -> ModelProto:
    """All nodes of the method's operator rewritten, those in bodies too; checked against the target runtime."""
    opened = rewriting.read(model)
    nodes = [node for node in opened.graph.all_nodes() if node.op_type == method.operator]
    assert nodes
    for node in nodes:
        assert not method.refuses(node), method.refuses(node)
    names = [name for node in nodes for name in method.calibrated(node)]
    if names and ranges is None:
        ranges = observe(model, names, [{"x": x} for x in feeds])
    for node in nodes:
        method.rewrite(node, ranges or {})
    result = rewriting.written(opened)
    onnx.checker.check_model(result)
    assert all(entry.version <= MAX_OPSETS[entry.domain] for entry in result.opset_import)
    contrib = {node.op_type for node in rewriting.read(result).graph.all_nodes() if node.domain == CONTRIB}
    assert contrib <= CONTRIB_OPERATORS
    return result


def reason(model: ModelProto, method: Method) -> str:
    """Why the method refuses the only node of its operator."""
    (node,) = [node for node in rewriting.read(model).graph.all_nodes() if node.op_type == method.operator]
    return method.refuses(node)


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in rewriting.read(model).graph.all_nodes())


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def company(batch: int, *shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows of very different size: an outlier, a whisper and a row of zeros among normal ones."""
    rows = normal(batch, *shape, seed=seed)
    rows[1 % batch] *= 1000
    rows[2 % batch] *= 1e-3
    rows[3 % batch] = 0 if batch > 3 else rows[3 % batch]
    return rows


def drift(model: ModelProto, x: Array) -> float:
    """How much an answer alone differs from the same one in the batch ``x``."""
    opened = session(model.SerializeToString())
    together = opened.run(["y"], {"x": x})[0]
    alone = np.concatenate([opened.run(["y"], {"x": x[i : i + 1]})[0] for i in range(len(x))])
    return float(np.abs(alone - together).max())


def relative_error(found: Array, expected: Array) -> float:
    """Root mean square of the difference over that of ``expected``."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))
