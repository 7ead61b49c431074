"""ONNX models in the wheel's Triton, with the contract of the official C++ onnxruntime backend.

A python-based backend: Triton runs one process of this file for each instance of every model whose config.pbtxt says
``backend: "onnxruntime"``, so the same repository loads unchanged where the C++ backend is installed. The process
has only the standard library, numpy, onnxruntime, triton_python_backend_utils and the modules beside this file.

All requests that Triton hands over together run as one batch. A request that cannot be answered gets an error that
names its tensor; the others of its batch do not notice.

A model with a ``state`` section serves streams. Triton binds a stream to one instance and hands it the stream's
requests in order, so each instance remembers its own (``streams.py``), and one run serves requests of many streams:

| request                     | effect on its stream                                                               |
|-----------------------------|------------------------------------------------------------------------------------|
| START                       | begins from zeros, in place of a stream of the same id; if it fails, there is none |
| neither                     | continues; if it fails, the state is the one before it, and it may be sent again   |
| END                         | frees the slot once answered, be the answer an error                               |
| without START, unknown id   | refused as NOT_FOUND                                                               |
| START, but no slot is left  | refused at once as UNAVAILABLE                                                     |
| filler of strategy `direct` | none; it is answered with nothing and takes no part in the run                     |
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
from sequence_contract import Sequences, check_sequences
from session_settings import open_session, run_options
from streams import Streams, TooManyStreams, UnknownStream
from turns import Turn, rounds

Array = npt.NDArray[Any]

# Triton takes a request's arrival for the last sign of life, this backend its execution. So a stream that Triton has
# given up may not be idle enough yet to be forgotten here, and both it and its successor need a slot.
_SLOTS_PER_STREAM = 2


class RequestError(ValueError):
    """The client's mistake: what was expected of the tensor and what came."""


@dataclass(frozen=True)
class Work:
    """A request that passed the checks: its place among the requests, and its arrays in the order of the inputs.

    turn, slot: of a stream's request.
    """

    place: int
    request: Any
    arrays: list[Array]
    rows: int
    turn: Turn | None = None
    slot: int = 0


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
        graph = self._session.get_inputs(), self._session.get_outputs()
        self._contract: Contract = check(config, *graph)
        self._output_names = [tensor.name for tensor in self._contract.outputs]
        self._open_streams(check_sequences(config, *graph))
        self._warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order; requests of equal shapes share a run, nothing is padded."""
        responses: list[Any] = [None] * len(requests)
        for turns in self._rounds(requests, responses):
            groups: dict[tuple[Any, ...], list[Work]] = {}
            for place, turn in turns:
                try:
                    work = self._enter(place, requests[place], turn)
                except RequestError as error:
                    responses[place] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
                except UnknownStream as error:
                    responses[place] = _failure(str(error), pb_utils.TritonError.NOT_FOUND)
                except TooManyStreams as error:
                    responses[place] = _failure(str(error), pb_utils.TritonError.UNAVAILABLE)
                else:
                    groups.setdefault(self._company(work), []).append(work)
            for group in groups.values():
                self._answer(group, responses)
        return responses

    def finalize(self) -> None:
        """Release the session, and with it the device memory."""
        del self._session

    def _open_streams(self, sequences: Sequences | None) -> None:
        """Room for the states of a model that has any."""
        self._streams: Streams | None = None
        self._state_names: list[str] = []
        self._next_state_names: list[str] = []
        self._ready: str | None = None
        if sequences is not None:
            limit, max_batch = _SLOTS_PER_STREAM * sequences.slots, self._contract.max_batch
            self._streams = Streams(sequences.inputs, limit, sequences.idle_s, max_batch)
            self._state_names = [tensor.name for tensor in sequences.inputs]
            self._next_state_names = [tensor.name for tensor in sequences.outputs]
            self._ready = sequences.ready

    def _rounds(self, requests: Sequence[Any], responses: list[Any]) -> list[list[tuple[int, Turn | None]]]:
        """The places of the requests that may run together; fillers of empty slots are answered at once."""
        if self._streams is None:
            return [[(place, None) for place in range(len(requests))]]
        self._streams.expire()
        found, fillers = rounds(requests, self._ready)
        for place in fillers:
            responses[place] = pb_utils.InferenceResponse([])
        return [[(turn.place, turn) for turn in turns] for turns in found]

    def _enter(self, place: int, request: Any, turn: Turn | None) -> Work:
        """The request, checked, and with its stream's slot."""
        if self._streams is None or turn is None:
            return self._read(place, request)
        slot = self._streams.enter(turn.stream, turn.starts)
        try:
            work = self._read(place, request, turn, slot)
            if work.rows != 1:
                raise RequestError(f"expected 1 row, as a stream has, got {work.rows}")
        except RequestError:
            self._leave(turn, failed=True)
            raise
        return work

    def _leave(self, turn: Turn | None, failed: bool) -> None:
        """Free the slot of a stream that ended, or whose beginning failed."""
        if self._streams is not None and turn is not None and (turn.ends or (failed and turn.starts)):
            self._streams.leave(turn.stream)

    def _read(self, place: int, request: Any, turn: Turn | None = None, slot: int = 0) -> Work:
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
        return Work(place, request, arrays, rows or 1, turn, slot)

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
                self._leave(group[0].turn, failed=True)
                responses[group[0].place] = _failure(f"the model failed: {error}", pb_utils.TritonError.INTERNAL)
            return
        start = 0
        for work in group:
            stop = start + work.rows
            self._leave(work.turn, failed=False)
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
        """The outputs of one session run over all rows of ``group``, in the order of the configured outputs.

        The streams' states go in and come out. Whatever fails here, they are as they were.
        """
        if len(group) == 1:
            arrays = group[0].arrays
        else:
            arrays = [np.concatenate(parts) for parts in zip(*(work.arrays for work in group), strict=True)]
        feed = {tensor.name: array for tensor, array in zip(self._contract.inputs, arrays, strict=True)}
        slots = [work.slot for work in group]
        if self._streams is not None:
            fresh = [row for row, work in enumerate(group) if work.turn is None or work.turn.starts]
            feed |= zip(self._state_names, self._streams.gather(slots, fresh), strict=True)
        names = self._output_names + self._next_state_names
        answered: list[Array] = self._session.run(names, feed, self._run_options)
        outputs, states = answered[: len(self._output_names)], answered[len(self._output_names) :]
        rows = sum(work.rows for work in group)
        if self._contract.max_batch > 0:
            for name, output in zip(self._output_names, outputs, strict=True):
                if len(output) != rows:
                    raise RuntimeError(f"output '{name}' has {len(output)} rows for a batch of {rows}")
        if self._streams is not None and group[0].turn is not None:
            self._streams.scatter(slots, states)
        return outputs

    def _warm_up(self) -> None:
        """Run the smallest and the largest batch, so that no request pays for the first allocations.

        The values are made up (and so are dynamic sizes), so a failure proves nothing and is only noted.
        """
        arrays = []
        for tensor in self._contract.inputs:
            shape = [abs(size) for size in tensor.shape]
            value = 0 if tensor.is_floating else 1
            arrays.append(np.full([1, *shape] if self._contract.max_batch else shape, value, tensor.dtype))
        for rows in sorted({1, max(1, self._contract.max_batch)}):
            try:
                self._run([Work(0, None, arrays, rows=1)] * rows)
            except Exception as error:
                pb_utils.Logger.log_warn(f"warm-up with made-up inputs of {rows} rows failed: {error}")


def _failure(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _shape(sizes: Any) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"
