"""The pinned LSTM operator in long sequences and mixed company; test_lstm.py has what all methods share."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from optimize.benchmark import session
from optimize.quantize import calibrate, quantize
from optimize.quantize.plan import Choice

Array = NDArray[Any]
INPUTS, HIDDEN = 5, 24
RANDOM = np.random.default_rng(3)


def lstm(direction: str = "forward", with_state: bool = True, **attributes: Any) -> ModelProto:
    """x (time, batch, 5), lengths, h and c to y, next_h, next_c; weights are large enough to saturate some gates."""
    count = 2 if direction == "bidirectional" else 1
    random = np.random.default_rng(0)
    shapes = {"W": (count, 4 * HIDDEN, INPUTS), "R": (count, 4 * HIDDEN, HIDDEN), "B": (count, 8 * HIDDEN)}
    inputs: dict[str, list[Any]] = {
        "x": ["time", "batch", INPUTS],
        "h": [count, "batch", HIDDEN],
        "c": [count, "batch", HIDDEN],
    }
    outputs: dict[str, list[Any]] = {
        "y": ["time", count, "batch", HIDDEN],
        "next_h": inputs["h"],
        "next_c": inputs["h"],
    }
    names = ["x", "W", "R", "B", "lengths", *(["h", "c"] if with_state else [])]
    attributes |= {"hidden_size": HIDDEN, "direction": direction}
    graph = helper.make_graph(
        [helper.make_node("LSTM", names, list(outputs), name="lstm", **attributes)],
        "g",
        [
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
            *(helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items() if n in names),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(0.5 * random.normal(size=s).astype(np.float32), n) for n, s in shapes.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feed(time: int, batch: int, count: int = 1, with_state: bool = True) -> dict[str, Array]:
    arrays: dict[str, Array] = {
        "x": RANDOM.normal(size=(time, batch, INPUTS)).astype(np.float32),
        "lengths": np.full(batch, time, np.int32),
    }
    for name in "hc" if with_state else "":
        arrays[name] = (0.3 * RANDOM.normal(size=(count, batch, HIDDEN))).astype(np.float32)
    return arrays


def made(model: ModelProto, method: str, arrays: dict[str, Array]) -> ModelProto:
    choices = {"lstm": Choice("LSTM", method, "")}
    return quantize(model, choices, calibrate(model, [arrays], choices))


def run(model: ModelProto, arrays: dict[str, Array]) -> dict[str, Array]:
    opened = session(model.SerializeToString())
    return dict(zip([value.name for value in opened.get_outputs()], opened.run(None, arrays), strict=True))


PINNED_FEED = feed(40, 32)
PINNED = session(made(lstm(), "pinned", PINNED_FEED).SerializeToString())


def rows(arrays: dict[str, Array], chosen: Any) -> dict[str, Array]:
    return {n: a[chosen] if n == "lengths" else np.ascontiguousarray(a[:, chosen]) for n, a in arrays.items()}


def company_matters(opened: Any, arrays: dict[str, Array]) -> bool:
    together = opened.run(["y"], arrays)[0]
    alone = [opened.run(["y"], rows(arrays, [i]))[0] for i in range(len(arrays["lengths"]))]
    return not np.array_equal(together, np.concatenate(alone, axis=2))


@given(st.integers(2, 33), st.integers(1, 20), st.floats(1, 100))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_pinned_does_not_mind_its_company(batch: int, time: int, outlier: float) -> None:
    arrays = feed(time, batch)
    arrays["x"][:, 0] *= np.float32(outlier)
    arrays["lengths"] = RANDOM.integers(1, time + 1, size=batch).astype(np.int32)
    arrays["lengths"][0] = time
    assert not company_matters(PINNED, arrays)


def test_the_error_does_not_grow_with_the_sequence() -> None:
    arrays = feed(2000, 2)
    error = np.abs(PINNED.run(["y"], arrays)[0] - run(lstm(), arrays)["y"])
    assert error[-500:].mean() < 2 * error[:500].mean()


@pytest.mark.parametrize("scale", [1.0, 0.01, 0.001])
def test_a_range_on_one_side_of_zero_is_used_in_full(scale: float) -> None:
    arrays = feed(20, 8)
    arrays["x"] = -np.float32(scale) * np.abs(arrays["x"])
    for name in "hc":
        arrays[name][:] = 0
    exact, found = run(lstm(), arrays)["y"], run(made(lstm(), "pinned", arrays), arrays)["y"]
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.03 * exact.std()
