"""A torch module and its ModelSpec to an ONNX file with the spec's names, folded and checked.

The example batch is 2, because an example of 1 can freeze the batch axis. What comes out is never trusted: names,
dtypes, shapes, RNN weights and the target runtime's limits are checked on the file itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper
from torch import nn

from optimize import graph_rules
from optimize.errors import UserError
from optimize.models.looping import Looping
from optimize.onnx_loop import export_loop
from optimize.specs import ModelSpec, TensorSpec
from optimize.tracing import traced

BATCH = "batch"
EXAMPLE_BATCH = 2


class ExportError(UserError):
    """The exported graph is not what the ModelSpec promises; the message says where."""


def export(module: nn.Module, spec: ModelSpec, opset_version: int = 17) -> ModelProto:
    """Export ``module``; inputs and outputs are the spec's, in its order, batch first and dynamic.

    One that is ``Looping`` becomes a graph with a Loop around its step, any other is traced through its forward.
    Raises ExportError when the graph contradicts the spec or holds one of the traps of ``check``.
    """
    axes = [(tensor.name, tensor.shape) for tensor in (*spec.inputs, *spec.outputs)]
    axes += [(name, state.shape) for state in spec.states for name in (state.input_name, state.output_name)]
    dynamic = {
        name: {0: BATCH, **{i + 1: size for i, size in enumerate(shape) if isinstance(size, str)}}
        for name, shape in axes
    }
    inputs, outputs = spec.input_names, spec.output_names
    if isinstance(module, Looping):
        examples = [example_inputs(spec), example_inputs(spec, EXAMPLE_BATCH + 1, shorter=1)]
        model = export_loop(module, examples, inputs, outputs, dynamic, opset_version)
    else:
        model = traced(module, example_inputs(spec), inputs, outputs, dynamic, opset_version)
    _name_dynamic_outputs(model, spec)
    check(model, spec)
    return model


def example_inputs(
    spec: ModelSpec, batch: int = EXAMPLE_BATCH, seed: int = 0, shorter: int = 0
) -> tuple[torch.Tensor, ...]:
    """Seeded inputs in the order of ``spec.input_names``: floats are normal, integers zero, states zero.

    shorter: by how much dynamic axes are shorter than in ``example_size``.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for tensor in spec.inputs:
        shape = (batch, *(example_size(spec, size) - shorter * isinstance(size, str) for size in tensor.shape))
        dtype = getattr(torch, tensor.dtype)
        floating = torch.randn(shape, generator=generator).to(dtype)
        tensors.append(floating if dtype.is_floating_point else torch.zeros(shape, dtype=dtype))
    tensors += [torch.zeros((batch, *state.shape), dtype=getattr(torch, state.dtype)) for state in spec.states]
    return tuple(tensors)


def example_size(spec: ModelSpec, size: int | str) -> int:
    """A size for an axis: itself, or for a dynamic one its largest bucket, or 16."""
    return size if isinstance(size, int) else spec.buckets.get(size, (16,))[-1]


def check(model: ModelProto, spec: ModelSpec) -> None:
    """Hard-fail where the interface is not the spec's, and on what ``graph_rules`` finds."""
    onnx.checker.check_model(model, full_check=True)
    _check_interface(model, spec)
    for rule in graph_rules.RULES:
        for fault in rule(model):
            where = f"'{fault.node}': " if fault.node else ""
            raise ExportError(f"{where}{fault.problem}; {fault.advice}")


def save(model: ModelProto, path: Path) -> Path:
    """Write a model; the same model always gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _check_interface(model: ModelProto, spec: ModelSpec) -> None:
    states_in = [TensorSpec(state.input_name, state.dtype, state.shape) for state in spec.states]
    states_out = [TensorSpec(state.output_name, state.dtype, state.shape) for state in spec.states]
    for kind, values, expected in (
        ("inputs", model.graph.input, [*spec.inputs, *states_in]),
        ("outputs", model.graph.output, [*spec.outputs, *states_out]),
    ):
        found = [value.name for value in values]
        if found != [tensor.name for tensor in expected]:
            raise ExportError(
                f"{kind} of the graph are {found}, but the spec says {[tensor.name for tensor in expected]}"
            )
        for value, tensor in zip(values, expected, strict=True):
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            axes = [
                axis.dim_value if axis.HasField("dim_value") else axis.dim_param
                for axis in value.type.tensor_type.shape.dim
            ]
            if dtype != np.dtype(tensor.dtype):
                raise ExportError(f"'{tensor.name}' is {dtype} in the graph, but {tensor.dtype} in the spec")
            if axes[0] != BATCH:
                raise ExportError(f"'{tensor.name}': its batch axis is frozen at {axes[0]}")
            wrong = [(axis, size) for axis, size in zip(axes[1:], tensor.shape, strict=False) if axis != size]
            if len(axes) != len(tensor.shape) + 1 or wrong:
                raise ExportError(f"'{tensor.name}' is {axes[1:]} in the graph, but {list(tensor.shape)} in the spec")


def _name_dynamic_outputs(model: ModelProto, spec: ModelSpec) -> None:
    """Give outputs the spec's shape where the exporter only knows an expression of unnamed axes."""
    shapes = {tensor.name: tensor.shape for tensor in spec.outputs}
    shapes |= {state.output_name: state.shape for state in spec.states}
    for value in model.graph.output:
        for axis, size in zip(value.type.tensor_type.shape.dim, (BATCH, *shapes[value.name]), strict=False):
            if not axis.HasField("dim_value"):
                if isinstance(size, int):
                    axis.dim_value = size
                else:
                    axis.dim_param = size
