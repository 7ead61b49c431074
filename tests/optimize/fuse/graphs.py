"""Small graphs in ONNX's own notation, and the laws that every rewrite has to keep."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, parser

from optimize.fuse.editing import Rewrite

ATOL = 5e-6


def graph(signature: str, body: str, opset: int = 17, **constants: Any) -> ModelProto:
    """``signature`` such as "(float[batch, 4] x) => (float[batch, 4] y)"; numbers in ``constants`` become float32."""
    header = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model: ModelProto = parser.parse_model(f"{header} g {signature} {{ {body} }}")
    for name, value in constants.items():
        array = np.asarray(value)
        model.graph.initializer.append(
            numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, name)
        )
    if "com.microsoft" not in {node.domain for node in model.graph.node}:
        del model.opset_import[1]
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def feed(model: ModelProto, batch: int = 3, time: int = 5, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Seeded inputs. Boolean ones mark the last quarter of the first item: padding."""
    generator = np.random.default_rng(seed)
    values: dict[str, NDArray[Any]] = {}
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        shape = [{"batch": batch, "time": time}.get(axis.dim_param, axis.dim_value) for axis in axes]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype == np.bool_:
            flags = np.zeros(shape, np.bool_)
            flags[0, ..., -(shape[-1] // 4) or shape[-1] :] = True
            values[value.name] = flags
        elif np.issubdtype(dtype, np.integer):
            values[value.name] = generator.integers(0, 5, shape).astype(dtype)
        else:
            values[value.name] = generator.normal(size=shape).astype(dtype)
    return values


def answers(model: ModelProto, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(None, inputs)
    return results


def assert_same_answers(model: ModelProto, rewritten: ModelProto, atol: float = ATOL) -> None:
    for batch, time in ((1, 8), (3, 5)):
        inputs = feed(model, batch, time)
        for expected, found in zip(answers(model, inputs), answers(rewritten, inputs), strict=True):
            assert expected.shape == found.shape
            assert expected.dtype == found.dtype
            np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


def assert_rewritten(rewrite: Rewrite, model: ModelProto, count: int, after: str, atol: float = ATOL) -> ModelProto:
    """``count`` rewrites leave the operators ``after`` (names in any order), the interface and the answers; then none.

    The argument is not touched, the checker accepts the result.
    """
    before = model.SerializeToString(deterministic=True)
    rewritten, found = rewrite(model)
    assert model.SerializeToString(deterministic=True) == before
    assert (found, operators(rewritten)) == (count, Counter(after.split()))
    assert (rewritten.graph.input, rewritten.graph.output) == (model.graph.input, model.graph.output)
    onnx.checker.check_model(rewritten, full_check=True)
    assert_same_answers(model, rewritten, atol)
    again, more = rewrite(rewritten)
    assert (more, operators(again)) == (0, operators(rewritten))
    return rewritten


def assert_untouched(rewrite: Rewrite, model: ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    rewritten, count = rewrite(model)
    assert (count, operators(rewritten)) == (0, operators(model))
    assert_same_answers(model, rewritten, 0)
