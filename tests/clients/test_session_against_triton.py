"""Sessions against a real Triton, sync and async: its sequence batcher's words, its idle limit, its death.

The model is the python backend's, so that nothing but the client and Triton itself is tested here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clients
from clients.signature import Array
from serving.config import ServerConfig
from serving.launcher import Server

IDLE_LIMIT_S = 1.5

_TOTALS = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        stream, x = request.correlation_id(), pb.get_input_tensor_by_name(request, "x").as_numpy()
        if x[0, 0] == 666:
            return pb.InferenceResponse(
                error=pb.TritonError("input 'x': expected anything but 666", pb.TritonError.INVALID_ARG)
            )
        if x[0, 0] == 777:
            raise RuntimeError("a fault of the model's own")
        if request.flags() & 1:
            self.totals[stream] = 0
        elif x[0, 0] == 999 or stream not in self.totals:
            self.totals.pop(stream, None)
            return pb.InferenceResponse(error=pb.TritonError(f"no such stream: {stream}"))
        self.totals[stream] += x
        total = self.totals[stream]
        if request.flags() & 2:
            del self.totals[stream]
        return pb.InferenceResponse([pb.Tensor("y", total)])
"""

_CONFIG = f"""
name: "totals"
backend: "python"
max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: [1] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [1] }}
instance_group {{ count: 1 kind: KIND_CPU }}
sequence_batching {{
  max_sequence_idle_microseconds: {int(IDLE_LIMIT_S * 1e6)}
  oldest {{ max_candidate_sequences: 64 }}
  state {{
    input_name: "state_sum" output_name: "next_state_sum" data_type: TYPE_FP32 dims: [1]
    initial_state {{ name: "state_sum" data_type: TYPE_FP32 dims: [1] zero_data: true }}
  }}
}}
"""


def start(folder: Path) -> Server:
    (folder / "totals" / "1").mkdir(parents=True)
    (folder / "totals" / "1" / "model.py").write_text(_TOTALS)
    (folder / "totals" / "config.pbtxt").write_text(_CONFIG)
    return Server(ServerConfig(folder, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2))


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start(tmp_path_factory.mktemp("repository")) as server:
        yield server


def x(value: float) -> dict[str, Array]:
    return {"x": np.full((1, 1), value, np.float32)}


def total(answer: clients.Answer) -> float:
    return float(answer["y"].item())


def outcomes(server: Server, kind: str, values: list[Any]) -> list[Any]:
    """What one session makes of chunks: a total or an error for each; a str is a pause of so many seconds."""
    found: list[Any] = []

    async def on_async() -> None:
        async with await clients.aio.connect(server.grpc) as client, client.stream("totals") as session:
            for value in values:
                if isinstance(value, str):
                    await asyncio.sleep(float(value))
                    continue
                try:
                    found.append(total(await session.send(x(value))))
                except clients.ClientError as error:
                    found.append(error)

    def on_sync() -> None:
        with clients.connect(server.grpc) as client, client.stream("totals") as session:
            for value in values:
                if isinstance(value, str):
                    time.sleep(float(value))
                    continue
                try:
                    found.append(total(session.send(x(value))))
                except clients.ClientError as error:
                    found.append(error)

    if kind == "sync":
        on_sync()
    else:
        asyncio.run(on_async())
    return found


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_chunk_by_chunk(triton: Server, kind: str) -> None:
    assert outcomes(triton, kind, [1, 2, 4]) == [1, 3, 7]


def test_what_triton_says_of_a_model_with_state(triton: Server) -> None:
    with clients.connect(triton.grpc) as client:
        signature = client.signature("totals")
    assert [tensor.name for tensor in (*signature.inputs, *signature.outputs)] == ["x", "y"]
    assert signature.idle_limit_s == IDLE_LIMIT_S


@both
def test_refused_and_failed_chunks_leave_it_open(triton: Server, kind: str) -> None:
    refused_first, one, refused, failed, three = outcomes(triton, kind, [666, 1, 666, 777, 2])
    assert (one, three) == (1, 3)
    for error in (refused_first, refused):
        assert isinstance(error, clients.InvalidRequest), repr(error)
        assert "expected anything but 666" in str(error)
    assert isinstance(failed, clients.ServerError), repr(failed)
    assert "a fault of the model's own" in str(failed)


@both
@pytest.mark.parametrize(("chunk", "words"), [(["2.5", 2], "must specify the START flag"), ([999], "no such stream")])
def test_a_forgotten_stream(triton: Server, kind: str, chunk: list[Any], words: str) -> None:
    one, error = outcomes(triton, kind, [1, *chunk])
    assert one == 1
    assert isinstance(error, clients.SessionLost), repr(error)
    assert words in str(error)
    assert error.answered == 1


def test_interleaved_streams_and_their_end(triton: Server) -> None:
    async def one(client: clients.aio.AsyncClient, step: int) -> list[float]:
        async with client.stream("totals") as session:
            sums = [total(await session.send(x(step))) for _ in range(10)]
            return [*sums, total(await session.finish(x(step)))]

    async def many() -> list[list[float]]:
        async with await clients.aio.connect(triton.grpc) as client:
            return await asyncio.gather(*(one(client, step) for step in range(32)))

    assert asyncio.run(many()) == [[step * (n + 1) for n in range(11)] for step in range(32)]


@both
def test_a_server_killed_under_a_session(tmp_path: Path, kind: str) -> None:
    async def on_async(server: Server) -> None:
        async with await clients.aio.connect(server.grpc) as client, client.stream("totals") as session:
            await session.send(x(1))
            server.kill()
            with pytest.raises(clients.SessionLost, match="after 1 answered chunks: the stream broke"):
                await session.send(x(2))

    with start(tmp_path) as server:
        if kind == "async":
            asyncio.run(on_async(server))
            return
        with clients.connect(server.grpc) as client, client.stream("totals") as session:
            session.send(x(1))
            server.kill()
            with pytest.raises(clients.SessionLost, match="after 1 answered chunks: the stream broke"):
                session.send(x(2))
