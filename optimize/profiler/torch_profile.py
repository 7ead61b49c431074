"""Profile a torch network: the operators that its modules call, by torch's own profiler.

An operator is what a module calls, such as aten::linear or aten::lstm, with all that this calls in turn. Products are
counted where they happen, inside: matrix products and recurrences by their shapes, convolutions by their module's
output. Bytes are those of the inputs, weights among them, in fp32. What is outside of all operators is Python's.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from optimize.benchmark import Run, torch_candidate, torch_threads
from optimize.data.dataset import Arrays
from optimize.profiler.machine import Machine
from optimize.profiler.profile import TOP, Part, Profile
from optimize.profiler.usual import deducted, usual
from optimize.specs import ModelSpec

_MODULE, _CONVOLUTION, _RUN = "module ", "convolution ", "profiled run"
_EVENTS = 6_000  # of one profile, unless two runs of every request have more
_BYTES = 4  # of a number
# Copy nothing.
_VIEWS = re.compile(
    "aten::(alias|as_strided|chunk|detach|expand|flatten|narrow|permute|reshape|select|slice|split|squeeze|t|transpose|"
    "unbind|unsqueeze|view)"
)

Place = tuple[str, str]  # module and operator


@dataclass
class Called:
    """What one run has of an operator of one module: microseconds, calls and how many entries these have in all."""

    us: float = 0.0
    calls: int = 0
    entries: float = 0.0
    macs: float = 0.0
    moved_bytes: float = 0.0
    moving_s: float = 0.0


def profile_torch(
    stage: str, module: nn.Module, spec: ModelSpec, feeds: Sequence[Arrays], machine: Machine, rounds: int = 200
) -> Profile:
    """Profile a network, its step if the spec has states, on requests of one batch size, in turn.

    Plain and profiled runs alternate, a run of every request at a time.
    """
    run = torch_candidate(stage, module, spec).run
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    plain: list[float] = []
    profiled: list[float] = []
    runs: list[dict[Place, Called]] = []
    with torch_threads(1):
        _seconds(run, feeds)  # warms up
        with _named(module):
            entries = len(_recorded(run, feeds[:1])[1])
        repeats = max(min(rounds, _EVENTS // entries) // len(feeds), 2)
        for _ in range(repeats):
            plain += _seconds(run, feeds)
            with _named(module):
                seconds, events = _recorded(run, feeds)
            profiled += seconds
            runs += [_called(event, machine, weight_bytes) for event in events if event.name == _RUN]
    places = {place: None for called in runs for place in called}

    def each(place: Place, what: str) -> list[float]:
        return [float(getattr(called.get(place, Called()), what)) for called in runs]

    def of(place: Place, what: str) -> float:
        return sum(each(place, what)) / len(runs)

    usual_ms, profiled_ms = (1e3 * usual(seconds, len(feeds)) for seconds in (plain, profiled))
    whole_us = {place: usual(each(place, "us"), len(feeds)) for place in places}
    entries_of = {place: of(place, "entries") for place in places}
    most_us = sum(whole_us.values()) * min(usual_ms / profiled_ms, 1.0)
    us, deducted_us = deducted(whole_us, entries_of, most_us)
    parts = []
    for place in places:
        multiplying = machine.multiplying_s(of(place, "macs"), low=False)
        parts.append(
            Part(
                name="/".join(place),
                operator=place[1],
                layer=place[0],
                ms=us[place] / 1e3,
                calls=of(place, "calls"),
                macs=of(place, "macs"),
                moved_bytes=of(place, "moved_bytes"),
                arithmetic_ms=1e3 * multiplying,
                limit_ms=1e3 * max(of(place, "moving_s"), multiplying),
            )
        )
    return Profile(
        stage=stage,
        runtime="torch",
        precision="fp32",
        batch=len(next(iter(feeds[0].values()))),
        runs=len(runs),
        ms=usual_ms,
        p50_ms=1e3 * float(np.median(plain)),
        profiled_p50_ms=1e3 * float(np.median(profiled)),
        deducted_us=deducted_us,
        outside_ms=usual_ms - sum(part.ms for part in parts),
        weight_bytes=weight_bytes,
        parts=parts,
    )


def _seconds(run: Run, feeds: Sequence[Arrays]) -> list[float]:
    times = []
    for feed in feeds:
        run(feed)
        begin = time.perf_counter()
        run(feed)
        times.append(time.perf_counter() - begin)
    return times


def _recorded(run: Run, feeds: Sequence[Arrays]) -> tuple[list[float], list[Any]]:
    """Seconds of every run, and all entries of the profile."""
    recorder = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    seconds = []
    with _silent():
        recorder.start()
    for feed in feeds:
        begin = time.perf_counter()
        with record_function(_RUN):
            run(feed)
        seconds.append(time.perf_counter() - begin)
    with _silent():
        recorder.stop()
    return seconds, list(recorder.events() or ())  # type: ignore[no-untyped-call]


@contextmanager
def _named(module: nn.Module) -> Iterator[None]:
    """Inside, every module is an entry of the profile, and a convolution tells how much it multiplied."""
    open_entries: list[record_function] = []

    def enter(name: str) -> Any:
        def hook(*_: object) -> None:
            open_entries.append(record_function(f"{_MODULE}{name}"))
            open_entries[-1].__enter__()  # type: ignore[no-untyped-call]

        return hook

    def leave(inside: nn.Module, _: object, output: object) -> None:
        if isinstance(inside, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(output, Tensor):
            with record_function(f"{_CONVOLUTION}{output.numel() * inside.weight[0].numel()}"):
                pass
        open_entries.pop().__exit__(None, None, None)

    handles = []
    for name, part in module.named_modules():
        if name:
            handles += [part.register_forward_pre_hook(enter(name)), part.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, nothing reaches standard error: the profiler tells it of its every start and stop."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _called(run: Any, machine: Machine, weight_bytes: int) -> dict[Place, Called]:
    """What the entry of one run holds."""
    found: dict[Place, Called] = {}

    def look(entry: Any, module: str) -> None:
        last: Called | None = None
        for child in entry.cpu_children:
            if child.name.startswith(_MODULE):
                look(child, child.name.removeprefix(_MODULE))
            elif child.name.startswith(_CONVOLUTION):
                if last is not None:
                    last.macs += float(child.name.removeprefix(_CONVOLUTION))
            else:
                last = found.setdefault((module, child.name), Called())
                last.us += child.time_range.elapsed_us()
                last.calls += 1
                last.entries -= 0.5  # half of what an entry costs is outside of it
                if not _add(child, last, machine, weight_bytes) and not _VIEWS.fullmatch(child.name):
                    moved = _BYTES * sum(map(prod, _shapes(child)))
                    last.moved_bytes += moved
                    last.moving_s += machine.moving_s(moved, weight_bytes)

    look(run, TOP)
    return found


def _add(entry: Any, to: Called, machine: Machine, weight_bytes: int) -> bool:
    """Count an entry and those inside it; whether there are products, whose bytes are counted then."""
    to.entries += 1
    inside = [_add(child, to, machine, weight_bytes) for child in entry.cpu_children]
    if any(inside):
        return True
    macs, again = _macs(entry.name, shapes := _shapes(entry))
    if not macs:
        return False
    to.macs += macs
    to.moved_bytes += _BYTES * sum(map(prod, shapes)) + again
    to.moving_s += machine.moving_s(_BYTES * sum(map(prod, shapes)), weight_bytes)
    if again:
        to.moving_s += machine.moving_s(again, _BYTES * prod(shapes[2]))
    return True


def _shapes(entry: Any) -> list[list[int]]:
    """Of the inputs that are tensors."""
    return [shape for shape in entry.input_shapes if shape]


def _macs(operator: str, shapes: list[list[int]]) -> tuple[float, float]:
    """Multiply-accumulates of an operator that is a product, and the bytes of weights that it reads again."""
    match operator.removeprefix("aten::"):
        case "mm" | "bmm" | "mv":
            return prod(shapes[0]) * (shapes[1][-1] if len(shapes[1]) > 1 else 1), 0.0
        case "addmm" | "baddbmm":
            return prod(shapes[1]) * shapes[2][-1], 0.0
        case "mkldnn_rnn_layer":  # (time, batch, features), and the weights of inputs and of the state
            time_steps, batch = shapes[0][:2]
            again = _BYTES * prod(shapes[2]) * (time_steps - 1)
            return time_steps * batch * (prod(shapes[1]) + prod(shapes[2])), again
        case "_scaled_dot_product_flash_attention_for_cpu":  # (batch, heads, time, width)
            return 2 * prod(shapes[0]) * shapes[1][-2], 0.0
        case _:
            return 0, 0.0
