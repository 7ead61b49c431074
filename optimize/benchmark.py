"""Measure candidates side by side: the same requests, interleaved, in one process.

Every round calls every candidate in turn, so that a machine that slows down slows all of them. A timed call is
preceded by an untimed one of the same candidate, so that nobody pays for the cache lines its neighbour evicted: a
server that is busy with one model finds that model's weights where it left them.
"""

from __future__ import annotations

import itertools
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.progress import Progress
from torch import nn

from optimize import streaming
from optimize.binding import Bound
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.specs import ModelSpec

LOG = logging.getLogger(__name__)

PERCENTILES = (50, 95, 99)
BATCHES = (8, 32)  # sizes of which the p50 is told beside single requests
_ISA_OF_INTEREST = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "i8mm")

Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Candidate:
    """One artefact that can answer: ``run`` takes named inputs (batch, ...) and returns named outputs."""

    name: str
    run: Run
    runtime: str
    precision: str
    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call, and how many calls were timed."""

    p50: float
    p95: float
    p99: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(seconds, PERCENTILES))
        return cls(p50, p95, p99, len(seconds))


@dataclass(frozen=True)
class Measurement:
    """Latency of single requests, items per second in batches of ``batch``, and the p50 of batches of other sizes."""

    latency_ms: Latency
    throughput_per_s: float
    batch: int
    batch_p50_ms: dict[int, float]


def measure(
    candidates: Sequence[Candidate],
    requests: Split,
    rounds: int = 200,
    batch: int = 16,
    warmup: int = 10,
    progress: Progress | None = None,
    fit: Callable[[Arrays], Arrays] = lambda request: request,
) -> dict[str, Measurement]:
    """Time every candidate on the same requests, interleaved; single-threaded if the candidates are.

    fit: a request or batch as a client would send it. Raises UserError when fewer than ``batch`` requests are given.
    """
    if len(requests) < batch:
        raise UserError(f"benchmark: {len(requests)} requests are too few for batches of {batch}; give more data")
    singles = [fit(requests.rows(i, i + 1)) for i in range(min(len(requests), rounds))]
    runs = {candidate.name: candidate.run for candidate in candidates}
    alone = interleaved(runs, singles, rounds, warmup, progress)
    p50_s: dict[int, dict[str, float]] = {}
    for size in sorted({*BATCHES, batch}):
        batches = [fit(requests.rows(i, i + size)) for i in range(0, min(len(requests), 8 * size) - size + 1, size)]
        if batches:
            times = interleaved(runs, batches, max(rounds // 10, 5), 3, progress)
            p50_s[size] = {name: float(np.median(times[name])) for name in runs}
    return {
        name: Measurement(
            Latency.of(alone[name]),
            batch / p50_s[batch][name],
            batch,
            {size: 1e3 * p50_s[size][name] for size in p50_s if size in BATCHES},
        )
        for name in runs
    }


def interleaved(
    runs: Mapping[str, Run], feeds: Sequence[Arrays], rounds: int, warmup: int = 3, progress: Progress | None = None
) -> dict[str, list[float]]:
    """Seconds of every timed call, the candidates taken in turn, each after an untimed call of its own."""
    bar = progress.add_task("benchmark", total=rounds) if progress else None
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(warmup):
            run(feeds[0])
    for feed in itertools.islice(itertools.cycle(feeds), rounds):
        for name, run in runs.items():
            run(feed)
            begin = time.perf_counter()
            run(feed)
            times[name].append(time.perf_counter() - begin)
        if progress and bar is not None:
            progress.advance(bar)
    return times


def torch_candidate(name: str, module: nn.Module, spec: ModelSpec, precision: str = "fp32") -> Candidate:
    """A torch module in eager mode, its step if the spec has states; its size is that of its fp32 tensors.

    A module whose states are not the spec's, such as a teacher of another kind, keeps its own from call to call.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    answering = streaming.served(module.eval(), spec)
    own: dict[int, Sequence[torch.Tensor]] = {}  # states by batch size

    def run(inputs: Arrays) -> Arrays:
        given = [torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs]
        states: Sequence[torch.Tensor] = [torch.from_numpy(inputs[state.input_name]) for state in spec.states]
        with torch.inference_mode():
            if isinstance(answering, streaming.Step) and (initial := answering.other_states(states)):
                states = own.get(len(given[0]), initial)
            outputs = answering(*given, *states)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        own[len(given[0])] = outputs[len(spec.outputs) :]
        return {key: value.numpy() for key, value in zip(spec.output_names, outputs, strict=False)}

    return Candidate(name, run, "torch", precision, parameters, size)


def precision_of(stage: str) -> str:
    """What the name of an ONNX stage says: "int8" of student_onnx_int8_throughput."""
    return next((kind for kind in ("int8", "fp16") if f"_{kind}" in stage), "fp32")


def onnx_candidate(
    name: str, path: Path, precision: str, parameters: int, threads: int = 1, device: str = "cpu"
) -> Candidate:
    """An ONNX file in ONNX Runtime; its size is the file's. On CUDA it runs bound, as a CUDA graph if it can be one."""
    if device == "cuda":
        return Candidate(name, _on_cuda(path, threads), "onnxruntime", precision, parameters, path.stat().st_size)
    run = runner(session(path, threads, device))
    return Candidate(name, run, "onnxruntime", precision, parameters, path.stat().st_size)


def runner(opened: onnxruntime.InferenceSession) -> Run:
    """A session as a function of named inputs to all its named outputs."""
    outputs = [value.name for value in opened.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(outputs, opened.run(outputs, inputs), strict=True))

    return run


def _on_cuda(path: Path, threads: int) -> Run:
    """Bound, and recorded as a CUDA graph unless the graph has operators that the provider lacks."""
    try:
        return Bound(session(path, threads, "cuda", cuda_graphs=True), "cuda", graphs=True)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's own share no base class; this one says that it cannot be recorded
        LOG.info("%s runs without a CUDA graph: %s", path.name, str(error).splitlines()[0])
        return Bound(session(path, threads, "cuda"), "cuda")


def session(
    path: Path | bytes, threads: int = 1, device: str = "cpu", cuda_graphs: bool = False
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the device asked for; cuda_graphs: for ``binding.Bound``.

    Raises UserError when CUDA was asked for and ONNX Runtime fell back to another provider, which it does silently.
    """
    options = session_options(threads)
    cuda = [("CUDAExecutionProvider", {"enable_cuda_graph": str(int(cuda_graphs))})] if device == "cuda" else []
    providers = [*cuda, "CPUExecutionProvider"]
    if device == "cuda":
        onnxruntime.preload_dlls()
    opened = onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=providers)
    if cuda and opened.get_providers()[0] != "CUDAExecutionProvider":
        raise UserError(
            f"ONNX Runtime fell back to {opened.get_providers()[0]}: CUDA was asked for; install '.[gpu]' on a machine "
            "with an NVIDIA driver, or use --device cpu"
        )
    return opened


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """So many threads in an operator, one operator at a time, errors alone logged."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return options


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch with ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(threads: int) -> dict[str, Any]:
    """The machine and the versions that a measurement belongs to."""
    model, flags = platform.processor() or platform.machine(), set()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        model, flags = lines.get("model name", model), set(lines.get("flags", lines.get("Features", "")).split())
    packages = ("torch", "onnx", "onnxruntime-gpu", "numpy", "nvidia-pytriton", "tritonclient")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "isa": [flag for flag in _ISA_OF_INTEREST if flag in flags],
        "threads": threads,
        "versions": {"python": platform.python_version(), **_versions(packages)},
    }


def _versions(packages: Sequence[str]) -> Mapping[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except ImportError:
            continue
    return found
