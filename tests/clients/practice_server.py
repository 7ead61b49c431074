"""A real Triton with small models for the client's tests, and one way to ask it through all four clients.

load_forecast   the real one's interface; forecasts yesterday's demand, so the right answer is known
echo            every kind of datatype, returned as it came; 'note' is optional
slow            one request at a time, sleeps for the seconds it is given; fails when they are negative
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clients
from clients.client import ProtocolName
from serving.config import ServerConfig
from serving.launcher import Server

KINDS: list[tuple[ProtocolName, str]] = [("grpc", "sync"), ("grpc", "async"), ("http", "sync"), ("http", "async")]

ECHOED = {
    "truth": "BOOL",
    "tiny": "INT8",
    "small": "INT16",
    "plain": "INT32",
    "big": "INT64",
    "byte": "UINT8",
    "half": "FP16",
    "single": "FP32",
    "double": "FP64",
}

MAX_BATCH = 8

_FORECAST = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        demand = [pb.get_input_tensor_by_name(request, "history").as_numpy()[:, -24:, 0] for request in requests]
        return [pb.InferenceResponse([pb.Tensor("forecast", mw.copy())]) for mw in demand]
"""

_ECHO = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse(
                [pb.Tensor(t.name() + "_out", t.as_numpy()) for t in request.inputs() if t.name() != "note"]
            )
            for request in requests
        ]
"""

_SLOW = """
import time
from pathlib import Path
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(pb.get_input_tensor_by_name(request, "seconds")) for request in requests]

    def answer(self, seconds):
        value = float(seconds.as_numpy()[0])
        if value < 0:
            return pb.InferenceResponse(error=pb.TritonError("cannot sleep backwards"))
        Path(__file__).with_name("asleep").touch()
        time.sleep(value)
        return pb.InferenceResponse([pb.Tensor("slept", seconds.as_numpy())])
"""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Start a Triton with the models above on free ports."""
    _model(
        folder,
        "load_forecast",
        _FORECAST,
        [_tensor("history", "FP32", 72, 16), _tensor("calendar", "FP32", 24, 14)],
        [_tensor("forecast", "FP32", 24)],
        f"max_batch_size: {MAX_BATCH}\ndynamic_batching {{ max_queue_delay_microseconds: 20000 }}",
    )
    optional = '{ name: "note" data_type: TYPE_STRING dims: [-1] optional: true }'
    _model(
        folder,
        "echo",
        _ECHO,
        [*(_tensor(name, datatype, -1, 2) for name, datatype in ECHOED.items()), optional],
        [_tensor(f"{name}_out", datatype, -1, 2) for name, datatype in ECHOED.items()],
    )
    _model(folder, "slow", _SLOW, [_tensor("seconds", "FP32", 1)], [_tensor("slept", "FP32", 1)])
    with Server(ServerConfig(folder, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2)) as server:
        yield server


def ask(server: Server, kind: tuple[ProtocolName, str], method: str, *arguments: Any, **options: Any) -> Any:
    """Connect a client of that kind, call one method, close it."""
    return ask_at(server.grpc if kind[0] == "grpc" else server.http, kind, method, *arguments, **options)


def ask_at(address: str, kind: tuple[ProtocolName, str], method: str, *arguments: Any, **options: Any) -> Any:
    """The same, by address."""
    protocol, style = kind
    if style == "sync":
        with clients.connect(address, protocol=protocol) as client:
            return getattr(client, method)(*arguments, **options)

    async def awaited() -> Any:
        async with await clients.aio.connect(address, protocol=protocol) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(awaited())


def slow_requests(server: Server, folder: Path) -> int:
    """How many requests the slow model has now: waiting, and the one it sleeps on."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as page:
        lines = page.read().decode().splitlines()
    waiting = next(line for line in lines if line.startswith('nv_inference_pending_request_count{model="slow"'))
    return int(waiting.split()[-1]) + (folder / "slow" / "1" / "asleep").exists()


def _model(folder: Path, name: str, code: str, inputs: list[str], outputs: list[str], more: str = "") -> None:
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.py").write_text(code)
    (folder / name / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\ninput [{", ".join(inputs)}]\noutput [{", ".join(outputs)}]\n'
        f"instance_group [{{ count: 1 kind: KIND_CPU }}]\n{more}\n"
    )


def _tensor(name: str, datatype: str, *dims: int) -> str:
    return f'{{ name: "{name}" data_type: TYPE_{datatype} dims: {list(dims)} }}'
