"""What an ONNX file shows to whoever serves it: its inputs and outputs in Triton's terms, and every operator in it.

Reads the structure only; weights kept in external files are not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from optimize.errors import UserError

TRITON_TYPE_OF: dict[int, str] = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT16: "TYPE_INT16",
    TensorProto.INT8: "TYPE_INT8",
    TensorProto.UINT64: "TYPE_UINT64",
    TensorProto.UINT32: "TYPE_UINT32",
    TensorProto.UINT16: "TYPE_UINT16",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.STRING: "TYPE_STRING",
}


class OnnxFileError(UserError, ValueError):
    """The file is missing, damaged, or not an ONNX model."""


@dataclass(frozen=True)
class Port:
    """An input or output of the graph.

    dtype: Triton's name; shape: with the batch axis, -1 where it is dynamic; axes: the names of the dynamic ones.
    """

    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class OnnxInterface:
    """inputs, outputs: by name, in the graph's order. nodes: of the graph and of all bodies and functions in it."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    nodes: tuple[NodeProto, ...]
    functions: frozenset[tuple[str, str]]
    opsets: dict[str, int]
    ir_version: int


def read_interface(path: Path) -> OnnxInterface:
    """Read and check the file. Raises OnnxFileError if it is missing, damaged or breaks the ONNX specification."""
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))  # by path: finds external weights, and has no limit of 2 GB
    except OSError as error:
        raise OnnxFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OnnxFileError(f"{path}: not a sound ONNX model ({reason}); export it again") from error
    return interface(model)


def interface(model: ModelProto) -> OnnxInterface:
    """What a model shows."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return OnnxInterface(
        inputs={value.name: _port(value) for value in model.graph.input if value.name not in initializers},
        outputs={value.name: _port(value) for value in model.graph.output},
        nodes=tuple(all_nodes(model)),
        functions=frozenset((function.domain, function.name) for function in model.functions),
        opsets={entry.domain: entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
    )


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node, those in the bodies of If, Loop and Scan and in the model's own functions included."""
    return _walk([*model.graph.node, *(node for function in model.functions for node in function.node)])


def _port(value: ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    axes = tuple(dim.dim_param for dim in tensor.shape.dim)
    return Port(TRITON_TYPE_OF.get(tensor.elem_type, f"ONNX type {tensor.elem_type}"), shape, axes)


def _walk(nodes: list[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and, depth first, those in the bodies of their If, Loop and Scan attributes."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
            for body in bodies:
                yield from _walk(list(body.node))
