"""The shapes that every operator really gets and gives, in bodies too, read off ONNX Runtime's own profile of a run.

No shape inference knows all the operators of com.microsoft; the runtime does. A profile has one entry for each time
that an operator ran, so that the entries of an operator in a body tell the trip count as well.

What an ordinary run leaves out is forced, in a copy: on anything but a real request a Loop runs a given number of
times, and where the condition of an If leaves weights aside, the graph is run again through the other branch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from optimize import rewriting
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.quantize.weights import walk

DYNAMIC_SIZE = 16  # of a dynamic axis, and of a Loop whose trip count is not written down
REFUSALS = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException)
_ENDLESS = 2**31  # exporters write a trip count of 2^63 - 1 for a loop that its condition ends

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Ran:
    """Shapes of the inputs (those that are absent left out) and outputs of an operator, one time that it ran."""

    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


def zeros(model: ModelProto, sizes: Mapping[str, int], batch: int = 1, other: int = DYNAMIC_SIZE) -> Arrays:
    """A request of zeros; dynamic axes have the size given by name, or else ``batch`` or ``other``."""
    constants = {tensor.name for tensor in model.graph.initializer}
    feed: Arrays = {}
    for value in model.graph.input:
        if value.name not in constants:
            shape = [
                axis.dim_value or sizes.get(axis.dim_param, batch if _is_batch(place, axis.dim_param) else other)
                for place, axis in enumerate(value.type.tensor_type.shape.dim)
            ]
            feed[value.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return feed


def observed_shapes(
    model: ModelProto,
    feed: Arrays,
    wanted: Collection[int],
    trip_counts: Mapping[str, int] | None = None,
    real: bool = False,
) -> dict[int, list[Ran]]:
    """Run once and give the entries of every node, by its number in the order of ``walk``.

    wanted: nodes that must have run, for which branches are forced. trip_counts: of Loops, by the node's name; without
    one the constant in the graph counts, or else ``DYNAMIC_SIZE``. real: the feed is a request, for which a Loop takes
    as many trips as it takes. Raises UserError when the graph does not run.
    """
    places = list(walk(rewriting.read(model).graph))
    numbers = {node: number for number, (node, _) in enumerate(places)}
    branches = [{numbers[node]: name for node, name in inside if node.op_type == "If"} for _, inside in places]
    found: dict[int, list[Ran]] = {}
    forced: dict[int, str] | None = None
    while True:
        found = _run(_prepared(model, trip_counts or {}, forced or {}, real), feed) | found
        missing = [number for number in wanted if number not in found]
        if not missing:
            return found
        if real:  # it enters no loop, or another branch
            real = False
            continue
        if forced == branches[missing[0]]:
            name = places[missing[0]][0].name
            raise UserError(
                f"operator '{name}' never runs on this request: give inputs or trip_counts by which it does"
            )
        forced = branches[missing[0]]


def _is_batch(place: int, name: str) -> bool:
    return "batch" in name or (place == 0 and not name)


def _prepared(model: ModelProto, trip_counts: Mapping[str, int], forced: Mapping[int, str], real: bool) -> ModelProto:
    """A copy whose nodes are named by their number, and whose loops and branches are forced; loops not if ``real``."""
    opened = rewriting.read(model)

    def given(name: str, value: int | bool) -> ir.Value:
        made = ir.Value(name=f"given/{name}", const_value=ir.tensor(np.array(value), name=f"given/{name}"))
        opened.graph.register_initializer(made)
        return made

    for number, (node, _) in enumerate(list(walk(opened.graph))):
        if node.op_type == "Loop" and (not real or node.name in trip_counts):
            node.replace_input_with(0, given(f"{number}/trips", _trips(node, trip_counts)))
            node.replace_input_with(1, None)
            body = node.attributes["body"].as_graph()
            goes_on = ir.node("Identity", [given(f"{number}/true", True)])
            goes_on.outputs[0].name = f"given/{number}/goes_on"
            body.append(goes_on)
            body.outputs[0] = goes_on.outputs[0]
        if number in forced:
            node.replace_input_with(0, given(f"{number}/branch", forced[number] == "then_branch"))
        node.name = f"{number}"
    return ir.serde.serialize_model(opened)


def _trips(node: ir.Node, trip_counts: Mapping[str, int]) -> int:
    most = node.inputs[0]
    tensor = ir.convenience.get_const_tensor(most) if most is not None else None
    written = int(tensor.numpy().item()) if tensor is not None else _ENDLESS
    return trip_counts.get(str(node.name), written if written < _ENDLESS else DYNAMIC_SIZE)


def _run(model: ModelProto, feed: Arrays) -> dict[int, list[Ran]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nodes keep their names
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape in the profile
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            session.run(None, feed)
        except REFUSALS as error:
            raise UserError(f"graph does not run: {error}") from None
        return _entries(json.loads(Path(session.end_profiling()).read_text()))


def _entries(events: list[dict[str, Any]]) -> dict[int, list[Ran]]:
    found: dict[int, list[Ran]] = {}
    for event in events:
        number = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and number.isdigit():
            inputs, outputs = (_shapes(event["args"][which]) for which in ("input_type_shape", "output_type_shape"))
            found.setdefault(int(number), []).append(Ran(inputs, outputs))
    return found


def _shapes(entries: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    """From one {type: shape} for each tensor."""
    return tuple(tuple(shape) for entry in entries for shape in entry.values())
