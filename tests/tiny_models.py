"""Models of a few nodes, each with one property that a test needs, and a repository that holds them.

| model    | computes                                                        | good for                             |
|----------|-----------------------------------------------------------------|--------------------------------------|
| `double` | `y` = 2 `x`; `rows` = rows in the run                           | what ran together; the response cache |
| `sums`   | `total` = `x` summed over a dynamic time axis; `scaled` = 3 `x` | shapes, several outputs              |
| `lookup` | `value` = a table of 3 entries at `index`                       | a model that fails on some input     |
| `slow`   | `done` = `steps`, after that many matrix products               | requests that are still in flight    |
| `listen` | of a stream's `pcm`: its running sum as `tokens`, its loudness   | what a stream carries along          |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as pb

from optimize.specs import ModelSpec, ServingSpec, StateSpec, TensorSpec
from optimize.triton_config import to_config, to_text

PLAIN = ServingSpec()
# Four single requests that come together run as one batch of exactly four: until then Triton waits.
GATHERS_FOUR = ServingSpec(preferred_batch=(4,), queue_delay_us=2_000_000)
DIRECT = ServingSpec(strategy="direct", idle_us=5_000_000)
LISTEN_CHUNK = 16  # samples


@dataclass(frozen=True)
class TinyModel:
    """A model's description and its graph. controls: what Triton tells the graph of a stream with each request."""

    spec: ModelSpec
    graph: onnx.ModelProto
    serving: ServingSpec = PLAIN
    controls: tuple[pb.ModelSequenceBatching.ControlInput, ...] = ()

    @property
    def config(self) -> pb.ModelConfig:
        config = to_config(self.spec, self.serving)
        if self.controls:
            config.sequence_batching.control_input.extend(self.controls)
        return config

    def write(self, repository: Path, version: int = 1) -> Path:
        """Put config.pbtxt and model.onnx where Triton looks for them; returns the model's folder."""
        folder = repository / self.spec.name
        (folder / str(version)).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(to_text(self.config))
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


def listen(name: str = "listen", serving: ServingSpec = PLAIN, time: int | str = LISTEN_CHUNK) -> TinyModel:
    """A stream with the shape of speech: one frame for each sample, two states, a ragged last chunk.

    The sum over all samples so far, an int64, decides on `log_probs` and `tokens`, so that chunks of any size give
    the same ones. `level` is a float32 that fades from request to request. A length over 4,095 makes the run fail.
    """
    spec = ModelSpec(
        name,
        inputs=(TensorSpec("pcm", "int16", (time,)), TensorSpec("lengths", "int32", (1,))),
        outputs=(
            TensorSpec("log_probs", "float32", (time, 3)),
            TensorSpec("tokens", "int64", (time,)),
            TensorSpec("output_lengths", "int64", (1,)),
            TensorSpec("level", "float32", (16,)),
            TensorSpec("rows", "int64", (1,)),
        ),
        states=(StateSpec("sum", "int64", (1,)), StateSpec("level", "float32", (16,))),
        max_batch=32,
    )
    nodes = [
        helper.make_node("Gather", ["table", "lengths"], ["output_lengths"]),
        helper.make_node("Shape", ["pcm"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["pcm"], ["time"], start=1, end=2),
        helper.make_node("Squeeze", ["time"], ["end"]),
        helper.make_node("Range", ["zero", "end", "one"], ["places"]),
        helper.make_node("Less", ["places", "output_lengths"], ["meant"]),
        helper.make_node("Cast", ["pcm"], ["samples"], to=onnx.TensorProto.INT64),
        helper.make_node("Where", ["meant", "samples", "zero"], ["heard"]),
        helper.make_node("CumSum", ["heard", "one"], ["sums"]),
        helper.make_node("Add", ["sums", "state_sum"], ["all_sums"]),
        helper.make_node("Mod", ["all_sums", "thousand"], ["residues"]),
        helper.make_node("Cast", ["residues"], ["numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["numbers", "thousand_float"], ["flat_first"]),
        helper.make_node("Unsqueeze", ["flat_first", "two"], ["first"]),
        helper.make_node("Sub", ["one_float", "first"], ["second"]),
        helper.make_node("Mul", ["second", "second"], ["third"]),
        helper.make_node("Concat", ["first", "second", "third"], ["log_probs"], axis=2),
        helper.make_node("ArgMax", ["log_probs"], ["tokens"], axis=2, keepdims=0),
        helper.make_node("ReduceSum", ["heard", "axis"], ["sum"]),
        helper.make_node("Add", ["sum", "state_sum"], ["next_state_sum"]),
        helper.make_node("Cast", ["sum"], ["loudness"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["loudness", "weights"], ["louder"]),
        helper.make_node("Mul", ["state_level", "fading"], ["faded"]),
        helper.make_node("Add", ["faded", "louder"], ["next_state_level"]),
        helper.make_node("Identity", ["next_state_level"], ["level"]),
        helper.make_node("Concat", ["batch", "axis"], ["wide"], axis=0),
        helper.make_node("Expand", ["batch", "wide"], ["rows"]),
    ]
    constants = {
        "table": np.arange(4096),
        "zero": np.int64(0), "one": np.int64(1), "two": np.array([2]), "axis": np.array([1]),
        "thousand": np.int64(1000), "thousand_float": np.float32(1000), "one_float": np.float32(1),
        "weights": np.linspace(0.01, 0.1, 16, dtype=np.float32), "fading": np.float32(0.7),
    }  # fmt: skip
    return TinyModel(spec, _model(spec, nodes, constants), serving)


def listen_with_controls(name: str = "listen_with_controls", serving: ServingSpec = PLAIN) -> TinyModel:
    """`listen`, told READY, START and END as inputs, which it does not need."""
    model = listen(name, serving)
    control, inputs = pb.ModelSequenceBatching.Control, pb.ModelSequenceBatching.ControlInput
    controls = (
        inputs(name="READY", control=[control(kind=control.CONTROL_SEQUENCE_READY, int32_false_true=[0, 1])]),
        inputs(name="START", control=[control(kind=control.CONTROL_SEQUENCE_START, fp32_false_true=[0, 1])]),
        inputs(name="END", control=[control(kind=control.CONTROL_SEQUENCE_END, bool_false_true=[False, True])]),
    )
    for what, dtype in (("READY", "int32"), ("START", "float32"), ("END", "bool")):
        model.graph.graph.input.append(_value(TensorSpec("control", dtype, (1,))))
        model.graph.graph.input[-1].name = what
    return replace(model, controls=controls)


def write_repository(repository: Path) -> None:
    """The models of the shared server: the quick ones, and of some a second one that is scheduled otherwise."""
    for model in (
        double(),
        double("double_of_four", GATHERS_FOUR),
        double("double_cached", ServingSpec(response_cache=True)),
        sums(),
        lookup(),
        lookup("lookup_of_four", GATHERS_FOUR),
        listen(),
        listen("listen_of_four", GATHERS_FOUR),
        listen("listen_briefly", ServingSpec(max_streams=64, idle_us=300_000)),
        listen("listen_openings", ServingSpec(opening_cache_mb=1)),
        listen("listen_direct", DIRECT),
        listen_with_controls("listen_direct_with_controls", DIRECT),
    ):
        model.write(repository)


def _model(spec: ModelSpec, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    states = [TensorSpec(state.input_name, state.dtype, state.shape) for state in spec.states]
    next_states = [TensorSpec(state.output_name, state.dtype, state.shape) for state in spec.states]
    graph = helper.make_graph(
        nodes,
        spec.name,
        [_value(tensor) for tensor in (*spec.inputs, *states)],
        [_value(tensor) for tensor in (*spec.outputs, *next_states)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, ["batch", *tensor.shape])
