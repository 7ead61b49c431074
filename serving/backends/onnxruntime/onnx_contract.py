"""Whether a model's configuration and its ONNX graph agree, judged as Triton's C++ onnxruntime backend judges.

Nothing is completed or corrected: what this accepts, the official backend loads too, and what that one rejects is
rejected here, at load, with the tensor's name, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

_TYPES: dict[str, tuple[str, type[np.generic]]] = {  # config.pbtxt -> (ONNX Runtime, numpy)
    "TYPE_BOOL": ("tensor(bool)", np.bool_),
    "TYPE_UINT8": ("tensor(uint8)", np.uint8),
    "TYPE_UINT16": ("tensor(uint16)", np.uint16),
    "TYPE_UINT32": ("tensor(uint32)", np.uint32),
    "TYPE_UINT64": ("tensor(uint64)", np.uint64),
    "TYPE_INT8": ("tensor(int8)", np.int8),
    "TYPE_INT16": ("tensor(int16)", np.int16),
    "TYPE_INT32": ("tensor(int32)", np.int32),
    "TYPE_INT64": ("tensor(int64)", np.int64),
    "TYPE_FP16": ("tensor(float16)", np.float16),
    "TYPE_FP32": ("tensor(float)", np.float32),
    "TYPE_FP64": ("tensor(double)", np.float64),
}

# Settings that change what a request means. Serving the model as if they were absent would answer wrongly.
_UNSUPPORTED = ("ensemble_scheduling", "batch_input", "batch_output")
_UNSUPPORTED_OF_TENSORS = ("allow_ragged_batch", "is_shape_tensor", "is_non_linear_format_io", "optional")

_CONTROL_TYPES = {
    "int32_false_true": "TYPE_INT32",
    "fp32_false_true": "TYPE_FP32",
    "bool_false_true": "TYPE_BOOL",
}


class ContractError(ValueError):
    """The configuration cannot be served with this graph."""


class GraphTensor(Protocol):
    """An input or output of a graph, as ONNX Runtime describes it: a dynamic size is a name or None."""

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True)
class Tensor:
    """What a request or an answer holds under ``name``.

    shape: without the batch axis if the model batches; -1 where any size is welcome.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def is_floating(self) -> bool:
        return self.dtype.kind == "f"

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of ``shape`` (without the batch axis) is one of these."""
        if shape == self.shape:  # nearly always, and much quicker
            return True
        return len(shape) == len(self.shape) and all(
            size == want or want == -1 for size, want in zip(shape, self.shape, strict=True)
        )


@dataclass(frozen=True)
class Contract:
    """The tensors of a model, in the configuration's order, and how many rows one run may have (0: no batch axis).

    inputs: what a request brings, the control inputs that Triton adds included; not the states.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int


def check(
    config: dict[str, Any], graph_inputs: Sequence[GraphTensor], graph_outputs: Sequence[GraphTensor]
) -> Contract:
    """The contract of a model; raises ContractError if configuration and graph disagree.

    config: config.pbtxt as Triton passes it, parsed from JSON. Every graph input must be configured; graph outputs may
    be left out. An input that the graph leaves dynamic may be narrower in the configuration, an output may not.
    """
    _check_supported(config)
    max_batch = int(config["max_batch_size"])
    inputs = {tensor.name: tensor for tensor in graph_inputs}
    outputs = {tensor.name: tensor for tensor in graph_outputs}
    configured = [*config["input"], *_control_inputs(config)]
    names = [entry["name"] for entry in configured]
    names += [state["input_name"] for state in config.get("sequence_batching", {}).get("state", [])]
    if len(names) != len(inputs):
        raise ContractError(
            f"configuration expects {len(names)} inputs "
            f"({_names(names)}), model provides {len(inputs)} ({_names(inputs)})"
        )
    return Contract(
        tuple(match(entry, inputs, max_batch, "input") for entry in configured),
        tuple(match(entry, outputs, max_batch, "output") for entry in config["output"]),
        max_batch,
    )


def _check_supported(config: dict[str, Any]) -> None:
    for setting in _UNSUPPORTED:
        if config.get(setting):
            raise ContractError(f"'{setting}' is not supported by this backend")
    if config.get("model_transaction_policy", {}).get("decoupled"):
        raise ContractError("an ONNX model cannot be decoupled")
    for kind in ("input", "output"):
        for entry in config[kind]:
            for setting in _UNSUPPORTED_OF_TENSORS:
                if entry.get(setting):
                    raise ContractError(f"{kind} '{entry['name']}': '{setting}' is not supported by this backend")


def _control_inputs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What Triton tells the graph of a sequence, START and the like, as entries of one value each."""
    entries = []
    for entry in config.get("sequence_batching", {}).get("control_input", []):
        for control in entry["control"]:
            typed = [dtype for values, dtype in _CONTROL_TYPES.items() if control.get(values)]
            dtype = typed[0] if typed else control["data_type"]
            entries.append({"name": entry["name"], "data_type": dtype, "dims": [1]})
    return entries


def match(entry: dict[str, Any], graph: dict[str, GraphTensor], max_batch: int, kind: str) -> Tensor:
    """The tensor that ``entry`` of a configuration declares; raises ContractError if ``graph`` has no such one.

    kind: what the message calls it; an "output" must be declared exactly as it is.
    """
    name, dtype = entry["name"], entry["data_type"]
    if name not in graph:
        raise ContractError(f"unexpected {kind} '{name}' in the configuration; the model has {_names(graph)}")
    if dtype not in _TYPES:
        raise ContractError(f"unsupported datatype {dtype} for {kind} '{name}'")
    onnx_type, numpy_type = _TYPES[dtype]
    if onnx_type != graph[name].type:
        raise ContractError(
            f"configuration expects datatype {dtype} for {kind} '{name}', model provides {graph[name].type}"
        )
    dims = entry["reshape"].get("shape", []) if "reshape" in entry else entry["dims"]
    shape = tuple(int(size) for size in dims)
    model_shape = tuple(size if isinstance(size, int) else -1 for size in graph[name].shape)
    if max_batch > 0 and (not model_shape or model_shape[0] != -1):
        raise ContractError(
            f"{kind} '{name}': max_batch_size is {max_batch}, so the model's first "
            f"dimension must be dynamic, but its shape is {list(model_shape)}"
        )
    wanted = (-1, *shape) if max_batch > 0 else shape
    if not model_shape:  # a scalar; Triton has no way to write that other than [1]
        agree = all(size == 1 for size in wanted)
    elif kind != "output":
        agree = len(wanted) == len(model_shape) and all(
            have in (-1, want) for have, want in zip(model_shape, wanted, strict=True)
        )
    else:
        agree = wanted == model_shape
    if not agree:
        raise ContractError(
            f"{kind} '{name}': the model has shape {list(model_shape)}, "
            f"the configuration specifies {list(wanted)}" + (" (batch dimension included)" if max_batch > 0 else "")
        )
    return Tensor(name, np.dtype(numpy_type), shape)


def _names(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
