"""Shares counted by hand, for every operator that multiplies in eight bits, and wherever weights may hide."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from optimize.errors import UserError
from optimize.quantize import calibrate, quantize
from optimize.quantize.coverage import Coverage, coverage, operators, planned_share
from optimize.quantize.plan import Choice
from optimize.report import Quantized
from tests.optimize.quantize.graphs import CONTRIB, Arrays, bytes_, floats, graph, loop_body, model, node

ROWS, K, N = 16, 8, 6  # a product of (batch, time, K) and (K, N) has 16 rows at batch 1
FP32_MACS = ROWS * K * 4  # of the fp32 product that stands beside what is tested

ONE, ZERO_U8, ZERO_I8 = np.float32(1), np.uint8(128), np.int8(0)
SCALES: Arrays = {"s": ONE, "zu": ZERO_U8, "zi": ZERO_I8}
QUANTIZED_X = node("QuantizeLinear", "x s zu", "xq")


def beside(nodes: list[NodeProto], weights: Arrays) -> ModelProto:
    """Nodes that read x (batch, time, 8), beside an fp32 product named ``plain``."""
    nodes = [*nodes, node("MatMul", "x V", "plain")]
    return model(nodes, {"x": ("batch", "time", K)}, {"plain": ("batch", "time", 4)}, {**weights, "V": floats(K, 4)})


def shares(low_weights: int, low_macs: int) -> tuple[float, float]:
    return low_weights / (low_weights + 4 * K), low_macs / (low_macs + FP32_MACS)


LOW: dict[str, tuple[list[NodeProto], Arrays, int, int]] = {
    "DynamicQuantizeMatMul": (
        [node("DynamicQuantizeMatMul", "x W s", "y", CONTRIB)],
        {"W": bytes_(K, N), "s": ONE},
        K * N,
        ROWS * K * N,
    ),
    "MatMulInteger": ([QUANTIZED_X, node("MatMulInteger", "xq W zu", "y")], {"W": bytes_(K, N)}, K * N, ROWS * K * N),
    "MatMulIntegerToFloat": (
        [QUANTIZED_X, node("MatMulIntegerToFloat", "xq W s s zu", "y", CONTRIB)],
        {"W": bytes_(K, N)},
        K * N,
        ROWS * K * N,
    ),
    "QLinearMatMul": (
        [QUANTIZED_X, node("QLinearMatMul", "xq s zu W s zi s zu", "y")],
        {"W": bytes_(K, N)},
        K * N,
        ROWS * K * N,
    ),
    "QGemm": (
        [
            QUANTIZED_X,
            node("Reshape", "xq flat", "xf"),
            node("QGemm", "xf s zu W s zi", "y", CONTRIB, transB=1),
        ],
        {"W": bytes_(N, K), "flat": np.array([-1, K])},
        K * N,
        ROWS * K * N,
    ),
    "ConvInteger": (  # (batch, 16, 8) as 16 channels of length 8, which a kernel of 3 leaves 6 of
        [QUANTIZED_X, node("ConvInteger", "xq W zu", "y")],
        {"W": bytes_(5, 16, 3).view(np.uint8)},
        5 * 16 * 3,
        6 * 5 * 16 * 3,
    ),
    "QLinearConv": (
        [QUANTIZED_X, node("QLinearConv", "xq s zu W s zi s zu", "y", group=2)],
        {"W": bytes_(4, 8, 3)},
        4 * 8 * 3,
        6 * 4 * 8 * 3,
    ),
    "DynamicQuantizeLSTM": (
        [
            node("Transpose", "x", "xt", perm=[1, 0, 2]),
            node("DynamicQuantizeLSTM", "xt W R - - - - - sw zw sw zw", "y", CONTRIB, hidden_size=3),
        ],
        {"W": bytes_(1, K, 12), "R": bytes_(1, 3, 12), "sw": np.ones(1, np.float32), "zw": np.zeros(1, np.int8)},
        (K + 3) * 12,
        ROWS * (K + 3) * 12,
    ),
    "QAttention": (
        [QUANTIZED_X, node("QAttention", "xq W b s s - zu zi", "y", CONTRIB, num_heads=2)],
        {"W": bytes_(K, 3 * K), "b": floats(3 * K)},
        K * 3 * K,
        ROWS * K * 3 * K,
    ),
    "MatMulNBits": (
        [node("MatMulNBits", "x W sb", "y", CONTRIB, K=K, N=N, bits=4, block_size=16, accuracy_level=4)],
        {"W": bytes_(N, 1, 8).view(np.uint8), "sb": np.ones(N, np.float32)},
        K * N,
        ROWS * K * N,
    ),
}


@pytest.mark.parametrize("operator", LOW)
def test_low_precision_is_counted(operator: str) -> None:
    nodes, weights, elements, macs = LOW[operator]
    found = coverage(beside(nodes, {**SCALES, **weights}))
    assert (found.weight_bytes_fraction, found.mac_fraction) == pytest.approx(shares(elements, macs))
    assert found.operators == {operator: 1, "MatMul": 1}
    assert found.kept_fp32 == ["plain"]
    assert found.stored_only == []


FP32: dict[str, tuple[list[NodeProto], Arrays, int]] = {
    "MatMul": ([node("MatMul", "x W", "y")], {"W": floats(K, N)}, ROWS * K * N),
    "MatMul from the left": ([node("MatMul", "W x", "y")], {"W": floats(N, 16)}, N * 16 * K),
    "FusedMatMul": ([node("FusedMatMul", "x W", "y", CONTRIB, transA=1)], {"W": floats(16, N)}, K * 16 * N),
    "Gemm": (
        [node("Reshape", "x flat", "xf"), node("Gemm", "xf W", "y", transA=1)],
        {"W": floats(16, N), "flat": np.array([-1, K])},
        K * 16 * N,
    ),
    "Conv": ([node("Conv", "x W", "y", group=2)], {"W": floats(4, 8, 3)}, 6 * 4 * 8 * 3),
    "ConvTranspose": ([node("ConvTranspose", "x W", "y")], {"W": floats(16, 4, 3)}, 16 * K * 4 * 3),
    "GRU": (
        [node("Transpose", "x", "xt", perm=[1, 0, 2]), node("GRU", "xt W R", "y", hidden_size=3)],
        {"W": floats(1, 9, K), "R": floats(1, 9, 3)},
        ROWS * 9 * (K + 3),
    ),
    "Attention": (
        [node("Attention", "x W b", "y", CONTRIB, num_heads=2)],
        {"W": floats(K, 3 * K), "b": floats(3 * K)},
        ROWS * K * 3 * K,
    ),
}


@pytest.mark.parametrize("operator", FP32)
def test_fp32_is_counted(operator: str) -> None:
    nodes, weights, macs = FP32[operator]
    quantized = [QUANTIZED_X, node("MatMulInteger", "xq Wq zu", "low")]
    found = coverage(beside([*quantized, *nodes], {**SCALES, "Wq": bytes_(K, N), **weights}))
    low = ROWS * K * N
    assert found.mac_fraction == pytest.approx(low / (low + FP32_MACS + macs))
    assert found.kept_fp32 == ["y", "plain"]


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("DequantizeLinear", "W s zi", "Wf"), node("MatMul", "x Wf", "y")], {"W": bytes_(K, N)}),
        (
            [node("DequantizeLinear", "W s zi", "Wf"), node("Transpose", "Wf", "Wt"), node("MatMul", "x Wt", "y")],
            {"W": bytes_(N, K)},
        ),
        (
            [node("MatMulNBits", "x W sb", "y", CONTRIB, K=K, N=N, bits=4, block_size=16)],
            {"W": bytes_(N, 1, 8).view(np.uint8), "sb": np.ones(N, np.float32)},
        ),
    ],
    ids=["dequantised", "dequantised and transposed", "MatMulNBits in fp32"],
)
def test_storing_in_eight_bits_is_not_multiplying_in_eight_bits(nodes: list[NodeProto], weights: Arrays) -> None:
    found = coverage(beside(nodes, {**SCALES, **weights}))
    assert found.weight_bytes_fraction == pytest.approx(shares(K * N, 0)[0])
    assert found.mac_fraction == 0
    assert found.stored_only == ["y"]
    assert found.kept_fp32 == ["plain"]


def test_weights_quantised_from_fp32_in_the_graph_are_stored_in_fp32() -> None:
    nodes = [node("QuantizeLinear", "W s zi", "Wq"), node("DequantizeLinear", "Wq s zi", "Wf")]
    found = coverage(beside([*nodes, node("MatMul", "x Wf", "y")], {**SCALES, "W": floats(K, N)}))
    assert found.kept_fp32 == ["y", "plain"]


def test_an_int8_table_counts_for_bytes_only() -> None:
    nodes = [node("ArgMax", "x", "ids", axis=2), node("Gather", "table ids", "y")]
    found = coverage(beside(nodes, {"table": bytes_(256, 4)}))
    assert found.weight_bytes_fraction == pytest.approx(shares(1024, 0)[0])
    assert found.mac_fraction == 0
    assert found.stored_only == []
    few = coverage(beside(nodes, {"table": floats(255, 4)}))
    assert few.operators == {"MatMul": 1}


def _constant_node(array: NDArray[Any]) -> NodeProto:
    return node("Constant", "", "Wc", value=numpy_helper.from_array(array))


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("Transpose", "W", "Wc", perm=[1, 0])], {"W": floats(N, K)}),
        ([node("Reshape", "W two", "Wc")], {"W": floats(K * N), "two": np.array([K, N])}),
        ([node("Identity", "W", "Wi"), node("Identity", "Wi", "Wc")], {"W": floats(K, N)}),
        ([node("Cast", "W", "Wc", to=TensorProto.FLOAT)], {"W": floats(K, N).astype(np.float16)}),
        ([node("Concat", "A B", "Wc", axis=1)], {"A": floats(K, 2), "B": floats(K, N - 2)}),
        ([_constant_node(floats(K, N))], {}),
    ],
    ids=["Transpose", "Reshape", "Identity", "Cast", "Concat", "Constant"],
)
def test_weights_are_found_behind_other_operators(nodes: list[NodeProto], weights: Arrays) -> None:
    low = [QUANTIZED_X, node("MatMulInteger", "xq Wq zu", "low")]
    found = coverage(beside([*low, *nodes, node("MatMul", "x Wc", "y")], {**SCALES, "Wq": bytes_(K, N), **weights}))
    assert found.kept_fp32 == ["y", "plain"]
    assert found.weight_bytes_fraction == pytest.approx(K * N / (2 * K * N + 4 * K))
    assert found.mac_fraction == pytest.approx(K * N / (2 * K * N + 4 * K))


def test_a_shared_initializer_is_stored_once() -> None:
    found = coverage(beside([node("MatMul", "x V", "again"), *LOW["MatMulInteger"][0]], {**SCALES, "W": bytes_(K, N)}))
    assert found.weight_bytes_fraction == pytest.approx(shares(K * N, 0)[0])
    assert found.mac_fraction == pytest.approx(ROWS * K * N / (ROWS * K * N + 2 * FP32_MACS))


def test_what_multiplies_no_constant_has_no_weights() -> None:
    nodes = [node("Transpose", "x", "xt", perm=[0, 2, 1]), node("MatMul", "x xt", "y")]
    found = coverage(model(nodes, {"x": ("batch", "time", K)}, {"y": ("batch", "time", "time")}))
    assert found == Coverage(0, 0)


def test_filter_banks_and_refusals_are_listed_apart() -> None:
    graph = beside(
        [node("MatMul", "x bank", "spectrum"), node("MatMul", "x W", "y")], {"bank": floats(K, N), "W": floats(K, N)}
    )
    for name in ("bank", "spectrum"):
        found = coverage(graph, constants={name}, refusals={"y": "measured: slower", "elsewhere": "no"})
        assert found.constants == ["spectrum"]
        assert found.operators == {"MatMul": 2}
        assert found.kept_fp32 == ["plain"]
        assert found.refusals == {"y": "measured: slower"}


SQUARE: Arrays = {"W": floats(K, K)}
STEP = [node("MatMul", "h W", "step_product"), node("Identity", "step_product", "h_next")]
LOW_STEP = [node("DynamicQuantizeMatMul", "x Wq s", "low", CONTRIB)]
LOW_WEIGHTS: Arrays = {"Wq": bytes_(K, K), "s": ONE}


def scan(length: int | str, nodes: list[NodeProto] = STEP, weights: Arrays | None = None) -> ModelProto:
    """Steps over x (length, batch, 8), beside one int8 product of all of x at once."""
    body = graph(
        [*nodes, node("Identity", "x_t", "y_t")],
        {"h": ("batch", K), "x_t": ("batch", K)},
        {"h_next": ("batch", K), "y_t": ("batch", K)},
        weights,
    )
    return model(
        [node("Scan", "h0 x", "last y", body=body, num_scan_inputs=1, name="scan"), *LOW_STEP],
        {"h0": ("batch", K), "x": (length, "batch", K)},
        {"y": (length, "batch", K), "low": (length, "batch", K)},
        LOW_WEIGHTS if weights else {**LOW_WEIGHTS, **SQUARE},
    )


@pytest.mark.parametrize("weights", [None, SQUARE], ids=["outer scope", "body"])
def test_a_scan_counts_once_for_every_step(weights: Arrays | None) -> None:
    found = coverage(scan("time", weights=weights), sizes={"time": 72})
    assert found.kept_fp32 == ["step_product"]
    assert found.weight_bytes_fraction == pytest.approx(0.5)
    assert found.mac_fraction == pytest.approx(0.5)
    assert coverage(scan(5, weights=weights)).mac_fraction == pytest.approx(0.5)


def test_bodies_multiply() -> None:
    inner = loop_body([node("MatMul", "h W", "deep"), node("Identity", "deep", "h_next")])
    loop = helper.make_node("Loop", ["three", "", "h"], ["h_next"], body=inner, name="loop")
    found = coverage(scan(5, [node("Constant", "", "three", value_int=3), loop]))
    assert found.mac_fraction == pytest.approx(5 / (5 + 5 * 3))


def loop(most: str, cond: str = "-", body: list[NodeProto] = STEP) -> ModelProto:
    """A Loop over h (batch, 8), beside one int8 product; ``most``: the name of the trip count."""
    found = model(
        [
            node("Loop", f"{most} {cond} x", "y", body=loop_body(body), name="loop"),
            node("Shape", "x", "shape", start=1),
            *LOW_STEP,
        ],
        {"x": ("batch", K)},
        {"y": ("batch", K), "low": ("batch", K)},
        {**LOW_WEIGHTS, **SQUARE, "seven": np.array(7), "endless": np.array(2**63 - 1), "no": np.array(False)},
    )
    found.graph.input.append(helper.make_tensor_value_info("most", TensorProto.INT64, []))
    return found


@pytest.mark.parametrize(
    ("most", "given", "trips"),
    [("seven", {}, 7), ("seven", {"loop": 9}, 9), ("most", {}, 16), ("endless", {}, 16), ("-", {"loop": 4}, 4)],
)
def test_a_loop_counts_for_its_trips(most: str, given: dict[str, int], trips: int) -> None:
    assert coverage(loop(most), trip_counts=given).mac_fraction == pytest.approx(1 / (1 + trips))
    assert coverage(loop(most, cond="no"), trip_counts=given).mac_fraction == pytest.approx(1 / (1 + trips))


def test_a_real_request_tells_its_trips() -> None:
    request = {"x": np.ones((1, K), np.float32), "most": np.array(3)}
    assert coverage(loop("most"), inputs=request).mac_fraction == pytest.approx(1 / (1 + 3))
    assert coverage(loop("most"), inputs=request, trip_counts={"loop": 5}).mac_fraction == pytest.approx(1 / (1 + 5))
    assert coverage(loop("most", cond="no"), inputs=request).mac_fraction == pytest.approx(1 / (1 + 16)), "none at all"


def branches(positive: str) -> ModelProto:
    then = graph([node("MatMul", "x W", "then")], {}, {"then": ("batch", K)})
    inner = graph([node("MatMul", "x U", "inner")], {}, {"inner": ("batch", K)}, {"U": floats(K, K)})
    other = graph([node("Identity", "x", "other")], {}, {"other": ("batch", K)})
    nested = node("If", f"{positive} ", "nested", then_branch=inner, else_branch=other)
    otherwise = graph([nested], {}, {"nested": ("batch", K)})
    return model(
        [node("If", positive, "y", then_branch=then, else_branch=otherwise), *LOW_STEP],
        {"x": ("batch", K)},
        {"y": ("batch", K), "low": ("batch", K)},
        {**LOW_WEIGHTS, **SQUARE, "yes": np.array(True), "no": np.array(False)},
    )


@pytest.mark.parametrize("condition", ["yes", "no"])
def test_both_branches_count_whichever_is_taken(condition: str) -> None:
    """Even one that is out of reach: inside the branch for no, behind the condition yes."""
    found = coverage(branches(condition))
    assert sorted(found.kept_fp32) == ["inner", "then"]
    assert found.mac_fraction == pytest.approx(1 / 3)


def test_a_deep_residual_graph_takes_no_longer_than_its_length() -> None:
    nodes = [node("Add", f"x{i} x{i}" if i else "x x", f"x{i + 1}") for i in range(1500)]
    found = coverage(model([*nodes, node("MatMul", "x1500 W", "y")], {"x": ("batch", K)}, {"y": ("batch", K)}, SQUARE))
    assert found.kept_fp32 == ["y"]


def test_a_graph_that_zeros_are_no_request_for_needs_inputs() -> None:
    nodes = [
        node("MatMul", "x W", "p"),
        node("Cast", "x", "i", to=TensorProto.INT64),
        node("Gather", "p i", "y", axis=0),
    ]
    graph = model(nodes, {"x": (1, K)}, {"y": (1, K, K)}, SQUARE)
    far: dict[str, NDArray[np.generic]] = {"x": np.full((1, K), 5, np.float32)}
    assert coverage(graph).operators == {"MatMul": 1}
    with pytest.raises(UserError, match="does not run"):
        coverage(graph, inputs=far)


def test_before_and_after_are_told() -> None:
    before, after = beside(*FP32["MatMul"][:2]), beside(*LOW["DynamicQuantizeMatMul"][:2])
    assert operators(before) == {"MatMul": 2}
    assert coverage(after, before=before).operators_before == {"MatMul": 2}


def test_the_report_has_the_same_fields() -> None:
    found = coverage(beside(*FP32["MatMul"][:2]))
    assert asdict(Quantized(**asdict(found))) == asdict(found)


PLAN = {name: Choice("MatMul", "dynamic", "test") for name in ("y", "plain")}
PLAIN_SHARE = 4 * K / (4 * K + N * K)


def quantized(name: str, operator: str = "DynamicQuantizeMatMul", weights: NDArray[Any] | None = None) -> ModelProto:
    nodes = [node(operator, "x W s", "y", CONTRIB, name=name)]
    return beside(nodes, {"W": bytes_(K, N) if weights is None else weights, "s": ONE})


BEFORE = beside(*FP32["MatMul"][:2])


def test_a_plan_carried_out_in_part() -> None:
    share, missed = planned_share(BEFORE, quantized("y/DynamicQuantizeMatMul_0"), PLAN)
    assert share == pytest.approx(1 - PLAIN_SHARE)
    assert missed == ["plain"]
    fp32 = {**PLAN, "plain": Choice("MatMul", "fp32", "measured: slower")}
    assert planned_share(BEFORE, quantized("y/DynamicQuantizeMatMul_0"), fp32) == (1.0, [])


def test_a_rewrite_that_leaves_some_weights_in_fp32_is_missed() -> None:
    half = quantized("y/DynamicQuantizeMatMul_0", weights=bytes_(K, N // 2))
    share, missed = planned_share(BEFORE, half, {"y": PLAN["y"]})
    assert share == pytest.approx(0.5)
    assert missed == ["y"]


@pytest.mark.parametrize("name", ["z/DynamicQuantizeMatMul_0", "yes", "y_quant"])
def test_weights_of_another_node_do_not_count(name: str) -> None:
    assert planned_share(BEFORE, quantized(name), {"y": PLAN["y"]}) == (0.0, ["y"])


def test_weights_that_are_unpacked_at_load_do_not_count() -> None:
    nodes = [node("DequantizeLinear", "W s zi", "Wf"), node("MatMul", "x Wf", "y", name="y/MatMul_0")]
    after = beside(nodes, {**SCALES, "W": bytes_(K, N)})
    assert planned_share(BEFORE, after, {"y": PLAN["y"]}) == (0.0, ["y"])


@pytest.mark.parametrize("method", ["dynamic", "static", "per_row"])
def test_a_rewritten_gru_counts_at_every_step(method: str) -> None:
    """As many weights and products as the operator had, now inside the body of a Scan."""
    nodes, weights, macs = FP32["GRU"]
    rewritable = node("GRU", "xt W R", "y", hidden_size=3, linear_before_reset=1)
    before = beside([nodes[0], rewritable], weights)
    before.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", 1, "batch", 3]))
    choices = {"y": Choice("GRU", method, "test"), "plain": Choice("MatMul", "fp32", "test")}
    feed: dict[str, NDArray[np.generic]] = {"x": floats(2, ROWS, K)}
    after = quantize(before, choices, calibrate(before, [feed], choices))
    found = coverage(after, before=before)
    elements = 9 * (K + 3)
    assert (found.weight_bytes_fraction, found.mac_fraction) == pytest.approx(shares(elements, macs))
    assert found.kept_fp32 == ["plain"]
    assert found.operators_before == {"GRU": 1, "MatMul": 1}
    assert planned_share(before, after, choices) == (1.0, [])


def test_names_may_nest() -> None:
    """The node 'y/MatMul' is no part of the node 'y'."""
    before = beside(
        [node("MatMul", "x W", "a", name="y"), node("MatMul", "x U", "b", name="y/MatMul")],
        {"W": floats(K, N), "U": floats(K, N)},
    )
    plan = {"y": PLAN["y"], "y/MatMul": PLAN["y"]}
    assert planned_share(before, quantized("y/MatMul/DynamicQuantizeMatMul_0"), plan) == (0.5, ["y"])


def test_a_plan_for_another_graph_is_missed() -> None:
    assert planned_share(BEFORE, BEFORE, {"gone": PLAN["y"]}) == (0.0, ["gone"])


def test_a_plan_that_asks_for_nothing_is_done() -> None:
    assert planned_share(BEFORE, BEFORE, {}) == (1.0, [])
