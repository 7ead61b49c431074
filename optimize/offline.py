"""The offline twin: a streaming model's step, wrapped into a stateless model of whole recordings.

    twin_spec = offline_spec(spec, "speech_offline", buckets=(32_000, 64_000))
    twin = offline_twin(step, spec, twin_spec)    # pcm (batch, time) and lengths (batch, 1), any number of samples

The step, in fp32 or int8, becomes the body of one ONNX Scan over the chunks of the recording, its states the values
that the Scan carries, zero at the beginning. So a recording is answered to the bit as a stream of it is, a batch of
recordings runs side by side, and nothing of the model is written, exported or quantised a second time. A last chunk
that is short is filled up inside; frames beyond the recording are cut off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper, numpy_helper

from optimize.errors import UserError
from optimize.onnx_export import BATCH
from optimize.specs import LENGTHS, OUTPUT_LENGTHS, ModelSpec, TensorSpec

TIME, FRAMES = "time", "frames"
_BODY = "step/"


def offline_spec(spec: ModelSpec, name: str, buckets: tuple[int, ...]) -> ModelSpec:
    """The interface of the twin of a step: its inputs (time, ...) and outputs (frames, ...), and no states.

    buckets: of the time, to which clients pad. Raises UserError for inputs whose chunks differ in size.
    """
    sizes = {tensor.name: tensor.shape[0] for tensor in spec.inputs if tensor.name != LENGTHS}
    if len(set(sizes.values())) != 1:
        raise UserError(f"model '{spec.name}': an offline twin needs chunks of one size, got {sizes}")

    def longer(tensor: TensorSpec, axis: str) -> TensorSpec:
        whole = tensor.name in (LENGTHS, OUTPUT_LENGTHS)
        return tensor if whole else replace(tensor, shape=(axis, *tensor.shape[1:]))

    return ModelSpec(
        name,
        inputs=tuple(longer(tensor, TIME) for tensor in spec.inputs),
        outputs=tuple(longer(tensor, FRAMES) for tensor in spec.outputs),
        max_batch=spec.max_batch,
        buckets={TIME: buckets},
    )


def offline_twin(step: ModelProto, spec: ModelSpec, twin_spec: ModelSpec) -> ModelProto:
    """``step``, which ``spec`` describes, as ``twin_spec`` describes it.

    The answer has as many frames as the time has begun; ``lengths`` and ``output_lengths`` are those of the whole.
    """
    chunk = next(tensor.shape[0] for tensor in spec.inputs if tensor.name != LENGTHS)
    assert isinstance(chunk, int), "a step's size is fixed"
    wide = next(tensor.name for tensor in spec.inputs if tensor.name != LENGTHS)
    new = _Builder()
    shape = new("Shape", wide)
    batch, time = new("Gather", shape, new.constant([0])), new("Gather", shape, new.constant([1]))
    begun = new("Div", new("Add", time, new.constant([chunk - 1])), new.constant([chunk]))
    count = new("Max", begun, new.constant([1]))
    total = new("Mul", count, new.constant([chunk]))

    carried = [
        new(
            "ConstantOfShape",
            new("Concat", batch, new.constant(state.shape), axis=0),
            value=numpy_helper.from_array(np.zeros(1, state.dtype)),
        )
        for state in spec.states
    ]
    cut = [
        _lengths_by_chunk(new, tensor, count, time, chunk)
        if tensor.name == LENGTHS
        else _chunks(new, tensor, batch, new("Sub", total, time), count)
        for tensor in spec.inputs
    ]
    given = [f"{_BODY}{tensor.name}" for tensor in spec.outputs]
    final = [f"{_BODY}final/{state.what}" for state in spec.states]
    new.nodes.append(
        helper.make_node(
            "Scan",
            [*carried, *cut],
            [*final, *(f"{name}/chunks" for name in given)],
            name="chunks",
            body=_body(step.graph, spec),
            num_scan_inputs=len(cut),
            scan_input_axes=[1] * len(cut),
            scan_output_axes=[1] * len(given),
        )
    )
    for tensor in spec.outputs:
        _join(new, tensor, f"{_BODY}{tensor.name}/chunks", batch, time, chunk)
    graph = helper.make_graph(
        new.nodes,
        "offline_twin",
        [_value(tensor) for tensor in twin_spec.inputs],
        [_value(tensor) for tensor in twin_spec.outputs],
        new.constants,
    )
    twin: ModelProto = helper.make_model(graph, opset_imports=step.opset_import, ir_version=step.ir_version)
    return twin


class _Builder:
    """Nodes and constants with running names that no step has."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"whole/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: object, dtype: str = "int64") -> str:
        name = f"whole/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name


def _body(step: GraphProto, spec: ModelSpec) -> GraphProto:
    """The step with its states first, as Scan has them, under names of its own."""
    body: GraphProto = compose.add_prefix_graph(step, _BODY, rename_nodes=False)
    inputs = {value.name: value for value in body.input}
    outputs = {value.name: value for value in body.output}
    for values, names in (
        (body.input, [state.input_name for state in spec.states] + [tensor.name for tensor in spec.inputs]),
        (body.output, [state.output_name for state in spec.states] + [tensor.name for tensor in spec.outputs]),
    ):
        known = inputs if values is body.input else outputs
        ordered = [known[f"{_BODY}{name}"] for name in names]
        del values[:]
        values.extend(ordered)
    return body


def _chunks(new: _Builder, tensor: TensorSpec, batch: str, missing: str, count: str) -> str:
    """(batch, time, ...) to (batch, chunks, chunk, ...), filled up with zeros."""
    chunk, *rest = tensor.shape
    filling = new(
        "ConstantOfShape",
        new("Concat", batch, missing, *([new.constant(rest)] if rest else []), axis=0),
        value=numpy_helper.from_array(np.zeros(1, tensor.dtype)),
    )
    filled = new("Concat", tensor.name, filling, axis=1)
    return new("Reshape", filled, new("Concat", batch, count, new.constant([chunk, *rest]), axis=0))


def _lengths_by_chunk(new: _Builder, tensor: TensorSpec, count: str, time: str, chunk: int) -> str:
    """(batch, 1) to (batch, chunks, 1): what of every chunk is meant; no more than there is."""
    numbers = new("Range", new.constant(0), new("Squeeze", count), new.constant(1))
    lengths = new("Min", new("Cast", LENGTHS, to=TensorProto.INT64), time)
    left = new("Sub", lengths, new("Mul", numbers, new.constant(chunk)))
    clipped = new("Clip", left, new.constant(0), new.constant(chunk))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return new("Unsqueeze", new("Cast", clipped, to=kind), new.constant([2]))


def _join(new: _Builder, tensor: TensorSpec, chunks: str, batch: str, time: str, chunk: int) -> None:
    """(batch, chunks, frames, ...) to (batch, all frames, ...), or the sum of lengths."""
    if tensor.name == OUTPUT_LENGTHS:
        new("ReduceSum", chunks, new.constant([1]), output=tensor.name, keepdims=0)
        return
    frames, *rest = tensor.shape
    joined = new("Reshape", chunks, new("Concat", batch, new.constant([-1, *rest]), axis=0))
    begun = new("Add", new("Mul", time, new.constant([frames])), new.constant([chunk - 1]))
    end = new("Div", begun, new.constant([chunk]))
    new("Slice", joined, new.constant([0]), end, new.constant([1]), output=tensor.name)


def _value(tensor: TensorSpec) -> ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    value: ValueInfoProto = helper.make_tensor_value_info(tensor.name, kind, [BATCH, *tensor.shape])
    return value
