"""Models of a few nodes, each with one property that a test needs, and a repository that holds them.

| model    | computes                                                        | good for                             |
|----------|-----------------------------------------------------------------|--------------------------------------|
| `double` | `y` = 2 `x`; `rows` = rows in the run                           | what ran together; the response cache |
| `sums`   | `total` = `x` summed over a dynamic time axis; `scaled` = 3 `x` | shapes, several outputs              |
| `lookup` | `value` = a table of 3 entries at `index`                       | a model that fails on some input     |
| `slow`   | `done` = `steps`, after that many matrix products               | requests that are still in flight    |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from optimize.specs import ModelSpec, ServingSpec, TensorSpec
from optimize.triton_config import to_config, to_text

PLAIN = ServingSpec()
# Four single requests that come together run as one batch of exactly four: until then Triton waits.
GATHERS_FOUR = ServingSpec(preferred_batch=(4,), queue_delay_us=2_000_000)


@dataclass(frozen=True)
class TinyModel:
    """A model's description and its graph."""

    spec: ModelSpec
    graph: onnx.ModelProto
    serving: ServingSpec = PLAIN

    def write(self, repository: Path, version: int = 1) -> Path:
        """Put config.pbtxt and model.onnx where Triton looks for them; returns the model's folder."""
        folder = repository / self.spec.name
        (folder / str(version)).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(to_text(to_config(self.spec, self.serving)))
        onnx.save(self.graph, folder / str(version) / "model.onnx")
        return folder


def double(name: str = "double", serving: ServingSpec = PLAIN) -> TinyModel:
    spec = ModelSpec(
        name,
        inputs=(TensorSpec("x", "float32", (4,)),),
        outputs=(TensorSpec("y", "float32", (4,)), TensorSpec("rows", "int64", (1,))),
        max_batch=8,
    )
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["y"]),
        helper.make_node("Shape", ["x"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "one"], ["wide"], axis=0),
        helper.make_node("Expand", ["count", "wide"], ["rows"]),
    ]
    return TinyModel(spec, _model(spec, nodes, {"two": np.float32(2), "one": np.array([1])}), serving)


def sums(name: str = "sums", serving: ServingSpec = PLAIN) -> TinyModel:
    spec = ModelSpec(
        name,
        inputs=(TensorSpec("x", "float32", ("time", 2)),),
        outputs=(TensorSpec("total", "float32", (2,)), TensorSpec("scaled", "float32", ("time", 2))),
        max_batch=8,
    )
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0),
        helper.make_node("Mul", ["x", "three"], ["scaled"]),
    ]
    return TinyModel(spec, _model(spec, nodes, {"axis": np.array([1]), "three": np.float32(3)}), serving)


def lookup(name: str = "lookup", serving: ServingSpec = PLAIN) -> TinyModel:
    """Holds 10, 20 and 30; an index beyond them makes the whole run fail."""
    spec = ModelSpec(
        name,
        inputs=(TensorSpec("index", "int64", (1,)),),
        outputs=(TensorSpec("value", "float32", (1,)),),
        max_batch=8,
    )
    nodes = [helper.make_node("Gather", ["table", "index"], ["value"])]
    return TinyModel(spec, _model(spec, nodes, {"table": np.array([10, 20, 30], np.float32)}), serving)


def slow(name: str = "slow", serving: ServingSpec = PLAIN) -> TinyModel:
    """Takes a few microseconds a step, one request at a time."""
    spec = ModelSpec(
        name,
        inputs=(TensorSpec("steps", "int64", (1,)),),
        outputs=(TensorSpec("done", "int64", (1,)),),
        max_batch=1,
    )
    step = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still_go_on"]),
            helper.make_node("MatMul", ["before", "identity"], ["after"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("step", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", onnx.TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("still_go_on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", onnx.TensorProto.FLOAT, [64, 64]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["steps"], ["count"], keepdims=0),
        helper.make_node("Loop", ["count", "", "identity"], ["last"], body=step),
        helper.make_node("Cast", ["last"], ["whole"], to=onnx.TensorProto.INT64),
        helper.make_node("ReduceMax", ["whole"], ["one"], keepdims=0),
        helper.make_node("Mul", ["steps", "one"], ["done"]),
    ]
    return TinyModel(spec, _model(spec, nodes, {"identity": np.eye(64, dtype=np.float32)}), serving)


def write_repository(repository: Path) -> None:
    """The models of the shared server: each of the first three, and for two of them one that gathers four requests."""
    for model in (
        double(),
        double("double_of_four", GATHERS_FOUR),
        double("double_cached", ServingSpec(response_cache=True)),
        sums(),
        lookup(),
        lookup("lookup_of_four", GATHERS_FOUR),
    ):
        model.write(repository)


def _model(spec: ModelSpec, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        spec.name,
        [_value(tensor) for tensor in spec.inputs],
        [_value(tensor) for tensor in spec.outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, ["batch", *tensor.shape])
