"""Profile an ONNX model as ONNX Runtime runs it: its own profile of the graph that its optimisers leave.

The optimised graph is written to a file, its nodes are named by their number, and it is run as it is, profiled, in
turn with the model itself. So every entry of the profile is of a known node: a fused one, or one in a body, where there
is an entry for every trip.

The profile's time of an operator holds what it cost to write the entry's shapes down, which is most of it for a small
one; and the time of a Scan or Loop holds the entries of its body. So a loop's own time is what lies between its trips,
and as much is deducted from every call as makes the sum that of an unprofiled run, without what a session with the same
inputs and outputs and no work takes.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf

from optimize import rewriting
from optimize.benchmark import Run, runner, session, session_options
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.profiler.machine import Machine
from optimize.profiler.profile import Profile
from optimize.profiler.roofline import Activations, Operator, model_bytes, operators
from optimize.profiler.usual import deducted, usual
from optimize.quantize.shapes import REFUSALS
from optimize.quantize.weights import Inside, walk

_EVENTS = 40_000  # of one profile, unless five runs of every request have more
_END = "model_run"


@dataclass
class Entries:
    """What a profile has of one run: microseconds and bytes by node number, and the microseconds between one entry in
    a body and the next: of the same trip, and by body of the next trip."""

    us: dict[int, float] = field(default_factory=dict)
    activations: dict[int, Activations] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    turns: dict[Inside, list[float]] = field(default_factory=dict)


def profile_onnx(
    stage: str, path: Path, precision: str, feeds: Sequence[Arrays], machine: Machine, rounds: int = 200
) -> Profile:
    """Profile a file on requests of one batch size, in turn. Raises UserError when it does not run."""
    run = opened(path)
    as_run = optimised(path)
    work = operators(as_run, feeds)
    most = int(_EVENTS / 2 / (1 + sum(operator.calls for operator in work)))  # two runs a round
    rounds = max(min(rounds, most) // len(feeds), 5) * len(feeds)
    idle = runner(session(_idle(feeds[0], run(feeds[0])).SerializeToString()))
    with tempfile.TemporaryDirectory() as folder:
        profiled = _profiling(as_run, Path(folder))
        runs: dict[str, Run] = {"plain": run, "profiled": runner(profiled), "idle": lambda feed: idle(feeds[0])}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for feed in itertools.islice(itertools.cycle(feeds), rounds):
            for name, one in runs.items():
                one(feed)  # as ``benchmark.interleaved`` does
                begin = time.perf_counter()
                one(feed)
                times[name].append(time.perf_counter() - begin)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    usual_ms, idle_ms = (1e3 * usual(times[name], len(feeds)) for name in ("plain", "idle"))
    entries = entries_of(events, [operator.inside for operator in work])[1::2]
    own_us = own_times(entries, work, len(feeds))
    calls = {number: operator.calls for number, operator in enumerate(work)}
    us, deducted_us = deducted(own_us, calls, 1e3 * max(usual_ms - idle_ms, 0.0))
    held = model_bytes(rewriting.read(as_run).graph)
    parts = [
        work[number].part(machine, own / 1e3, _activations(entries[-len(feeds) :], number), held)
        for number, own in us.items()
    ]
    return Profile(
        stage=stage,
        runtime="onnxruntime",
        precision=precision,
        batch=len(next(iter(feeds[0].values()))),
        runs=rounds,
        ms=usual_ms,
        p50_ms=1e3 * float(np.median(times["plain"])),
        profiled_p50_ms=1e3 * float(np.median(times["profiled"])),
        deducted_us=deducted_us,
        outside_ms=usual_ms - sum(part.ms for part in parts),
        weight_bytes=held,
        parts=parts,
        call_ms=idle_ms,
    )


def opened(path: Path) -> Run:
    """A file as ``benchmark`` runs it. Raises UserError for one that is no model, or that the runtime refuses."""
    try:
        return runner(session(path))
    except (*REFUSALS, InvalidProtobuf) as error:
        raise UserError(
            f"'{path}' cannot be run ({str(error).splitlines()[0]}); make it again with python -m optimize.export"
        ) from None


def optimised(path: Path) -> ModelProto:
    """The graph that ONNX Runtime really runs on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def entries_of(events: list[dict[str, Any]], inside: Sequence[Inside]) -> list[Entries]:
    """The runs of a profile whose nodes are named by number. inside: by number, what body each is in."""
    runs = [Entries()]
    ended: dict[Inside, float] = {}  # the last entry of each body
    trip: dict[Inside, set[int]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if name == _END:
            runs.append(Entries())
            ended, trip = {}, {}
        elif event.get("cat") == "Node" and name.isdigit():
            number, run, given = int(name), runs[-1], event["args"]
            if body := inside[number]:
                again = number in trip.setdefault(body, set())
                if body in ended:
                    (run.turns.setdefault(body, []) if again else run.gaps).append(event["ts"] - ended[body])
                trip[body] = {number} if again else {*trip[body], number}
                ended[body] = event["ts"] + event["dur"]
            run.us[number] = run.us.get(number, 0.0) + event["dur"]
            known = run.activations.get(number, Activations())
            run.activations[number] = Activations(
                known.read + float(given["activation_size"]), known.written + float(given["output_size"])
            )
    return runs[:-1]


def own_times(runs: Sequence[Entries], work: Sequence[Operator], requests: int) -> dict[int, float]:
    """Microseconds of every operator in one run, without those of its bodies; requests: different ones, in turn.

    A loop's own is what lies between its trips, beyond what lies between other entries; that of what makes no second
    trip is the rest of its time.
    """
    numbers = {operator.node: number for number, operator in enumerate(work)}
    gap = _median([gap for run in runs for gap in run.gaps])
    seen = sorted(set[int]().union(*(run.us for run in runs)))
    whole = {number: usual([run.us.get(number, 0.0) for run in runs], requests) for number in seen}
    own = dict(whole)
    for number in seen:
        if work[number].inside:
            own[numbers[work[number].inside[-1][0]]] -= whole[number] + gap * work[number].calls
    for body in {body for run in runs for body in run.turns}:
        turns = [turn for run in runs for turn in run.turns.get(body, [])]
        loop = numbers[body[-1][0]]
        own[loop] = min(own[loop], max(_median(turns) - gap, 0.0) * (1 + len(turns) / len(runs)))
    return {number: max(us, 0.0) for number, us in own.items()}


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _activations(runs: Sequence[Entries], number: int) -> Activations:
    found = [run.activations.get(number, Activations()) for run in runs]
    return Activations(sum(one.read for one in found) / len(found), sum(one.written for one in found) / len(found))


def _profiling(model: ModelProto, folder: Path) -> onnxruntime.InferenceSession:
    """A session that profiles a graph as it is, every node named by its number in the order of ``walk``."""
    opened = rewriting.read(model)
    for number, (node, _) in enumerate(list(walk(opened.graph))):
        node.name = str(number)
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    content = ir.serde.serialize_model(opened).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _idle(inputs: Arrays, outputs: Arrays) -> ModelProto:
    """A graph that takes such inputs, ignores them, and gives these outputs."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}/constant"], [name]) for name in outputs],
        "idle",
        [_value(name, array) for name, array in inputs.items()],
        [_value(name, array) for name, array in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), f"{name}/constant") for name, array in outputs.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _value(name: str, array: NDArray[np.generic]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
