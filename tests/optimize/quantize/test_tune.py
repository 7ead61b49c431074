"""A plan is what the measurements say: the best method that pays, of those that the profile allows."""

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from optimize import fuse, onnx_export, recipes
from optimize.data.dataset import Split
from optimize.errors import UserError
from optimize.quantize import METHODS, operators
from optimize.quantize.tune import Ratio, choose, tune

VARIANT = recipes.load("load_forecast").variants["lstm"]
SPEC = VARIANT.spec


@pytest.fixture(scope="module")
def fp32() -> ModelProto:
    torch.manual_seed(0)
    return fuse.fuse(onnx_export.export(VARIANT.networks["small_32"]().eval(), SPEC))[0]


@pytest.fixture(scope="module")
def requests() -> Split:
    inputs = onnx_export.example_inputs(SPEC, 32)
    arrays = {name: tensor.numpy() for name, tensor in zip(SPEC.input_names, inputs, strict=True)}
    return Split(arrays, {}, np.arange(32))


@pytest.mark.parametrize("calibrated", [True, False])
def test_both_profiles_plan_every_operator_with_what_they_may_use(
    fp32: ModelProto, requests: Split, calibrated: bool
) -> None:
    plan = tune(fp32, requests, rounds=5, calibrated=calibrated)
    invariant = {method.name for method in METHODS if method.invariant}
    for profile, choices in plan.choices.items():
        assert {name: choice.operator for name, choice in choices.items()} == operators(fp32)
        for choice in choices.values():
            assert choice.reason
            if choice.quantised:
                assert profile == "throughput" or choice.method in invariant
                assert calibrated or choice.method not in ("static", "pinned", "pinned_coarse")
    assert "times as long as throughput" in plan.reason


def test_the_best_that_pays_is_chosen() -> None:
    tried = {"a": Ratio(0.9, 0.5), "b": Ratio(0.6, 0.6), "c": Ratio(0.2, 1.2)}  # c is slower in batches
    assert choose("LSTM", tried, {}).method == "b"
    assert "0.60 of its fp32 time alone" in choose("LSTM", tried, {}).reason


def test_fp32_is_kept_where_it_is_faster_and_the_reason_says_so() -> None:
    kept = choose("GRU", {"static": Ratio(1.5, 0.9), "per_row": Ratio(1.7, 1.1)}, {})
    assert kept.method == "fp32"
    assert "by static, the best of 2, the model takes 1.50" in kept.reason


def test_refusals_are_the_reason_when_nothing_could_be_tried() -> None:
    kept = choose("Conv", {"static": None}, {"static": "it is depthwise"})
    assert (kept.method, kept.reason) == ("fp32", "it is depthwise")
    assert "no method for RNN" in choose("RNN", {}, {}).reason


def test_too_few_requests_are_one_message(fp32: ModelProto, requests: Split) -> None:
    with pytest.raises(UserError, match="at least 16 requests, 5 were given"):
        tune(fp32, requests.take(slice(0, 5)))


def test_one_that_is_refused_keeps_no_other_from_it() -> None:
    """Two pointwise convolutions and one with a stride, of equal shape."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], "plain", kernel_shape=[1]),
        onnx.helper.make_node("Conv", ["a", "w"], ["b"], "also", kernel_shape=[1]),
        onnx.helper.make_node("Conv", ["b", "w"], ["y"], "strided", kernel_shape=[1], strides=[2]),
    ]
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 16, None]) for n in "xy"]
    weights = np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32)
    made = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(weights, "w")])
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(1).normal(size=(16, 16, 8)).astype(np.float32)
    choices = tune(model, Split({"x": x}, {}, np.arange(16)), rounds=5).choices["invariant"]
    assert choices["strided"].method == "fp32"
    assert "stride" in choices["strided"].reason or "together" in choices["strided"].reason  # a busy machine may say so
    assert "measured" in choices["plain"].reason
    assert "measured" in choices["also"].reason
