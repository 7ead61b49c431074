"""A plan carried out on the forecaster's graph: all of it, nothing but it, and proven on the result."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from optimize import fuse, onnx_export, recipes
from optimize.benchmark import session
from optimize.data.dataset import Arrays
from optimize.quantize import METHODS, calibrate, operators, quantize
from optimize.quantize.coverage import coverage, planned_share
from optimize.quantize.method import FP32, QuantizationError
from optimize.quantize.plan import Choice, Choices

VARIANT = recipes.load("load_forecast").variants["lstm"]
SPEC = VARIANT.spec


@pytest.fixture(scope="module")
def fp32() -> ModelProto:
    torch.manual_seed(0)
    return fuse.fuse(onnx_export.export(VARIANT.networks["small_32"]().eval(), SPEC))[0]


def everything(model: ModelProto, lstm: str, product: str) -> Choices:
    ways = {"LSTM": lstm}
    return {name: Choice(kind, ways.get(kind, product), "test") for name, kind in operators(model).items()}


def feed(batch: int, seed: int = 5) -> Arrays:
    inputs = onnx_export.example_inputs(SPEC, batch, seed)
    return {name: tensor.numpy() for name, tensor in zip(SPEC.input_names, inputs, strict=True)}


def answer(model: ModelProto, inputs: Arrays) -> np.ndarray:  # type: ignore[type-arg]
    result: np.ndarray = session(model.SerializeToString()).run(None, inputs)[0]  # type: ignore[type-arg]
    return result


@pytest.mark.parametrize(
    ("lstm", "product", "invariant"),
    [("dynamic", "dynamic", False), ("pinned", "static", True), ("pinned_coarse", "per_row", True)],
)
def test_int8_is_really_int8(fp32: ModelProto, lstm: str, product: str, invariant: bool) -> None:
    choices = everything(fp32, lstm, product)
    int8 = quantize(fp32, choices, calibrate(fp32, [feed(16)], choices))
    onnx_export.check(int8, SPEC)
    types = {node.op_type for node in int8.graph.node}
    assert "DynamicQuantizeLSTM" in types
    assert not {"LSTM", "MatMul", "Gemm"} & types
    proof = coverage(int8)
    assert proof.weight_bytes_fraction == proof.mac_fraction == 1
    assert coverage(fp32).weight_bytes_fraction == 0
    assert planned_share(fp32, int8, choices) == (1.0, [])
    inputs = feed(4)
    together = answer(int8, inputs)
    exact = answer(fp32, inputs)
    assert 0 < np.abs(together - exact).max() < 0.1 * exact.std()
    alone = np.concatenate([answer(int8, {name: v[i : i + 1] for name, v in inputs.items()}) for i in range(4)])
    assert np.array_equal(alone, together) == invariant


def test_what_the_plan_leaves_alone_is_left_alone(fp32: ModelProto) -> None:
    choices = everything(fp32, "dynamic", FP32)
    int8 = quantize(fp32, choices, {})
    kept = {name for name, choice in choices.items() if not choice.quantised}
    assert kept == set(coverage(int8).kept_fp32)
    assert 0 < coverage(int8).mac_fraction < 1


def test_a_method_names_what_it_is_for() -> None:
    keys = [(method.operator, method.name) for method in METHODS]
    assert len(keys) == len(set(keys))


def _hide_weights(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    model.graph.input.append(onnx.helper.make_tensor_value_info("weights", onnx.TensorProto.FLOAT, None))
    node.input[1] = "weights"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("LSTM", "nearly", ""), "by 'nearly', which does not exist; there is dynamic, pinned"),
        (Choice("LSTM", "pinned", ""), "no calibrated range"),
    ],
)
def test_what_cannot_be_done_is_an_error(fp32: ModelProto, choice: Choice, message: str) -> None:
    name = next(name for name, kind in operators(fp32).items() if kind == "LSTM")
    with pytest.raises(QuantizationError, match=message):
        quantize(fp32, {name: choice}, {})


def test_a_plan_for_operators_that_are_not_there_is_an_error(fp32: ModelProto) -> None:
    broken = copy.deepcopy(fp32)
    _hide_weights(broken)
    with pytest.raises(QuantizationError, match=r"cannot be quantised|no such operator"):
        quantize(broken, everything(fp32, "dynamic", "dynamic"), {})
