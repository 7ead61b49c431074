"""ONNX models in the wheel's Triton, with the contract of the official C++ onnxruntime backend.

A python-based backend: Triton runs one process of this file for each instance of every model whose config.pbtxt says
``backend: "onnxruntime"``, so the same repository loads unchanged where the C++ backend is installed. The process
has only the standard library, numpy, onnxruntime, triton_python_backend_utils and the modules beside this file.

All requests that Triton hands over together run as one batch. A request that cannot be answered gets an error that
names its tensor; the others of its batch do not notice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from onnx_contract import Contract, check
from session_settings import open_session, run_options

Array = npt.NDArray[Any]


class RequestError(ValueError):
    """The client's mistake: what was expected of the tensor and what came."""


@dataclass(frozen=True)
class Work:
    """A request that passed the checks: its place among the requests, and its arrays in the order of the inputs."""

    place: int
    request: Any
    arrays: list[Array]
    rows: int


class TritonPythonModel:
    """One instance of one model version; Triton calls the three public methods, one at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session, check it against the configuration, run it once. Raising here fails the load."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(
                f"numpy {np.__version__}: this Triton would answer with empty tensors; numpy < 2 is needed"
            )
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], config["default_model_filename"])
        self._session = open_session(path, config, args["model_instance_kind"], int(args["model_instance_device_id"]))
        self._run_options = run_options(config)
        self._contract: Contract = check(config, self._session.get_inputs(), self._session.get_outputs())
        self._output_names = [tensor.name for tensor in self._contract.outputs]
        self._warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order; requests of equal shapes share a run, nothing is padded."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[Work]] = {}
        for place, request in enumerate(requests):
            try:
                work = self._read(place, request)
            except RequestError as error:
                responses[place] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            groups.setdefault(self._company(work), []).append(work)
        for group in groups.values():
            self._answer(group, responses)
        return responses

    def finalize(self) -> None:
        """Release the session, and with it the device memory."""
        del self._session

    def _read(self, place: int, request: Any) -> Work:
        """The request's arrays, without copies; raises RequestError naming the tensor that is wrong."""
        given = {tensor.name(): tensor for tensor in request.inputs()}
        batched = self._contract.max_batch > 0
        arrays = []
        rows = None
        for tensor in self._contract.inputs:
            if tensor.name not in given:
                raise RequestError(f"input '{tensor.name}' is missing")
            array = given[tensor.name].as_numpy()
            if array.dtype != tensor.dtype:
                raise RequestError(f"input '{tensor.name}': expected {tensor.dtype}, got {array.dtype}")
            if not tensor.fits(array.shape[1:] if batched else array.shape):
                wanted = [*(["batch"] if batched else []), *tensor.shape]
                raise RequestError(f"input '{tensor.name}': expected shape {_shape(wanted)}, got {_shape(array.shape)}")
            if not array.size:
                raise RequestError(f"input '{tensor.name}': shape {_shape(array.shape)} holds nothing")
            if tensor.is_floating and not np.isfinite(array).all():
                where = np.argwhere(~np.isfinite(array))[0]
                raise RequestError(
                    f"input '{tensor.name}': expected finite numbers, got {array[tuple(where)]} at {_shape(where)}"
                )
            if batched and rows is not None and len(array) != rows:
                raise RequestError(
                    f"input '{tensor.name}': expected {rows} rows like the first input, got {len(array)}"
                )
            rows = len(array) if batched else 1
            arrays.append(array)
        return Work(place, request, arrays, rows or 1)

    def _company(self, work: Work) -> tuple[Any, ...]:
        """Equal for requests that may share a run: equal shapes but for the batch, and alone where there is none."""
        if self._contract.max_batch == 0:
            return (work.place,)
        return tuple(array.shape[1:] for array in work.arrays)

    def _answer(self, group: list[Work], responses: list[Any]) -> None:
        """Fill in the responses of ``group``. If it cannot run together, each runs alone and the guilty one is told."""
        try:
            outputs = self._run(group)
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            if len(group) > 1:
                for work in group:
                    self._answer([work], responses)
            else:
                responses[group[0].place] = _failure(f"the model failed: {error}", pb_utils.TritonError.INTERNAL)
            return
        start = 0
        for work in group:
            stop = start + work.rows
            wanted = work.request.requested_output_names()
            responses[work.place] = pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, output if len(group) == 1 else output[start:stop])
                    for name, output in zip(self._output_names, outputs, strict=True)
                    if name in wanted
                ]
            )
            start = stop

    def _run(self, group: list[Work]) -> list[Array]:
        """The outputs of one session run over all rows of ``group``, in the order of the configured outputs."""
        if len(group) == 1:
            arrays = group[0].arrays
        else:
            arrays = [np.concatenate(parts) for parts in zip(*(work.arrays for work in group), strict=True)]
        feed = {tensor.name: array for tensor, array in zip(self._contract.inputs, arrays, strict=True)}
        outputs: list[Array] = self._session.run(self._output_names, feed, self._run_options)
        rows = sum(work.rows for work in group)
        if self._contract.max_batch > 0:
            for name, output in zip(self._output_names, outputs, strict=True):
                if len(output) != rows:
                    raise RuntimeError(f"output '{name}' has {len(output)} rows for a batch of {rows}")
        return outputs

    def _warm_up(self) -> None:
        """Run the smallest and the largest batch, so that no request pays for the first allocations.

        The values are made up (and so are dynamic sizes), so a failure proves nothing and is only noted.
        """
        for rows in sorted({1, max(1, self._contract.max_batch)}):
            arrays = []
            for tensor in self._contract.inputs:
                shape = [abs(size) for size in tensor.shape]
                value = 0 if tensor.is_floating else 1
                arrays.append(np.full([rows, *shape] if self._contract.max_batch else shape, value, tensor.dtype))
            try:
                self._run([Work(0, None, arrays, rows)])
            except Exception as error:
                pb_utils.Logger.log_warn(f"warm-up with made-up inputs of {rows} rows failed: {error}")


def _failure(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _shape(sizes: Any) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"
