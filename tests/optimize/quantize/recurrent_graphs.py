"""Graphs of one GRU or LSTM, requests for them, and what holds for every int8 form of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from optimize.benchmark import session
from optimize.quantize.method import Method
from tests.optimize.quantize.small_graphs import Array, normal, rewritten

FEATURES, HIDDEN = 6, 24
STATES = {"GRU": ("h",), "LSTM": ("h", "c")}
GATES = {"GRU": 3, "LSTM": 4}
FLAGS = ("bias", "lengths", "state")

Arrays = dict[str, Array]


@dataclass(frozen=True)
class Recurrent:
    """The node "rnn": x (time, batch, 6), lengths and the states to y, last_h and, for an LSTM, last_c.

    flags: which of ``FLAGS`` it has. outputs: those that the graph gives. time: fixed if it is a number.
    """

    operator: str
    direction: str = "forward"
    flags: Sequence[str] = ("bias",)
    outputs: Sequence[str] = ("y", "last_h", "last_c")
    time: int | str = "time"
    opset: int = 17
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        rows = GATES[self.operator] * HIDDEN
        return {"W": (self.count, rows, FEATURES), "R": (self.count, rows, HIDDEN), "B": (self.count, 2 * rows)}

    def weights(self) -> Arrays:
        return {name: 0.4 * normal(*shape, seed=at) for at, (name, shape) in enumerate(self.shapes.items())}

    def exact_weights(self, recurrent: bool) -> Arrays:
        """Weights that int8 holds exactly; those of the recurrence are zeros unless asked for."""
        made: Arrays = {}
        for at, (name, shape) in enumerate(self.shapes.items()):
            codes = np.random.default_rng(at).integers(-127, 128, shape)
            codes[..., 0] = 127  # the scale of every output channel is 2**-9
            made[name] = (codes * 2.0**-9).astype(np.float32)
        made["R"] *= recurrent
        return made

    def model(self, weights: Arrays | None = None) -> ModelProto:
        weights = weights or self.weights()
        states = STATES[self.operator]
        given = {"": "", "B": "bias", "lengths": "lengths", **dict.fromkeys(states, "state")}
        names = ["x", "W", "R", *(name if given[name] in self.flags else "" for name in ("B", "lengths", *states))]
        outputs = ["y", *(f"last_{name}" for name in states)]
        state_shape: list[int | str] = [self.count, "batch", HIDDEN]
        shapes: dict[str, list[int | str]] = {"x": [self.time, "batch", FEATURES], **dict.fromkeys(states, state_shape)}
        shapes |= dict.fromkeys(outputs[1:], state_shape) | {"y": [self.time, *state_shape]}
        attributes: dict[str, Any] = {"hidden_size": HIDDEN, "direction": self.direction}
        attributes |= {"linear_before_reset": 1} if self.operator == "GRU" else {}

        def info(name: str) -> Any:
            if name == "lengths":
                return helper.make_tensor_value_info(name, TensorProto.INT32, ["batch"])
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])

        node = helper.make_node(
            self.operator,
            names,
            [name if name in self.outputs else "" for name in outputs],
            name="rnn",
            **(attributes | self.attributes),
        )
        graph = helper.make_graph(
            [node],
            "recurrent",
            [info(name) for name in names if name and name not in weights],
            [info(name) for name in outputs if name in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in weights.items() if name in names],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def feed(self, time: int, batch: int, seed: int = 0) -> Arrays:
        """Lengths include 0 and ``time`` where the batch has room for both."""
        random = np.random.default_rng(seed)
        arrays: Arrays = {"x": random.standard_normal((time, batch, FEATURES)).astype(np.float32)}
        if "lengths" in self.flags:
            arrays["lengths"] = random.integers(0, time + 1, batch).astype(np.int32)
            arrays["lengths"][[-1, 0]] = 0, time
        if "state" in self.flags:
            for name in STATES[self.operator]:
                arrays[name] = random.uniform(-1, 1, (self.count, batch, HIDDEN)).astype(np.float32)
        return arrays


def quantized(model: ModelProto, method: Method, low: float = -4, high: float = 4) -> ModelProto:
    """Rewritten, with [low, high] as the calibrated range of x."""
    return rewritten(model, method, {"x": (low, high)})


def run(model: ModelProto | Any, arrays: Arrays) -> Arrays:
    """A model, or a session already open."""
    opened = session(model.SerializeToString()) if isinstance(model, ModelProto) else model
    names = [value.name for value in opened.get_outputs()]
    return dict(zip(names, opened.run(names, arrays), strict=True))


def error(found: Arrays, expected: Arrays) -> float:
    """The largest difference over all outputs, which must have the same names and shapes."""
    assert {name: array.shape for name, array in found.items()} == {n: array.shape for n, array in expected.items()}
    return max(float(np.abs(found[name] - array).max()) for name, array in expected.items())


def exact_feed(recurrent: Recurrent, method: str, time: int, batch: int) -> tuple[Arrays, float, float]:
    """A request whose codes are exact for the method, and the range to calibrate with."""
    arrays = recurrent.feed(time, batch)
    random = np.random.default_rng(1)
    unsigned = method in ("dynamic", "row_at_a_time")  # their range is from the smallest to the largest value
    if unsigned:
        codes, ends, hidden = random.integers(0, 256, arrays["x"].shape), (0, 255), 255
    else:
        codes, ends, hidden = random.integers(-127, 128, arrays["x"].shape), (127, -127), 127
    codes[..., :2] = ends
    arrays["x"] = (codes / 128).astype(np.float32)
    if "h" in arrays:
        state = random.integers(0 if unsigned else -hidden, hidden + 1, arrays["h"].shape)
        state[..., :2] = ends
        arrays["h"] = (state / hidden).astype(np.float32)
    return arrays, -1, 127 / 128


def rows(arrays: Arrays, chosen: Any) -> Arrays:
    return {name: array[chosen] if name == "lengths" else array[:, chosen] for name, array in arrays.items()}


def company_matters(model: ModelProto, arrays: Arrays) -> bool:
    """Whether any output of any row alone differs from what it is in the batch."""
    opened = session(model.SerializeToString())
    together = run(opened, arrays)
    for row in range(arrays["x"].shape[1]):
        for name, alone in run(opened, rows(arrays, [row])).items():
            if not np.array_equal(np.take(together[name], [row], axis=-2), alone):
                return True
    return False


def cuts_matter(recurrent: Recurrent, model: ModelProto, arrays: Arrays, cuts: Sequence[int]) -> bool:
    """Whether a sequence cut into chunks, the states carried on, has other outputs or other last states."""
    opened, states = session(model.SerializeToString()), STATES[recurrent.operator]
    whole, parts = run(opened, arrays), []
    carried = {name: arrays[name] for name in states}
    for start, stop in pairwise([0, *cuts, len(arrays["x"])]):
        part = run(opened, {"x": arrays["x"][start:stop], **carried})
        carried = {name: part[f"last_{name}"] for name in states}
        parts.append(part["y"])
    same = np.array_equal(np.concatenate(parts), whole["y"])
    return not (same and all(np.array_equal(carried[name], whole[f"last_{name}"]) for name in states))
