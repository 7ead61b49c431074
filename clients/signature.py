"""What a model takes and gives, as the server describes it, and the checks made before sending and after receiving.

The server is the authority: its metadata has names, datatypes and shapes, its configuration the largest batch. A
request is checked here, in one place for every protocol, so that a mistake is told in the caller's terms (numpy
dtypes, axes) and costs no round trip. Answers are checked too: a server whose worker is broken can answer "success"
with a tensor of the wrong size.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.errors import InvalidRequest, ServerError

Array = NDArray[Any]

ANY_SIZE = -1
TRITON_IDLE_LIMIT_US = 1_000_000  # of a sequence model that names none
LABELS_PREFIX = "labels."  # of a parameter in the model's configuration, before an output's name
SHAPE_PREFIX, BUCKETS_PREFIX = "shape.", "buckets."  # likewise, before a tensor's and an axis' name
VOCABULARY = "vocabulary"  # likewise

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"),
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.dtype("object"),
}
DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """A named tensor with its batch axis, if the model has one.

    datatype: as the KServe v2 protocol calls it, such as FP32. shape: sizes; -1 is any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Signature:
    """One version of one model. max_batch: the most rows of a request; 0 means that there is no batch axis.

    idle_limit_s: how long a stream's state outlives its last request; None: the model keeps no state between requests.
    labels: of outputs that hold indices, what each index stands for, where the configuration says so (a JSON list).
    buckets: of tensors whose first axis is of any size, the sizes to pad to, where it says so. vocabulary: the file by
    which texts become what the model reads, or empty.
    State tensors are the server's own business: it lists them neither as inputs nor as outputs.
    """

    model: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    idle_limit_s: float | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    vocabulary: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, metadata: Mapping[str, Any], config: Mapping[str, Any], version: str = "") -> Signature:
        """Read the server's own description (JSON of either protocol: gRPC writes 64-bit sizes as strings).

        version: the one that was asked for; empty is the server's choice, the highest of those it serves.
        """
        optional = {entry["name"] for entry in config.get("input", ()) if entry.get("optional")}

        def tensors(entries: list[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            return tuple(
                Tensor(
                    name=entry["name"],
                    datatype=entry["datatype"],
                    shape=tuple(int(size) for size in entry.get("shape", ())),
                    optional=entry["name"] in optional,
                )
                for entry in entries
            )

        return cls(
            model=metadata["name"],
            version=version or max(metadata.get("versions", ["1"]), key=int),
            inputs=tensors(metadata.get("inputs", [])),
            outputs=tensors(metadata.get("outputs", [])),
            max_batch=int(config.get("max_batch_size", 0)),
            idle_limit_s=_idle_limit_s(config),
            labels=_labels(metadata["name"], config),
            buckets=_buckets(metadata["name"], config),
            vocabulary=_vocabulary(metadata["name"], config),
        )

    def checked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The request's arrays in the model's order, contiguous. Raises InvalidRequest for the first that is wrong."""
        ordered: dict[str, Array] = {}
        for tensor in self.inputs:
            if tensor.name in inputs:
                self._check_input(tensor, inputs[tensor.name])
                ordered[tensor.name] = np.ascontiguousarray(inputs[tensor.name])
            elif not tensor.optional:
                self._check_names(inputs)
                raise InvalidRequest(f"model '{self.model}' needs the input {self._describe(tensor)}; it was not given")
        if len(ordered) < len(inputs):
            self._check_names(inputs)
        self._check_batch(ordered)
        return ordered

    def check_answer(self, outputs: Mapping[str, Array], rows: int | None) -> None:
        """Raise ServerError unless every promised output is there with its dtype and shape, for ``rows`` rows."""
        for tensor in self.outputs:
            if tensor.name not in outputs:
                raise ServerError(
                    f"{self._promise(tensor)}, but the answer has only {', '.join(outputs) or 'no tensors'}"
                )
            array = outputs[tensor.name]
            shape = (rows, *tensor.shape[1:]) if self.max_batch and rows is not None else tensor.shape
            if array.dtype != DTYPES.get(tensor.datatype) or not _fits(array.shape, shape):
                raise ServerError(f"{self._promise(tensor)}, but the answer is {_kind_of(array)}")

    def rows(self, inputs: Mapping[str, Array]) -> int | None:
        """How many rows a checked request has; None where the model has no batch axis."""
        return next((len(array) for array in inputs.values()), None) if self.max_batch else None

    def _check_names(self, inputs: Mapping[str, Array]) -> None:
        known = {tensor.name for tensor in self.inputs}
        for name in inputs:
            if name not in known:
                expected = ", ".join(self._describe(tensor) for tensor in self.inputs)
                raise InvalidRequest(f"model '{self.model}' has no input '{name}'; its inputs are {expected}")

    def _check_input(self, tensor: Tensor, array: Array) -> None:
        if not isinstance(array, np.ndarray):
            raise InvalidRequest(self._mismatch(tensor, type(array).__name__) + "; give a numpy array")
        expected = DTYPES.get(tensor.datatype)
        if expected is None:
            raise InvalidRequest(f"{self._describe(tensor)}: numpy has no such datatype; this client cannot send it")
        if array.dtype != expected:
            raise InvalidRequest(self._mismatch(tensor, _kind_of(array)) + f"; convert with .astype('{expected}')")
        if not _fits(array.shape, tensor.shape):
            lacks_batch = self.max_batch and _fits(array.shape, tensor.shape[1:])
            hint = "; add the batch axis with array[None]" if lacks_batch else ""
            raise InvalidRequest(self._mismatch(tensor, _kind_of(array)) + hint)
        if expected.kind == "f" and not _is_finite(array):
            wrong = ~np.isfinite(array)
            place = tuple(int(index) for index in np.argwhere(wrong)[0])
            raise InvalidRequest(
                f"input '{tensor.name}' of model '{self.model}': {int(wrong.sum())} of {array.size} values are NaN "
                f"or infinite, the first at {place}; fill or drop them"
            )

    def _check_batch(self, inputs: Mapping[str, Array]) -> None:
        if not self.max_batch:
            return
        rows = {name: len(array) for name, array in inputs.items()}
        if len(set(rows.values())) > 1:
            came = ", ".join(f"'{name}' has {count}" for name, count in rows.items())
            raise InvalidRequest(f"the inputs of model '{self.model}' differ in rows: {came}; give all the same")
        for name, count in rows.items():
            if not 1 <= count <= self.max_batch:
                raise InvalidRequest(
                    f"model '{self.model}' takes 1 to {self.max_batch} rows a request, but '{name}' has {count}; "
                    "split the request"
                )

    def _promise(self, tensor: Tensor) -> str:
        return f"model '{self.model}' version {self.version} promises the output {self._describe(tensor)}"

    def _mismatch(self, tensor: Tensor, came: str) -> str:
        return f"input '{tensor.name}' of model '{self.model}': expected {self._kind(tensor)}, got {came}"

    def _describe(self, tensor: Tensor) -> str:
        return f"'{tensor.name}' {self._kind(tensor)}"

    def _kind(self, tensor: Tensor) -> str:
        sizes = ["any" if size == ANY_SIZE else str(size) for size in tensor.shape]
        if self.max_batch and sizes:
            sizes[0] = "batch"
        dtype = DTYPES.get(tensor.datatype)
        return f"{dtype or tensor.datatype} ({', '.join(sizes)})"


def _idle_limit_s(config: Mapping[str, Any]) -> float | None:
    batching = config.get("sequence_batching")
    if batching is None:
        return None
    return (int(batching.get("max_sequence_idle_microseconds", 0)) or TRITON_IDLE_LIMIT_US) / 1e6


def _labels(model: str, config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    labels = {}
    for key, value in config.get("parameters", {}).items():
        if key.startswith(LABELS_PREFIX):
            try:
                listed = json.loads(value["string_value"])
            except (ValueError, KeyError):
                listed = None
            if not isinstance(listed, list) or not all(isinstance(label, str) for label in listed):
                raise ServerError(
                    f"model '{model}': expected a JSON list of texts in the parameter '{key}' of its configuration, "
                    f"got '{value.get('string_value')}'; publish it again"
                )
            labels[key.removeprefix(LABELS_PREFIX)] = tuple(listed)
    return labels


def _buckets(model: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    texts = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
    buckets = {}
    for key, text in texts.items():
        sizes = texts.get(BUCKETS_PREFIX + text.split(",")[0]) if key.startswith(SHAPE_PREFIX) else None
        if sizes is not None:
            try:
                buckets[key.removeprefix(SHAPE_PREFIX)] = tuple(int(size) for size in sizes.split(","))
            except ValueError:
                raise ServerError(
                    f"model '{model}': expected sizes such as 8,16 in the parameter '{BUCKETS_PREFIX}"
                    f"{text.split(',')[0]}' of its configuration, got '{sizes}'; publish it again"
                ) from None
    return buckets


def _vocabulary(model: str, config: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(config.get("parameters", {})[VOCABULARY]["string_value"], validate=True)
    except KeyError:
        return b""
    except ValueError:
        raise ServerError(
            f"model '{model}': expected a file in base64 in the parameter '{VOCABULARY}' of its configuration; "
            "publish it again"
        ) from None


def _is_finite(array: Array) -> bool:
    """Whether all are finite. NaN and infinities survive a sum of squares, which is cheaper than to look at each.

    Large numbers overflow it too, so only the good news is final.
    """
    return isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _kind_of(array: Array) -> str:
    return f"{array.dtype} {array.shape}"


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        wanted in (ANY_SIZE, size) for size, wanted in zip(shape, expected, strict=True)
    )
