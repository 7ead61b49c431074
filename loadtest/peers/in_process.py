"""Our ONNX stages and the peers' forms of the same network, one thread, interleaved in one process."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn

from loadtest.peers.environment import PeerEnvironment
from loadtest.peers.quantise import TOOLS
from loadtest.peers.subject import Subject
from optimize import streaming, verify
from optimize.benchmark import Candidate, Latency, measure, onnx_candidate, torch_candidate, torch_threads
from optimize.buckets import fitted
from optimize.data.dataset import Arrays, Split

_COMPANY = 200  # items of which the answers alone and in company are compared


@dataclass(frozen=True)
class InProcess:
    """One form of the network. latency_ms: single requests. metric: on the test set; drift: the largest difference
    between an item's answers alone and in company."""

    name: str
    ours: bool
    precision: str
    size_bytes: int
    latency_ms: Latency
    batch8_p50_ms: float
    metric: float
    drift: float


def compare(
    subject: Subject, peers: PeerEnvironment, place: Path, rounds: int, items: int | None, progress: Progress
) -> tuple[list[InProcess], dict[str, str]]:
    """Everything that runs, measured; and the reasons of what does not. place: a folder for the peers' files.

    items: of the test set, on which the metric is taken (None: all).
    """
    spec, recipe = subject.spec, subject.recipe
    ours = {stage: onnx_candidate(stage, path, _precision(stage), 0) for stage, path in subject.stages().items()}
    requests = streaming.steps(next(iter(ours.values())).run, spec, subject.test)
    fit = partial(fitted, spec=spec)
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces what it will drop some day
        made, failures = _peers(subject, peers, place)
        running = dict(ours)
        for name, candidate in made.items():
            if reason := _failure(candidate, requests, fit):
                failures[name] = reason
            else:
                running[name] = candidate
        timed = measure(list(running.values()), requests, rounds, progress=progress, fit=fit)
        split = subject.test.take(slice(0, items))
        company = split.take(slice(0, _COMPANY))
        bar = progress.add_task("answering the test set", total=len(running))
        found = []
        for name, candidate in running.items():
            run = streaming.whole(candidate.run, spec)
            alone = verify.answers(run, company, batch_size=1)
            drift = verify.batch_invariance(run, company, recipe.metric, alone, None).max_abs_drift
            metric = recipe.metric(verify.answers(run, split), split)
            its, size = timed[name], candidate.size_bytes
            p50_of_8 = its.batch_p50_ms[8]
            entry = InProcess(name, name in ours, candidate.precision, size, its.latency_ms, p50_of_8, metric, drift)
            found.append(entry)
            progress.advance(bar)
    return found, failures


def quantised(module: nn.Module) -> None:
    """Torch's own dynamic quantisation."""
    quantise: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    quantise(module, {nn.LSTM, nn.GRU, nn.Linear}, dtype=torch.qint8, inplace=True)


def compiled(module: nn.Module) -> None:
    """What a request runs, compiled when it is first called."""
    for name in ("forward", "forward_chunk"):
        if hasattr(module, name):
            setattr(module, name, torch.compile(getattr(module, name)))


TORCH_FORMS: dict[str, tuple[str, Callable[[nn.Module], None]]] = {
    "torch eager": ("fp32", lambda module: None),
    "torch.compile": ("fp32", compiled),
    "torch.ao quantize_dynamic": ("int8", quantised),
}


def torch_form(name: str, module: nn.Module, subject: Subject) -> Candidate:
    """A copy of the network in one of torch's own forms; its size is that of the saved tensors."""
    precision, change = TORCH_FORMS[name]
    module = copy.deepcopy(module)
    candidate = torch_candidate(name, module, subject.spec, precision)  # holds the module: changed in place
    change(module)
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    return replace(candidate, size_bytes=saved.tell())


def _peers(subject: Subject, peers: PeerEnvironment, place: Path) -> tuple[dict[str, Candidate], dict[str, str]]:
    made: dict[str, Candidate] = {}
    failures = peers.quantised(subject.fp32, place)
    for name in TORCH_FORMS:
        try:
            made[name] = torch_form(name, subject.network, subject)
        except Exception as error:
            failures[name] = _reason(error)
    for name in TOOLS:
        if (path := place / f"{name}.onnx").exists():
            try:
                made[name] = onnx_candidate(name, path, "int8", 0)
            except Exception as error:
                failures[name] = _reason(error)
    return made, failures


def _failure(candidate: Candidate, requests: Split, fit: Callable[[Arrays], Arrays]) -> str:
    """Why a candidate cannot answer one request or eight; a peer may stumble over anything."""
    try:
        for size in (1, min(8, len(requests))):
            candidate.run(fit(requests.rows(0, size)))
    except Exception as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _precision(stage: str) -> str:
    return next((kind for kind in ("int8", "fp16") if f"_{kind}" in stage), "fp32")
