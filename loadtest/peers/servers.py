"""The servers of one comparison, all up at once on ports of their own: Triton with our model, and every peer's."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from loadtest import prepared
from loadtest.closed_loop import Target, ask_all
from loadtest.peers.environment import PeerEnvironment
from loadtest.peers.subject import Subject
from loadtest.peers.wire import Settings
from optimize import repository
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.specs import ModelSpec
from serving.config import ServerConfig
from serving.launcher import Server

OURS, TORCH, ORT, BENTO = "ours", "FastAPI + torch", "FastAPI + ONNX Runtime", "BentoML + ONNX Runtime"
INSTANCES = (1, 2)  # of our model; workers of the peers
START_S = 120.0
_HOST = "127.0.0.1"
_OCTETS = "Content-Type: application/octet-stream"


@dataclass(frozen=True)
class Contestant:
    """A server that answers. encode: all the bytes of a request; decode: the outputs from an answer's."""

    name: str
    family: str
    target: Target
    encode: Callable[[Arrays], bytes]
    decode: Callable[[bytes], Arrays]


@dataclass(frozen=True)
class PeerServer:
    """How a peer is started. graph: which file it serves, a key of ``files``."""

    family: str
    graph: str
    workers: int
    threadpool: bool = False

    @property
    def name(self) -> str:
        way = ("thread pool" if self.threadpool else "event loop") if self.family in (TORCH, ORT) else "batching"
        return f"{self.family}, {self.graph}, {self.workers} worker{'s' * (self.workers > 1)}, {way}"


PEERS = (
    PeerServer(TORCH, "eager", 1, threadpool=True),
    PeerServer(TORCH, "eager", 2, threadpool=True),
    PeerServer(TORCH, "eager", 2),
    PeerServer(ORT, "fp32", 2),
    PeerServer(ORT, "its own int8", 2),
    PeerServer(ORT, "our published graph", 2),
    PeerServer(ORT, "our published graph", 2, threadpool=True),
    PeerServer(BENTO, "our published graph", 1),
    PeerServer(BENTO, "our published graph", 2),
)


@contextmanager
def running(subject: Subject, peers: PeerEnvironment, place: Path, probe: Arrays,
            started: Callable[[], None]) -> Iterator[tuple[list[Contestant], dict[str, str]]]:  # fmt: skip
    """Every server that comes up, ours first; and the reasons of those that do not.

    place: a folder, with the peers' int8 graph if they could make one. started: called after each. Raises UserError
    for a model that the peers' servers cannot carry: with states, or with shapes that change.
    """
    spec = subject.spec
    if spec.states or any(isinstance(size, str) for tensor in (*spec.inputs, *spec.outputs) for size in tensor.shape):
        raise UserError(f"'{spec.name}' has states or dynamic shapes: the peers' servers take equal requests alone")
    files = {
        "eager": place / "network.pt",
        "fp32": subject.stages()[f"{subject.variant.published}_onnx_fused"],
        "its own int8": place / "onnxruntime quantize_dynamic.onnx",
        "our published graph": subject.stages()[subject.published],
    }
    torch.save(subject.network, files["eager"])
    found, failures = [], {}
    with ExitStack() as stack:
        found += stack.enter_context(_ours(subject, files["our published graph"], place / "repository"))
        started()
        for peer in PEERS:
            try:
                if not files[peer.graph].exists():
                    raise UserError("the graph that it would serve could not be made")
                found.append(stack.enter_context(served_by(peer, files[peer.graph], spec, peers, place, probe)))
            except UserError as error:
                failures[peer.name] = str(error)
            started()
        yield found, failures


@contextmanager
def process(command: list[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server and all that it starts, ended together."""
    with log.open("wb") as file:
        started = subprocess.Popen(
            command, env=dict(variables), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield started
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(started.pid, number)
                started.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@contextmanager
def _ours(subject: Subject, graph: Path, place: Path) -> Iterator[list[Contestant]]:
    """One Triton with the model at every number of instances, by gRPC and by HTTP."""
    place.mkdir()
    names = {count: f"{subject.spec.name}_{count}" for count in INSTANCES}
    for count, name in names.items():
        serving = replace(subject.variant.serving, response_cache=False, kind="cpu", instances=count)
        repository.publish(place, replace(subject.spec, name=name), serving, graph)
    with Server(ServerConfig(place, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0)) as server:
        found = []
        for count, name in names.items():
            spec, instances = replace(subject.spec, name=name), f"{count} instance{'s' * (count > 1)}"
            found.append(_triton(f"Triton, gRPC, {instances}", spec, prepared.by_grpc(server.grpc)))
            found.append(_triton(f"Triton, HTTP, {instances}", spec, prepared.by_http(server.http, name)))
        yield found


def _triton(name: str, spec: ModelSpec, target: Target) -> Contestant:
    return Contestant(
        name, OURS, target, partial(prepared.request, target, spec), partial(prepared.answer, target, spec)
    )


@contextmanager
def served_by(
    peer: PeerServer, file: Path, spec: ModelSpec, peers: PeerEnvironment, place: Path, probe: Arrays
) -> Iterator[Contestant]:
    with socket.create_server((_HOST, 0)) as probing:
        port = probing.getsockname()[1]
    inputs = [(tensor.name, tensor.dtype, _sizes(tensor.shape)) for tensor in spec.inputs]
    outputs = [tensor.name for tensor in spec.outputs]
    runtime = "torch" if peer.family == TORCH else "onnxruntime"
    settings = Settings(runtime, str(file.resolve()), inputs, outputs, peer.workers, peer.threadpool)
    if peer.family == BENTO:
        command = peers.command("bentoml", "serve", "loadtest.peers.bentoml_service:service", "--port", str(port))
        command += ["--host", _HOST]
        target, encode, decode = Target(_HOST, port, "/infer", ("Content-Type: application/json",)), _rows, _of_rows
    else:
        command = peers.command("uvicorn", "--factory", "loadtest.peers.fastapi_app:app", "--port", str(port))
        command += ["--host", _HOST, "--workers", str(peer.workers), "--no-access-log", "--log-level", "warning"]
        target, encode, decode = Target(_HOST, port, "/", (_OCTETS,)), _bytes, _of_bytes
    log = place / f"{port}.log"
    variables = peers.variables({**settings.variables(), "BENTOML_HOME": str(place / "bentoml")})
    with process(command, variables, log) as started:

        def message(inputs: Arrays) -> bytes:
            return target.message(encode(spec, inputs))

        _wait(target, message(probe), started, log)
        yield Contestant(peer.name, peer.family, target, message, partial(decode, spec))


def _bytes(spec: ModelSpec, request: Arrays) -> bytes:
    return b"".join(request[tensor.name].tobytes() for tensor in spec.inputs)


def _of_bytes(spec: ModelSpec, answer: bytes) -> Arrays:
    found, offset = {}, 0
    for tensor in spec.outputs:
        sizes = _sizes(tensor.shape)
        found[tensor.name] = np.frombuffer(answer, tensor.dtype, math.prod(sizes), offset).reshape(1, *sizes)
        offset += found[tensor.name].nbytes
    return found


def _rows(spec: ModelSpec, request: Arrays) -> bytes:
    rows = np.concatenate([request[tensor.name].reshape(1, -1).astype(float) for tensor in spec.inputs], axis=1)
    return json.dumps({"rows": rows.tolist()}).encode()


def _of_rows(spec: ModelSpec, answer: bytes) -> Arrays:
    flat, found = np.array(json.loads(answer))[0], {}
    for tensor in spec.outputs:
        sizes = _sizes(tensor.shape)
        values, flat = np.split(flat, [math.prod(sizes)])
        found[tensor.name] = values.reshape(1, *sizes).astype(tensor.dtype)
    return found


def _wait(target: Target, message: bytes, started: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers. Raises UserError with the last line of its log if it does not."""
    deadline, reason = time.monotonic() + START_S, "it never listened"
    while time.monotonic() < deadline and started.poll() is None:
        try:
            asyncio.run(ask_all(target, [message]))
            return
        except (OSError, UserError) as error:
            reason = str(error)
            time.sleep(0.2)
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
    raise UserError(f"it did not start: {reason}; its log ends with: {lines[-1]}")


def _sizes(shape: tuple[int | str, ...]) -> list[int]:
    return [int(size) for size in shape]
