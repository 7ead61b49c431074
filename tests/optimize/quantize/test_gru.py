"""The int8 GRU: exact where the codes are, else close to fp32; indifferent to company and cuts where it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from optimize.data.dataset import Arrays
from optimize.quantize import recurrence
from optimize.quantize.calibration import observe
from optimize.quantize.gru import CELL, METHODS
from optimize.quantize.method import Method, QuantizationError
from optimize.quantize.recurrence import Values, method
from optimize.rewriting import Replacement
from tests.optimize.quantize.recurrent_graphs import (
    FLAGS,
    Recurrent,
    company_matters,
    cuts_matter,
    error,
    exact_feed,
    quantized,
    run,
)
from tests.optimize.quantize.small_graphs import operators, reason, rewritten

BY_NAME = {method.name: method for method in METHODS}
INVARIANT = [method for method in METHODS if method.invariant]
DIRECTIONS = ("forward", "reverse", "bidirectional")
COMBINATIONS = [flags for size in range(4) for flags in combinations(FLAGS, size)]
EXACT = 2e-6
CLOSE = 0.05  # of outputs that fill [-1, 1]

methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
invariant = pytest.mark.parametrize("method", INVARIANT, ids=lambda method: method.name)
directions = pytest.mark.parametrize("direction", DIRECTIONS)


def exact_error(method: Method, gru: Recurrent, recurrent: bool, time: int, batch: int) -> float:
    """Against fp32, where nothing is lost by rounding."""
    model = gru.model(gru.exact_weights(recurrent))
    arrays, low, high = exact_feed(gru, method.name, time, batch)
    return error(run(quantized(model, method, low, high), arrays), run(model, arrays))


@methods
@directions
@pytest.mark.parametrize("flags", COMBINATIONS, ids="+".join)
def test_exact_codes_give_the_exact_answer(method: Method, direction: str, flags: Sequence[str]) -> None:
    """Over many steps, with nothing recurring but the state itself: gates, lengths, direction and states."""
    assert exact_error(method, Recurrent("GRU", direction, flags), False, time=5, batch=4) < EXACT


@methods
@directions
@pytest.mark.parametrize("time", [1, "time"])
def test_exact_codes_give_the_exact_step(method: Method, direction: str, time: int | str) -> None:
    gru = Recurrent("GRU", direction, ("bias", "state"), time=time)
    assert exact_error(method, gru, True, time=1, batch=3) < EXACT


def swapped(new: Replacement, inputs: Values, recurrent: Values, states: Values) -> Values:
    """An update the wrong way round: h' = h + z (n - h)."""
    (x_zr, x_n), (h_zr, h_n), (h,) = inputs, recurrent, states
    (n,) = CELL.step(new, [x_zr, x_n], [h_zr, h_n], [h])
    return [new.op("Sub", h, new.op("Sub", n, h))]


@pytest.mark.parametrize("fault", [{"inner_bias": False}, {"step": swapped}], ids=["bias outside", "gates swapped"])
def test_a_planted_fault_is_no_exact_step(fault: dict[str, Any]) -> None:
    faulty = method(replace(CELL, **fault), "static")
    assert exact_error(faulty, Recurrent("GRU", flags=("bias", "state")), True, time=1, batch=3) > 1000 * EXACT


def test_lengths_that_are_ignored_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "_valid", lambda new: None)
    assert exact_error(BY_NAME["static"], Recurrent("GRU", flags=FLAGS), False, time=5, batch=4) > 1000 * EXACT


@given(
    st.sampled_from(METHODS),
    st.sampled_from(DIRECTIONS),
    st.sampled_from(COMBINATIONS),
    st.integers(1, 12),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_close_to_fp32(method: Method, direction: str, flags: Sequence[str], time: int, batch: int) -> None:
    gru = Recurrent("GRU", direction, flags)
    model, arrays = gru.model(), gru.feed(time, batch)
    assert error(run(quantized(model, method), arrays), run(model, arrays)) < CLOSE


@invariant
@directions
def test_company_does_not_matter(method: Method, direction: str) -> None:
    gru = Recurrent("GRU", direction, FLAGS)
    arrays = gru.feed(9, 19)
    arrays["x"][:, 1] *= 1000
    arrays["x"][:, 2] *= 1e-3
    arrays["x"][:, 3] = 0
    assert not company_matters(quantized(gru.model(), method), arrays)


def test_company_matters_to_dynamic() -> None:
    gru = Recurrent("GRU")
    arrays = gru.feed(9, 3)
    arrays["x"][:, 1] *= 10
    assert company_matters(quantized(gru.model(), BY_NAME["dynamic"]), arrays)


@invariant
@given(st.lists(st.integers(1, 19), unique=True, max_size=5).map(sorted))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_cuts_do_not_matter(method: Method, cuts: list[int]) -> None:
    gru = Recurrent("GRU", flags=("bias", "state"))
    assert not cuts_matter(gru, quantized(gru.model(), method), gru.feed(20, 3), cuts)


def test_cuts_matter_to_dynamic() -> None:
    gru = Recurrent("GRU", flags=("bias", "state"))
    assert cuts_matter(gru, quantized(gru.model(), BY_NAME["dynamic"]), gru.feed(20, 3), [7])


@methods
@pytest.mark.parametrize("outputs", [("y",), ("last_h",), ("y", "last_h")], ids="+".join)
@pytest.mark.parametrize("flags", [(), ("lengths",)], ids=str)
def test_outputs_that_nothing_uses_are_left_out(method: Method, outputs: Sequence[str], flags: Sequence[str]) -> None:
    gru = Recurrent("GRU", "bidirectional", flags, outputs)
    model, arrays = gru.model(), gru.feed(4, 2)
    int8 = quantized(model, method)
    found = operators(int8)
    assert (found["GRU"], found["Scan"], found["MatMulIntegerToFloat"]) == (0, 2, 8)
    scans = [node for node in int8.graph.node if node.op_type == "Scan"]
    assert {len(node.output) for node in scans} == {1 + ("y" in outputs)}
    assert [value.name for value in int8.graph.output] == list(outputs)
    assert error(run(int8, arrays), run(model, arrays)) < CLOSE


@methods
def test_one_step_needs_no_scan(method: Method) -> None:
    int8 = quantized(Recurrent("GRU", time=1).model(), method)
    assert operators(int8)["Scan"] == 0
    assert operators(int8)["MatMulIntegerToFloat"] == 4


@methods
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_every_operator_set(method: Method, opset: int) -> None:
    gru = Recurrent("GRU", flags=FLAGS, opset=opset)
    model, arrays = gru.model(), gru.feed(3, 2)
    assert error(run(quantized(model, method), arrays), run(model, arrays)) < CLOSE


def stacked() -> ModelProto:
    """Two layers as PyTorch exports them: a Squeeze between, and after the second a Transpose to (batch, time, ..)."""
    first, second = Recurrent("GRU").model(), Recurrent("GRU").model()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in first.graph.initializer}
    upper = {**weights, "W": np.random.default_rng(9).normal(size=weights["R"].shape).astype(np.float32) * 0.3}
    settled: dict[str, Any] = {"hidden_size": weights["R"].shape[2], "linear_before_reset": 1}
    nodes = [
        helper.make_node("GRU", ["x", "W", "R", "B"], ["y_0", ""], name="lower", **settled),
        helper.make_node("Squeeze", ["y_0", "axis"], ["x_1"]),
        helper.make_node("GRU", ["x_1", "W_1", "R_1", "B_1"], ["y_1", "last"], name="upper", **settled),
        helper.make_node("Squeeze", ["y_1", "axis"], ["y_2"]),
        helper.make_node("Transpose", ["y_2"], ["y"], perm=[1, 0, 2]),
    ]
    constants = [*second.graph.initializer, numpy_helper.from_array(np.array([1]), "axis")]
    constants += [numpy_helper.from_array(array, f"{name}_1") for name, array in upper.items()]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, None, None]) for n in ("y", "last")]
    graph = helper.make_graph(nodes, "stacked", first.graph.input, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@methods
def test_stacked_layers(method: Method) -> None:
    model, arrays = stacked(), Recurrent("GRU").feed(7, 3)
    int8 = rewritten(model, method, {"x": (-4, 4), "x_1": (-1, 1)})
    assert operators(int8)["Scan"] == 2
    assert error(run(int8, arrays), run(model, arrays)) < CLOSE
    kept = {name for node in int8.graph.node for name in node.output}
    assert {"y_0", "x_1", "y_1", "last"} <= kept


def in_a_loop() -> ModelProto:
    """A decoder: one step of a GRU in each turn of a Scan."""
    gru = Recurrent("GRU", flags=("bias", "state"), outputs=("last_h",), time=1)
    step = gru.model().graph
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["row", "axis"], ["x"]),
            *step.node,
            helper.make_node("Identity", ["last_h"], ["shown"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, None, 24]),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, [None, 6]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, None, 24]) for n in ("last_h", "shown")],
    )
    graph = helper.make_graph(
        [helper.make_node("Scan", ["h_0", "sequence"], ["h_T", "y"], name="scan", body=body, num_scan_inputs=1)],
        "loop",
        [
            helper.make_tensor_value_info("h_0", TensorProto.FLOAT, [1, "batch", 24]),
            helper.make_tensor_value_info("sequence", TensorProto.FLOAT, ["time", "batch", 6]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", 1, "batch", 24])],
        [*step.initializer, numpy_helper.from_array(np.array([0]), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", ["dynamic", "static", "per_row"])
def test_inside_a_body(name: str) -> None:
    model, random = in_a_loop(), np.random.default_rng(0)
    sequence = random.normal(size=(5, 2, 6)).astype(np.float32)
    arrays: Arrays = {"sequence": sequence, "h_0": np.zeros((1, 2, 24), np.float32)}
    ranges = observe(model, ["x"], [arrays])
    assert ranges["x"] == (sequence.min(), sequence.max()), "of all turns"
    int8 = rewritten(model, BY_NAME[name], ranges)
    assert operators(int8)["MatMulIntegerToFloat"] == 4
    assert error(run(int8, arrays), run(model, arrays)) < CLOSE


@methods
@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"linear_before_reset": 0}, "its linear_before_reset is not 1"),
        ({"layout": 1}, "its layout is not 0"),
        ({"clip": 3.0}, "it clips"),
        ({"activations": ["Sigmoid", "Relu"]}, "its activations are Sigmoid, Relu"),
        ({"activations": ["SIGMOID", "tanh"]}, ""),
    ],
    ids=str,
)
def test_what_is_refused(method: Method, attributes: dict[str, object], why: str) -> None:
    found = reason(Recurrent("GRU", attributes=attributes).model(), method)
    assert found.startswith(why)
    assert bool(found) == bool(why)


@methods
@pytest.mark.parametrize(("name", "why"), [("W", "weights"), ("R", "weights"), ("B", "bias")])
def test_weights_that_are_no_constants_are_refused(method: Method, name: str, why: str) -> None:
    model = Recurrent("GRU").model()
    (given,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    model.graph.initializer.remove(given)
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, given.dims))
    onnx.checker.check_model(model)
    assert f"{why}" in reason(model, method)
    assert "no constant" in reason(model, method)


def test_an_input_that_was_not_observed_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="'x' has no calibrated range"):
        rewritten(Recurrent("GRU").model(), BY_NAME["static"], {"other": (0, 1)})


def test_channels_of_almost_nothing_do_not_overflow() -> None:
    gru = Recurrent("GRU")
    weights = gru.weights()
    weights["R"][0, -1] = 1e-38  # of the gate whose recurrent bias stays inside
    arrays = gru.feed(3, 2)
    assert error(run(quantized(gru.model(weights), BY_NAME["static"]), arrays), run(gru.model(weights), arrays)) < CLOSE
