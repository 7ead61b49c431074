"""A gRPC Triton in this process, with one stateful model whose every fault can be planned.

totals   remembers the sum of what a stream sent: y = sum of all x since START. As a real server does it lists no
         states, refuses a chunk without START for a stream that it does not know, and forgets one at END, whether
         or not it can answer.

What it does instead with the n-th message of a stream (counted from 0, over all streams) is in ``faults``:

    close      ends the stream with status OK          abort      ends it with status UNAVAILABLE
    forget     loses every stream's state first        refuse     answers with an error about the input
    fail       answers with an error of its own        misname    answers under another request's id
    hold       waits for ``released`` first            shrink     leaves the output out
    no model   answers that the model is gone          full       answers that it has too many streams
    late       answers that it was not run             die        loses every state, and says so as of a dead worker
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

IDLE_LIMIT_S = 10


class ScriptedTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.address = ""
        self.faults: dict[int, str] = {}
        self.seen: list[dict[str, Any]] = []
        self.totals: dict[int, float] = {}
        self.released = threading.Event()
        self.undescribed: tuple[Any, str] | None = None  # the status with which it refuses to describe its model
        self.streams_open = 0
        self.closed = threading.Condition()

    def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        if self.undescribed is not None:
            context.abort(*self.undescribed)
        if request.name not in ("totals", "plain"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        tensor = {"datatype": "FP32", "shape": [-1, 1]}
        return pb.ModelMetadataResponse(
            name=request.name, versions=["3"], inputs=[{"name": "x", **tensor}], outputs=[{"name": "y", **tensor}]
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:
        response = pb.ModelConfigResponse()
        response.config.name, response.config.max_batch_size = request.name, 4
        if request.name == "totals":
            batching = response.config.sequence_batching
            batching.max_sequence_idle_microseconds = IDLE_LIMIT_S * 1_000_000
            batching.state.add(input_name="state_sum", output_name="next_state_sum")
        return response

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        with self.closed:
            self.streams_open += 1
        try:
            for request in requests:
                fault = self.faults.get(len(self.seen), "")
                self.seen.append(
                    {
                        "id": request.id,
                        "version": request.model_version,
                        **{name: request.parameters["sequence_" + name].bool_param for name in ("start", "end")},
                        "sequence": request.parameters["sequence_id"].int64_param,
                        "timeout": request.parameters["timeout"].int64_param,
                        "sent": request.parameters["sent_us"].int64_param,
                    }
                )
                match fault:
                    case "close":
                        return
                    case "abort":
                        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                    case "forget" | "die":
                        self.totals.clear()
                    case "hold":
                        self.released.wait()
                yield self._reply(request, self.seen[-1], fault)
        finally:
            with self.closed:
                self.streams_open -= 1
                self.closed.notify_all()

    def all_closed(self) -> bool:
        """Whether no stream is open, now or soon."""
        with self.closed:
            return self.closed.wait_for(lambda: self.streams_open == 0, timeout=5)

    def _reply(self, request: Any, seen: dict[str, Any], fault: str) -> Any:
        response = pb.ModelStreamInferResponse()
        answer = response.infer_response
        answer.id = "someone else's" if fault == "misname" else request.id
        stream = seen["sequence"]
        refusals = {
            "refuse": "input 'x': expected a finite value, got 1e30",
            "fail": "the model failed: out of memory",
            "full": "no room for another stream: 2 are open and none was idle for more than 10 s; try again later",
            "late": "the deadline of 0.1 s has passed: the request waited 2 s and was not run; so send it again",
            "die": "Stub process 'totals_0_0' is not healthy.",
            "no model": "Request for unknown model: 'totals' version 3 is not found",
        }
        if seen["end"] and fault in refusals:
            self.totals.pop(stream, None)
        if fault in refusals:
            response.error_message = f"[request id: {request.id}] {refusals[fault]}"
            return response
        if seen["start"]:
            self.totals[stream] = 0.0
        if stream not in self.totals:
            response.error_message = f"no such stream: {stream}; it was idle for too long or never started"
            return response
        self.totals[stream] += float(np.frombuffer(request.raw_input_contents[0], np.float32)[0])
        answer.model_name, answer.model_version = request.model_name, "3"
        if fault != "shrink":
            answer.outputs.add(name="y", datatype="FP32", shape=[1, 1])
            answer.raw_output_contents.append(np.float32(self.totals[stream]).tobytes())
        if seen["end"]:
            del self.totals[stream]
        return response


@contextmanager
def scripted() -> Iterator[ScriptedTriton]:
    """One on a free port of this machine."""
    triton = ScriptedTriton()
    server = grpc.server(ThreadPoolExecutor(40))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    triton.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield triton
    finally:
        triton.released.set()
        server.stop(grace=None).wait()
