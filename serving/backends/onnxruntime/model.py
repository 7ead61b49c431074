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
| neither, deadline passed    | refused as UNAVAILABLE, not run; the state is the one before it (``deadlines.py``) |
| filler of strategy `direct` | none; it is answered with nothing and takes no part in the run                     |

If the configuration has ``opening_cache_mb``, what many streams begin with is answered from memory (``openings.py``).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from deadlines import Deadlines, TooLate
from heartbeat import Heartbeat
from onnx_contract import Contract, check
from opening_metrics import OpeningMetrics
from openings import Openings
from reading import RequestError, Work, read
from sequence_contract import Sequences, check_sequences
from session_settings import open_session, opening_cache_bytes, run_options
from stream_metrics import StreamMetrics
from streams import Streams, TooManyStreams, UnknownStream
from turns import Turn, rounds

Array = npt.NDArray[Any]


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
        sequences = check_sequences(config, *graph)
        self._output_names = [tensor.name for tensor in self._contract.outputs]
        self._metrics = StreamMetrics.of_worker(
            config["name"], args["model_version"], args["model_instance_name"], pb_utils.Logger
        )
        self._open_streams(sequences)
        self._open_openings(config, args["model_version"])
        self._warm_up()
        self._heartbeat = Heartbeat.of_worker(config["name"], args["model_instance_name"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order; requests of equal shapes share a run, nothing is padded."""
        self._heartbeat.begin()
        try:
            return self._answers(requests)
        finally:
            self._heartbeat.end(len(self._streams) if self._streams is not None else 0)
            if self._streams is not None:
                self._metrics.holds(len(self._streams), self._streams.limit, self._streams.state_bytes)

    def finalize(self) -> None:
        """Release the session, and with it the device memory."""
        self._metrics.close()
        self._heartbeat.close()  # the last of the two: it waits for its thread, and Triton kills who takes too long
        del self._session
        if self._opening_metrics is not None:
            self._opening_metrics.close()

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
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
                except (TooManyStreams, TooLate) as error:
                    responses[place] = _failure(str(error), pb_utils.TritonError.UNAVAILABLE)
                else:
                    if not self._answer_as_known(work, responses):
                        groups.setdefault(self._company(work), []).append(work)
            for group in groups.values():
                self._answer(group, responses)
        if self._opening_metrics is not None:
            self._opening_metrics.tell()
        return responses

    def _open_streams(self, sequences: Sequences | None) -> None:
        """Room for the states of a model that has any."""
        self._streams: Streams | None = None
        self._state_names: list[str] = []
        self._next_state_names: list[str] = []
        self._ready: str | None = None
        if sequences is not None:
            self._streams = Streams(
                sequences.inputs,
                sequences.slots,
                sequences.idle_s,
                self._contract.max_batch,
                event=self._metrics.event,
            )
            self._deadlines = Deadlines()
            self._state_names = [tensor.name for tensor in sequences.inputs]
            self._next_state_names = [tensor.name for tensor in sequences.outputs]
            self._ready = sequences.ready

    def _open_openings(self, config: dict[str, Any], version: str) -> None:
        """Room for what many streams begin with, if the model's configuration gives any."""
        self._openings: Openings | None = None
        self._opening_metrics: OpeningMetrics | None = None
        limit_bytes = opening_cache_bytes(config)
        if limit_bytes and self._streams is not None:
            self._openings = Openings(limit_bytes)
            self._opening_metrics = OpeningMetrics(pb_utils, self._openings, config["name"], version)

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
            return Work(place, request, *read(self._contract, request))
        slot = self._streams.enter(turn.stream, turn.starts)
        try:
            self._deadlines.check(slot, turn.starts, turn.ends, request, time.monotonic_ns() // 1000)
        except TooLate:
            self._metrics.event("late", turn.stream)
            raise
        try:
            arrays, rows = read(self._contract, request)
            if rows != 1:
                raise RequestError(f"expected 1 row, as a stream has, got {rows}")
        except RequestError:
            self._leave(turn, failed=True)
            raise
        step = self._openings.step(slot, turn.starts, arrays) if self._openings is not None else None
        return Work(place, request, arrays, rows, turn, slot, step)

    def _leave(self, turn: Turn | None, failed: bool) -> None:
        """Free the slot of a stream that ended, or whose beginning failed."""
        if self._streams is not None and turn is not None and (turn.ends or (failed and turn.starts)):
            self._streams.leave(turn.stream, "ended" if turn.ends else "failed")

    def _company(self, work: Work) -> tuple[Any, ...]:
        """Equal for requests that may share a run: equal shapes but for the batch, and alone where there is none."""
        if self._contract.max_batch == 0:
            return (work.place,)
        return tuple(array.shape[1:] for array in work.arrays)

    def _answer_as_known(self, work: Work, responses: list[Any]) -> bool:
        """Answer without a run what others have brought after the same past."""
        if work.step is None or work.step.known is None:
            return False
        assert self._openings is not None
        assert self._streams is not None
        outputs, states = work.step.known
        self._streams.scatter([work.slot], states)
        self._openings.follow(work.slot, work.step)
        self._respond(work, outputs, responses)
        return True

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
        self._metrics.ran(sum(work.rows for work in group))
        if len(group) == 1:
            self._respond(group[0], outputs, responses)
            return
        start = 0
        for work in group:
            stop = start + work.rows
            self._respond(work, [output[start:stop] for output in outputs], responses)
            start = stop

    def _respond(self, work: Work, outputs: Sequence[Array], responses: list[Any]) -> None:
        self._leave(work.turn, failed=False)
        wanted = work.request.requested_output_names()
        responses[work.place] = pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, output)
                for name, output in zip(self._output_names, outputs, strict=True)
                if name in wanted
            ]
        )

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
            if self._openings is not None:
                for row, work in enumerate(group):
                    if work.step is not None:
                        place = row if self._contract.max_batch > 0 else None
                        self._openings.keep(work.slot, work.step, outputs, states, place)
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
