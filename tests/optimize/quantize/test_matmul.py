"""Quantised products: close to fp32, exact where the codes are, and indifferent to who shares the batch."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from optimize.benchmark import session
from optimize.quantize import matmul
from optimize.quantize.method import Method, QuantizationError
from optimize.quantize.product import affine, per_channel
from tests.optimize.quantize.small_graphs import (
    Array,
    answer,
    company,
    drift,
    graph,
    normal,
    operators,
    reason,
    relative_error,
    rewritten,
)

BY_NAME = {(method.operator, method.name): method for method in matmul.METHODS}
NAMES = ["dynamic", "static", "per_row"]
K, N = 37, 29  # no multiples of any vector width


def matmul_of(x: Array, weights: Array, bias: Array | None = None, opset: int = 17) -> ModelProto:
    if bias is None:
        return graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weights}, x, opset=opset)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"), helper.make_node("Add", ["b", "m"], ["y"])]
    return graph(nodes, {"w": weights, "b": bias}, x, opset=opset)


def gemm_of(x: Array, weights: Array, bias: Array | None, **attributes: Any) -> ModelProto:
    inputs = ["x", "w"] + (["b"] if bias is not None else [])
    constants = {"w": weights} | ({"b": bias} if bias is not None else {})
    return graph([helper.make_node("Gemm", inputs, ["y"], name="fc", **attributes)], constants, x)


def conv_of(x: Array, weights: Array, bias: Array | None, **attributes: Any) -> ModelProto:
    """x: (batch, time, channels), transposed for the Conv."""
    inputs = ["t", "w"] + (["b"] if bias is not None else [])
    constants = {"w": weights} | ({"b": bias} if bias is not None else {})
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Conv", inputs, ["y"], name="conv", **attributes),
    ]
    return graph(nodes, constants, x)


MODELS: dict[str, Callable[[], tuple[ModelProto, tuple[int, ...]]]] = {
    "MatMul": lambda: (matmul_of(normal(5, K), normal(K, N)), (5, K)),
    "MatMul 3d": lambda: (matmul_of(normal(5, 3, K), normal(K, N), normal(N)), (5, 3, K)),
    "MatMul 4d": lambda: (matmul_of(normal(5, 2, 3, K), normal(K, N), normal(N)), (5, 2, 3, K)),
    "MatMul opset 21": lambda: (matmul_of(normal(5, K), normal(K, N), opset=21), (5, K)),
    "Gemm": lambda: (gemm_of(normal(5, K), normal(K, N), None), (5, K)),
    "Gemm transB": lambda: (gemm_of(normal(5, K), normal(N, K), normal(1, N), transB=1), (5, K)),
    "Gemm scalar": lambda: (gemm_of(normal(5, K), normal(K, N), normal(1)), (5, K)),
    "Conv": lambda: (conv_of(normal(5, 4, K), normal(N, K, 1), normal(N)), (5, 4, K)),
    "Conv bare": lambda: (conv_of(normal(5, 4, K), normal(N, K, 1), None, pads=[0, 0], strides=[1]), (5, 4, K)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", MODELS)
def test_the_answer_stays_within_eight_bits(case: str, name: str) -> None:
    model, shape = MODELS[case]()
    x = normal(*shape, seed=1)
    quantized = rewritten(model, BY_NAME[case.split()[0], name], feeds=[x])
    assert not operators(quantized).keys() & {"MatMul", "Gemm", "Conv"}
    expected = answer(model, x)
    found = answer(quantized, x)
    assert found.shape == expected.shape
    assert 1e-4 < relative_error(found, expected) < 0.02


def test_the_operators_written_are_the_ones_documented() -> None:
    model = matmul_of(normal(5, K), normal(K, N), normal(N))
    feeds = [normal(5, K)]
    assert operators(rewritten(model, BY_NAME["MatMul", "dynamic"])) == {"DynamicQuantizeMatMul": 1}
    assert operators(rewritten(model, BY_NAME["MatMul", "static"], feeds=feeds)) == {
        "QuantizeLinear": 1,
        "MatMulIntegerToFloat": 1,
    }
    plain = ["Abs", "ReduceMax", "Max", "Reciprocal", "Mul", "QuantizeLinear", "MatMulIntegerToFloat", "Mul", "Add"]
    assert operators(rewritten(model, BY_NAME["MatMul", "per_row"])) == Counter(plain)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_eight_bits_hold_are_exact(name: str) -> None:
    generator = np.random.default_rng(0)
    weights = generator.integers(-127, 128, (K, N)).astype(np.float32)
    weights[0] = 127
    x = generator.integers(-127, 128, (6, K)).astype(np.float32)
    x[:, 0], x[:, 1] = 127, -128 if name != "per_row" else -127
    model = matmul_of(x, weights)
    np.testing.assert_allclose(answer(rewritten(model, BY_NAME["MatMul", name], feeds=[x]), x), x @ weights, rtol=1e-6)


def test_exactness_would_notice_a_wrong_code() -> None:
    weights = np.random.default_rng(0).integers(-127, 128, (K, N)).astype(np.float32)
    weights[0] = 127
    x = np.full((1, K), 127, np.float32)
    quantized = rewritten(matmul_of(x, weights), BY_NAME["MatMul", "per_row"])
    (codes,) = [tensor for tensor in quantized.graph.initializer if tensor.data_type == TensorProto.INT8]
    wrong = numpy_helper.to_array(codes).copy()
    wrong[5, 5] += 1
    codes.CopyFrom(numpy_helper.from_array(wrong, codes.name))
    assert not np.allclose(answer(quantized, x), x @ weights, rtol=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    batch=st.integers(2, 33),
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 100),
    steps=st.sampled_from([None, 1, 5]),
    name=st.sampled_from(["static", "per_row"]),
    seed=st.integers(0, 99),
)
def test_invariant_methods_answer_alone_as_in_company(
    batch: int, inputs: int, outputs: int, steps: int | None, name: str, seed: int
) -> None:
    shape = (inputs,) if steps is None else (steps, inputs)
    x = company(batch, *shape, seed=seed)
    model = matmul_of(x, normal(inputs, outputs, seed=seed), normal(outputs))
    assert drift(rewritten(model, BY_NAME["MatMul", name], feeds=[normal(4, *shape)]), x) == 0


@pytest.mark.parametrize("case", ["Gemm transB", "Conv"])
@pytest.mark.parametrize("name", ["static", "per_row"])
def test_gemm_and_conv_answer_alone_as_in_company(case: str, name: str) -> None:
    model, shape = MODELS[case]()
    method = BY_NAME[case.split()[0], name]
    assert method.invariant
    assert drift(rewritten(model, method, feeds=[normal(*shape)]), company(9, *shape[1:])) == 0


def test_dynamic_does_depend_on_the_company() -> None:
    assert not BY_NAME["MatMul", "dynamic"].invariant
    x = company(5, K)
    assert drift(rewritten(matmul_of(x, normal(K, N)), BY_NAME["MatMul", "dynamic"]), x) > 0.1


def test_per_row_keeps_what_one_scale_for_all_loses() -> None:
    x = company(8, K)
    model = matmul_of(x, normal(K, N))
    expected, whisper = answer(model, x), 2
    errors = {
        name: relative_error(
            answer(rewritten(model, BY_NAME["MatMul", name], feeds=[x]), x)[whisper], expected[whisper]
        )
        for name in NAMES
    }
    assert errors["per_row"] < 0.02
    assert errors["dynamic"] > 0.5
    assert errors["static"] > 0.5


def test_rows_of_zeros_and_of_tiny_numbers_stay_finite() -> None:
    bias = normal(N)
    x = np.zeros((3, K), np.float32)
    x[1], x[2] = 1e-39, 1e38
    quantized = rewritten(matmul_of(x, normal(K, N) / K, bias), BY_NAME["MatMul", "per_row"])
    found = answer(quantized, x)
    np.testing.assert_array_equal(found[0], bias)
    assert np.isfinite(found).all()


def test_a_neighbour_that_is_not_a_number_spoils_nobody_else() -> None:
    x = normal(3, K)
    quantized = rewritten(matmul_of(x, normal(K, N)), BY_NAME["MatMul", "per_row"])
    expected = answer(quantized, x)
    for poison in (np.nan, np.inf):
        x[1, 4] = poison
        np.testing.assert_array_equal(answer(quantized, x)[[0, 2]], expected[[0, 2]])


def test_a_single_vector_is_a_row() -> None:
    x, weights = normal(K), normal(K, N)
    for name in NAMES:
        found = answer(rewritten(matmul_of(x, weights), BY_NAME["MatMul", name], feeds=[x]), x)
        assert relative_error(found, x @ weights) < 0.02


def test_what_leaves_the_calibrated_range_is_clipped() -> None:
    x, weights = np.full((1, K), 3, np.float32), np.eye(K, dtype=np.float32)
    method = BY_NAME["MatMul", "static"]
    quantized = rewritten(matmul_of(x, weights), method, ranges={"x": (0.0, 1.0)})
    np.testing.assert_allclose(answer(quantized, x), 1, rtol=1e-6)
    with pytest.raises(QuantizationError, match="'fc': its activation 'x' has no calibrated range; observe it first"):
        rewritten(matmul_of(x, weights), method, ranges={"other": (0.0, 1.0)})


def test_a_bias_is_taken_in_only_when_nothing_else_sees_the_product() -> None:
    x, bias = normal(5, K), normal(N)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Mul", ["s", "m"], ["y"]),
    ]
    twice = graph(nodes, {"w": normal(K, N), "b": bias}, x)
    wide = graph([nodes[0], helper.make_node("Add", ["m", "b"], ["y"])], {"w": normal(K, N), "b": normal(5, N)}, x)
    for model in (twice, wide):
        quantized = rewritten(model, BY_NAME["MatMul", "static"], feeds=[x])
        assert operators(quantized)["Add"] == 1
        assert relative_error(answer(quantized, x), answer(model, x)) < 0.03


def loop_of(weights: Array, x: Array) -> ModelProto:
    """Three times x <- tanh(x W); the weights live in the outer graph."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["m"], name="inner"),
            helper.make_node("Tanh", ["m"], ["next"]),
            helper.make_node("Identity", ["go"], ["went"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", len(weights)]),
        ],
        [
            helper.make_tensor_value_info("went", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", len(weights)]),
        ],
    )
    nodes = [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)]
    return graph(nodes, {"w": weights, "trips": np.array(3)}, x)


@pytest.mark.parametrize("name", ["dynamic", "static", "per_row"])
def test_products_in_bodies_are_quantised_too(name: str) -> None:
    x = normal(5, K)
    model = loop_of(normal(K, K) / 6, x)
    quantized = rewritten(model, BY_NAME["MatMul", name], feeds=[x])
    assert "MatMul" not in operators(quantized)
    assert relative_error(answer(quantized, x), answer(model, x)) < 0.03
    assert name == "dynamic" or drift(quantized, company(9, K)) == 0


def test_in_a_branch_nothing_is_calibrated() -> None:
    x = normal(5, K)
    made = [helper.make_tensor_value_info("m", TensorProto.FLOAT, ["batch", K])]
    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("MatMul", ["n", "w"], ["m"])], "then", [], made
        ),
        "else_branch": helper.make_graph([helper.make_node("Identity", ["x"], ["m"])], "else", [], made),
    }
    nodes = [helper.make_node("If", ["yes"], ["y"], **branches)]
    model = graph(nodes, {"w": normal(K, K), "yes": np.array(True)}, x)
    assert "inside a branch, where calibration may never see it" in reason(model, BY_NAME["MatMul", "static"])
    assert not reason(model, BY_NAME["MatMul", "per_row"])


def test_a_bias_in_a_body_stays_there() -> None:
    x = normal(5, K)
    body = helper.make_graph(
        [helper.make_node("Add", ["m", "b"], ["sum"])], "body", [], [helper.make_tensor_value_info("sum", 1, None)]
    )
    product = helper.make_node("MatMul", ["x", "w"], ["m"], name="fc")
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other_body())
    model = graph([product, choice], {"w": normal(K, N), "b": normal(N), "yes": np.array(True)}, x)
    quantized = rewritten(model, BY_NAME["MatMul", "dynamic"])
    assert operators(quantized)["Add"] == 1
    assert relative_error(answer(quantized, x), answer(model, x)) < 0.02


def other_body() -> GraphProto:
    """An If's branch that does without the product."""
    constant = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.zeros((1, N), np.float32)))
    return helper.make_graph([constant], "other", [], [helper.make_tensor_value_info("zero", 1, None)])


def test_an_activation_that_several_products_share_is_quantised_once_at_load() -> None:
    x = normal(5, K)
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"m{i}"], name=f"fc{i}") for i in range(3)]
    nodes.append(helper.make_node("Sum", ["m0", "m1", "m2"], ["y"]))
    model = graph(nodes, {f"w{i}": normal(K, N, seed=i) for i in range(3)}, x)
    for name in ("static", "per_row"):
        loaded = loaded_operators(rewritten(model, BY_NAME["MatMul", name], feeds=[x]))
        assert (loaded["QuantizeLinear"], loaded["MatMulIntegerToFloat"]) == (1, 3)
        assert loaded["Abs"] <= 1


def loaded_operators(model: ModelProto) -> dict[str, int]:
    """What ONNX Runtime makes of a model: how often each operator runs, from its profile."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        opened.run(None, {"x": normal(5, K)})
        events = json.loads(Path(opened.end_profiling()).read_text())
    names = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    return {name: names.count(name) for name in ("QuantizeLinear", "MatMulIntegerToFloat", "Abs")}


def refusals() -> list[tuple[str, str, ModelProto]]:
    x, deep = normal(5, K), normal(5, 4, K)
    both = graph(
        [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"], name="qk")], {}, x
    )
    left = graph([helper.make_node("MatMul", ["w", "x"], ["y"], name="left")], {"w": normal(4, 5)}, x)
    nan = normal(K, N)
    nan[3, 3] = np.nan
    stacked = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(2, K, N)}, x, rank_out=3)
    return [
        ("MatMul", "its weights are no constant", both),
        ("MatMul", "its weights are no constant", left),
        ("MatMul", "not finite", matmul_of(x, nan)),
        ("MatMul", "rank 3", stacked),
        ("MatMul", "could overflow", matmul_of(normal(1, 70_000), normal(70_000, 1))),
        ("Gemm", "transA", gemm_of(normal(K, 5), normal(K, N), None, transA=1)),
        ("Gemm", "alpha or beta", gemm_of(x, normal(K, N), normal(N), alpha=0.5)),
        ("Gemm", "alpha or beta", gemm_of(x, normal(K, N), normal(N), beta=2.0)),
        ("Gemm", "one value for each output", gemm_of(x, normal(K, N), normal(5, N))),
        ("Gemm", "one value for each output", gemm_of(normal(N, K), normal(K, N), normal(N, 1))),
        ("Conv", "depthwise or grouped: left alone", conv_of(deep, normal(K, 1, 3), None, group=K)),
        ("Conv", "kernel is", conv_of(deep, normal(N, K, 3), None)),
        ("Conv", "strides or padding", conv_of(deep, normal(N, K, 1), None, strides=[2])),
        ("Conv", "strides or padding", conv_of(deep, normal(N, K, 1), None, pads=[1, 0])),
    ]


@pytest.mark.parametrize(("operator", "why", "model"), refusals())
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_done_is_refused_with_the_reason(operator: str, why: str, model: ModelProto, name: str) -> None:
    assert why in reason(model, BY_NAME[operator, name])


def test_weights_of_another_type_are_refused() -> None:
    x = normal(5, K).astype(np.float64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    model = graph(nodes, {"w": normal(K, N).astype(np.float64)}, x)
    assert "float64" in reason(model, BY_NAME["MatMul", "per_row"])


def test_weights_per_channel_lose_at_most_half_a_step() -> None:
    weights = normal(2, K, N)
    weights[0, :, 3] = 0
    weights[1] *= 1e-3
    quantized, scales = per_channel(weights)
    assert quantized.dtype == np.int8
    assert (quantized.shape, scales.shape) == ((2, K, N), (2, N))
    assert np.abs(quantized).max() <= 127
    assert (np.abs(quantized * scales[:, None] - weights) <= scales[:, None] * 0.5001).all()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0), (-1e-3, 9.0)])
def test_the_calibrated_codes_hold_zero_and_both_ends(low: float, high: float) -> None:
    scale, zero = affine(low, high)
    values = np.array([min(low, 0.0), 0.0, max(high, 0.0)])
    codes = np.rint(values / scale) + zero
    assert ((codes >= -1) & (codes <= 256)).all()  # rounding the zero point may cost an end half a step
    assert codes[1] == zero


def test_a_faulty_method_is_caught_by_the_law() -> None:
    """A scale shared by the batch, passed off as invariant, must show."""
    impostor: Method = replace(BY_NAME["MatMul", "dynamic"], invariant=True)
    x = company(6, K)
    assert drift(rewritten(matmul_of(x, normal(K, N)), impostor), x) != 0


def test_fp32_products_answer_alone_as_in_company() -> None:
    """What is left in fp32 is no worse: ONNX Runtime's products sum each row in an order of its own."""
    for inputs, outputs in ((K, N), (144, 80), (1, 64), (100, 1)):
        for steps in ((), (5,)):
            x = company(17, *steps, inputs)
            assert drift(matmul_of(x, normal(inputs, outputs), normal(outputs)), x) == 0


def test_nodes_without_names_do_not_share_weights() -> None:
    x = normal(5, K)
    nodes = [helper.make_node("MatMul", ["x", "v"], ["m"]), helper.make_node("MatMul", ["m", "w"], ["y"])]
    model = graph(nodes, {"v": normal(K, N), "w": normal(N, K, seed=1)}, x)
    quantized = rewritten(model, BY_NAME["MatMul", "per_row"])
    assert relative_error(answer(quantized, x), answer(model, x)) < 0.02


def test_the_output_keeps_its_name_and_shape() -> None:
    x = normal(5, 3, K)
    for bias in (None, normal(N)):
        model = matmul_of(x, normal(K, N), bias)
        for name in NAMES:
            quantized = rewritten(model, BY_NAME["MatMul", name], feeds=[x])
            assert list(quantized.graph.output) == list(model.graph.output)
            assert session(quantized.SerializeToString()).get_outputs()[0].name == "y"


def test_rewriting_leaves_the_other_graph_alone() -> None:
    model = matmul_of(normal(5, K), normal(K, N))
    before = model.SerializeToString(deterministic=True)
    rewritten(model, BY_NAME["MatMul", "per_row"])
    assert model.SerializeToString(deterministic=True) == before
