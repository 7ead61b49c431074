"""The int8 LSTM: exact where the codes are, else close to fp32; indifferent to company and cuts where it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from optimize.quantize import lstm as written_out
from optimize.quantize import lstm_operator
from optimize.quantize.lstm import CELL
from optimize.quantize.method import Method
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
from tests.optimize.quantize.small_graphs import operators, reason

METHODS = [*written_out.METHODS, *lstm_operator.METHODS]
BY_NAME = {method.name: method for method in METHODS}
INVARIANT = [method for method in METHODS if method.invariant]
DYNAMIC = [method for method in METHODS if not method.invariant]
FINE = [method for method in METHODS if not method.name.endswith("_coarse")]
DIRECTIONS = ("forward", "reverse", "bidirectional")
COMBINATIONS = [flags for size in range(4) for flags in combinations(FLAGS, size)]
EXACT = 2e-6
CLOSE = 0.05  # of outputs that fill [-1, 1]

methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
directions = pytest.mark.parametrize("direction", DIRECTIONS)


def exact_error(method: Method, lstm: Recurrent, recurrent: bool, time: int, batch: int) -> float:
    """Against fp32, where nothing is lost by rounding."""
    model = lstm.model(lstm.exact_weights(recurrent))
    arrays, low, high = exact_feed(lstm, method.name, time, batch)
    return error(run(quantized(model, method, low, high), arrays), run(model, arrays))


@pytest.mark.parametrize("method", FINE, ids=lambda method: method.name)
@directions
@pytest.mark.parametrize("flags", COMBINATIONS, ids="+".join)
def test_exact_codes_give_the_exact_answer(method: Method, direction: str, flags: Sequence[str]) -> None:
    """Over many steps, with nothing recurring but the states themselves: gates, lengths, direction and states."""
    assert exact_error(method, Recurrent("LSTM", direction, flags), False, time=5, batch=4) < EXACT


@pytest.mark.parametrize("method", [*written_out.METHODS, BY_NAME["dynamic"]], ids=lambda method: method.name)
@directions
@pytest.mark.parametrize("time", [1, "time"])
def test_exact_codes_give_the_exact_step(method: Method, direction: str, time: int | str) -> None:
    lstm = Recurrent("LSTM", direction, ("bias", "state"), time=time)
    assert exact_error(method, lstm, True, time=1, batch=3) < EXACT


def swapped(new: Replacement, inputs: Values, recurrent: Values, states: Values) -> Values:
    """The cell state in the place of the hidden state."""
    hidden, cell = CELL.step(new, inputs, recurrent, states)
    return [cell, hidden]


def without_candidate(new: Replacement, inputs: Values, recurrent: Values, states: Values) -> Values:
    """The recurrent part of the candidate cell left out."""
    return CELL.step(new, inputs, [recurrent[0], inputs[1]], states)


@pytest.mark.parametrize("step", [swapped, without_candidate])
def test_a_planted_fault_is_no_exact_step(step: Callable[..., Values]) -> None:
    faulty = method(replace(CELL, step=step), "static")
    assert exact_error(faulty, Recurrent("LSTM", flags=("bias", "state")), True, time=1, batch=3) > 1000 * EXACT


@given(
    st.sampled_from(METHODS),
    st.sampled_from(DIRECTIONS),
    st.sampled_from(COMBINATIONS),
    st.integers(1, 12),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_close_to_fp32(method: Method, direction: str, flags: Sequence[str], time: int, batch: int) -> None:
    lstm = Recurrent("LSTM", direction, flags)
    model, arrays = lstm.model(), lstm.feed(time, batch)
    assert error(run(quantized(model, method), arrays), run(model, arrays)) < CLOSE


@pytest.mark.parametrize("method", INVARIANT, ids=lambda method: method.name)
@directions
def test_company_does_not_matter(method: Method, direction: str) -> None:
    lstm = Recurrent("LSTM", direction, FLAGS)
    arrays = lstm.feed(9, 19)
    arrays["x"][:, 1] *= 1000
    arrays["x"][:, 2] *= 1e-3
    arrays["x"][:, 3] = 0
    assert not company_matters(quantized(lstm.model(), method), arrays)


@pytest.mark.parametrize("method", DYNAMIC, ids=lambda method: method.name)
def test_company_matters_to_dynamic(method: Method) -> None:
    lstm = Recurrent("LSTM")
    arrays = lstm.feed(9, 3)
    arrays["x"][:, 1] *= 10
    assert company_matters(quantized(lstm.model(), method), arrays)


@pytest.mark.parametrize("method", INVARIANT, ids=lambda method: method.name)
@given(st.lists(st.integers(1, 19), unique=True, max_size=5).map(sorted))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_cuts_do_not_matter(method: Method, cuts: list[int]) -> None:
    lstm = Recurrent("LSTM", flags=("bias", "state"))
    assert not cuts_matter(lstm, quantized(lstm.model(), method), lstm.feed(20, 3), cuts)


@pytest.mark.parametrize("method", DYNAMIC, ids=lambda method: method.name)
def test_cuts_matter_to_dynamic(method: Method) -> None:
    lstm = Recurrent("LSTM", flags=("bias", "state"))
    assert cuts_matter(lstm, quantized(lstm.model(), method), lstm.feed(20, 3), [7])


@methods
@pytest.mark.parametrize("outputs", [("y",), ("last_h",), ("last_c",), ("y", "last_c")], ids="+".join)
@pytest.mark.parametrize("flags", [(), ("lengths",)], ids=str)
def test_outputs_that_nothing_uses_are_left_out(method: Method, outputs: Sequence[str], flags: Sequence[str]) -> None:
    lstm = Recurrent("LSTM", "bidirectional", flags, outputs)
    model, arrays = lstm.model(), lstm.feed(4, 2)
    int8 = quantized(model, method)
    found = operators(int8)
    expected = (2, 0, 8) if method in written_out.METHODS else (0, 1, 0)
    assert found["LSTM"] == 0
    assert (found["Scan"], found["DynamicQuantizeLSTM"], found["MatMulIntegerToFloat"]) == expected
    assert [value.name for value in int8.graph.output] == list(outputs)
    assert error(run(int8, arrays), run(model, arrays)) < CLOSE


@methods
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_every_operator_set(method: Method, opset: int) -> None:
    lstm = Recurrent("LSTM", flags=FLAGS, opset=opset)
    model, arrays = lstm.model(), lstm.feed(3, 2)
    assert error(run(quantized(model, method), arrays), run(model, arrays)) < CLOSE


@methods
@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"input_forget": 1}, "its input_forget is not 0"),
        ({"layout": 1}, "its layout is not 0"),
        ({"clip": 3.0}, "it clips"),
        ({"activations": ["Sigmoid", "Tanh", "Relu"]}, "its activations are Sigmoid, Tanh, Relu"),
        ({"activations": ["Sigmoid", "Tanh", "Tanh"]}, ""),
    ],
    ids=str,
)
def test_what_is_refused(method: Method, attributes: dict[str, object], why: str) -> None:
    found = reason(Recurrent("LSTM", attributes=attributes).model(), method)
    assert found.startswith(why)
    assert bool(found) == bool(why)


@methods
def test_peepholes_are_refused(method: Method) -> None:
    model = Recurrent("LSTM").model()
    model.graph.node[0].input.append("P")
    model.graph.input.append(helper.make_tensor_value_info("P", TensorProto.FLOAT, [1, 72]))
    assert reason(model, method) == "it has peepholes"


@methods
def test_each_channel_has_a_scale_unless_coarse(method: Method) -> None:
    """One channel a thousand times larger than the others would drown them in a scale of its own size."""
    lstm = Recurrent("LSTM")
    weights = lstm.weights()
    weights["W"][0, 0] *= 1000
    model, arrays = lstm.model(weights), lstm.feed(8, 3)
    found, expected = run(quantized(model, method), arrays), run(model, arrays)
    drowned = np.abs(found["y"][..., 1:] - expected["y"][..., 1:]).max() > CLOSE
    assert drowned == method.name.endswith("_coarse")
