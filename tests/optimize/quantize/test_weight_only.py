"""Four and eight bits for weights alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from optimize.quantize.method import Method
from optimize.quantize.weight_only import BLOCK, METHODS, per_block
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

BY_NAME = {(method.operator, method.name): method for method in METHODS}
K, N = 70, 29


def product(x: Array, weights: Array) -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"), helper.make_node("Add", ["m", "b"], ["y"])]
    return graph(nodes, {"w": weights, "b": normal(weights.shape[1])}, x)


def test_there_are_two_methods_for_three_operators_all_invariant() -> None:
    assert set(BY_NAME) == {(op, name) for op in ("MatMul", "Gemm", "Conv") for name in ("nbits4", "dequantize8")}
    assert all(method.invariant for method in METHODS)


@pytest.mark.parametrize(("name", "limit"), [("nbits4", 0.12), ("dequantize8", 0.012)])
@pytest.mark.parametrize("shape", [(5, K), (5, 3, K)])
def test_a_product_stays_within_its_bits(name: str, limit: float, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    model = product(x, normal(K, N))
    error = relative_error(answer(rewritten(model, BY_NAME["MatMul", name]), x), answer(model, x))
    assert limit / 20 < error < limit


@pytest.mark.parametrize("inputs", [BLOCK, 2 * BLOCK, 37])
def test_weights_that_four_bits_hold_are_exact(inputs: int) -> None:
    generator = np.random.default_rng(0)
    weights = generator.integers(-5, 11, (inputs, N)).astype(np.float32)
    weights[::BLOCK], weights[1::BLOCK] = -5, 10  # every block uses all its codes
    x = np.eye(inputs, dtype=np.float32)
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weights}, x)
    found = answer(rewritten(model, BY_NAME["MatMul", "nbits4"]), x)
    np.testing.assert_allclose(found, weights, atol=1e-5)


def test_blocks_of_zeros_and_of_one_sign_are_packed() -> None:
    weights = np.zeros((3 * BLOCK, 2), np.float32)
    weights[BLOCK : 2 * BLOCK] = np.linspace(3, 4, BLOCK)[:, None]
    packed, scales, zeros = per_block(weights)
    assert (packed.shape, scales.shape, zeros.shape) == ((2, 3, BLOCK // 2), (6,), (4,))
    np.testing.assert_allclose(scales, [1, 4 / 15, 1] * 2)
    x = np.eye(3 * BLOCK, dtype=np.float32)
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weights}, x)
    np.testing.assert_allclose(answer(rewritten(model, BY_NAME["MatMul", "nbits4"]), x), weights, atol=4 / 30)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    batch=st.integers(2, 33),
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 100),
    name=st.sampled_from(["nbits4", "dequantize8"]),
    seed=st.integers(0, 99),
)
def test_alone_as_in_company(batch: int, inputs: int, outputs: int, name: str, seed: int) -> None:
    x = company(batch, inputs, seed=seed)
    assert drift(rewritten(product(x, normal(inputs, outputs, seed=seed)), BY_NAME["MatMul", name]), x) == 0


def test_gemm_of_either_kind() -> None:
    x = normal(5, K)
    for transposed in (0, 1):
        weights = normal(N, K) if transposed else normal(K, N)
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", transB=transposed)
        model = graph([node], {"w": weights, "b": normal(N)}, x)
        for name, limit in (("nbits4", 0.12), ("dequantize8", 0.012)):
            found = answer(rewritten(model, BY_NAME["Gemm", name]), x)
            assert relative_error(found, answer(model, x)) < limit
        constants = rewritten(model, BY_NAME["Gemm", "dequantize8"]).graph.initializer
        assert ([N, 1] if transposed else [1, N]) in [list(tensor.dims) for tensor in constants]  # one for each output


def test_dequantize8_takes_any_conv() -> None:
    x = normal(5, 8, 20)  # (batch, channels, time)
    for weights, group in ((normal(6, 8, 3), 1), (normal(8, 1, 5), 8)):
        model = graph([helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=group)], {"w": weights}, x)
        quantized = rewritten(model, BY_NAME["Conv", "dequantize8"])
        assert relative_error(answer(quantized, x), answer(model, x)) < 0.012
        assert "group" in reason(model, BY_NAME["Conv", "nbits4"]) or "kernel" in reason(
            model, BY_NAME["Conv", "nbits4"]
        )


@pytest.mark.parametrize(("name", "share"), [("nbits4", 0.18), ("dequantize8", 0.27)])
def test_the_file_is_smaller(name: str, share: float) -> None:
    model = product(normal(1, 512), normal(512, 256))
    assert rewritten(model, BY_NAME["MatMul", name]).ByteSize() < share * model.ByteSize()


def test_no_dequantize_linear_is_written() -> None:
    """The target runtime would run it for every request."""
    found = operators(rewritten(product(normal(1, K), normal(K, N)), BY_NAME["MatMul", "dequantize8"]))
    assert found == {"Cast": 1, "Mul": 1, "MatMul": 1, "Add": 1}


def test_four_bits_are_all_that_the_target_runtime_knows() -> None:
    quantized = rewritten(product(normal(1, K), normal(K, N)), BY_NAME["MatMul", "nbits4"])
    (node,) = [node for node in quantized.graph.node if node.op_type == "MatMulNBits"]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes == {"K": K, "N": N, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    assert len(node.input) == 4  # a bias came later


@pytest.mark.parametrize("method", [BY_NAME["MatMul", "nbits4"], BY_NAME["MatMul", "dequantize8"]])
def test_products_of_activations_and_stacks_are_refused(method: Method) -> None:
    x = normal(5, K)
    transposed = helper.make_node("Transpose", ["x"], ["t"])
    both = graph([transposed, helper.make_node("MatMul", ["x", "t"], ["y"])], {}, x)
    assert "no constant" in reason(both, method)
    stacked = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(2, K, N)}, x, rank_out=3)
    assert "rank 3" in reason(stacked, method)
    double = graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT)],
        {"w": normal(K, N).astype(np.float64)},
        x.astype(np.float64),
    )
    assert "float64" in reason(double, method)
