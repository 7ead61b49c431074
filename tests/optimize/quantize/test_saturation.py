"""What a CPU without VNNI would compute, against the instruction's definition and against ONNX Runtime here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from optimize import rewriting
from optimize.quantize.saturation import Saturation, possible, product, saturates, saturation
from optimize.quantize.weights import walk, weighted_nodes
from tests.optimize.quantize.graphs import CONTRIB, Arrays, bytes_, floats, graph, model, node

K, N = 8, 6
POSITIVE: NDArray[np.generic] = (
    np.abs(floats(2, 5, K)) + 10
)  # dynamic quantisation puts it into the upper half of 0..255


def found_in(graph: ModelProto, requests: Sequence[dict[str, NDArray[np.generic]]]) -> Saturation | None:
    opened = rewriting.read(graph)
    (weighted,) = weighted_nodes(opened)
    number = [node for node, _ in walk(opened.graph)].index(weighted.node)
    return saturation(graph, weighted, number, requests)


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        (["avx2"], True),
        (["avx2", "avx512f"], True),
        (["avx2", "avx_vnni"], False),
        (["avx2", "avx512f", "avx512_vnni"], False),
        (["asimd"], False),
        ([], False),
    ],
)
def test_which_cpus_saturate(isa: list[str], expected: bool) -> None:
    assert saturates(isa) == expected


def test_pairs_saturate_and_the_sum_of_pairs_does_not() -> None:
    """Two pairs of 255 * 127 * 2 = 64770, each cut to 32767; of the other sign to -32768; the fifth is alone."""
    activations = np.full((1, 5), 255, np.uint8)
    weights = np.array([[127, -128], [127, -128], [127, -128], [127, -128], [127, -128]], np.int8)
    assert product(activations, weights).tolist() == [[2 * 32767 + 255 * 127, -2 * 32768 - 255 * 128]]


def test_neighbours_are_paired_and_not_others() -> None:
    weights = np.array([[127], [-127], [127], [-127]], np.int8)
    assert product(np.full((1, 4), 255, np.uint8), weights).tolist() == [[0]]
    assert product(np.full((1, 4), 255, np.uint8), weights[[0, 2, 1, 3]]).tolist() == [[32767 - 32768]]


def test_seven_bits_never_saturate() -> None:
    assert possible(bytes_(K, N, largest=64)) == 0
    seven = bytes_(K, N, largest=64)
    rows = np.random.default_rng(1).integers(0, 256, (9, K)).astype(np.uint8)
    np.testing.assert_array_equal(product(rows, seven), rows.astype(np.int32) @ seven.astype(np.int32))


def test_what_is_possible() -> None:
    assert possible(np.array([[127, 64, 127, -128], [127, 64, -127, -1]], np.int8)) == 0.5


GRAPHS: dict[str, tuple[list[NodeProto], Arrays]] = {
    "DynamicQuantizeMatMul": ([node("DynamicQuantizeMatMul", "x W s", "y", CONTRIB)], {}),
    "MatMulInteger": (
        [
            node("DynamicQuantizeLinear", "x", "q qs qz"),
            node("MatMulInteger", "q W qz", "sum"),
            node("Cast", "sum", "y", to=1),
        ],
        {},
    ),
    "MatMulIntegerToFloat": (
        [
            node("DynamicQuantizeLinear", "x", "q qs qz"),
            node("MatMulIntegerToFloat", "q W qs s qz", "y", CONTRIB),
        ],
        {},
    ),
    "QLinearMatMul": (
        [
            node("QuantizeLinear", "x s0 z0", "q"),
            node("QLinearMatMul", "q s0 z0 W s zi s0 z0", "p"),
            node("Cast", "p", "y", to=1),
        ],
        {"s0": np.float32(0.05), "z0": np.uint8(0), "zi": np.int8(0)},
    ),
    "signed activations": (
        [node("QuantizeLinear", "x s0 z0", "q"), node("MatMulIntegerToFloat", "q W s0 s z0", "y", CONTRIB)],
        {"s0": np.float32(0.05), "z0": np.int8(-128)},
    ),
}


@pytest.mark.parametrize("operator", GRAPHS)
def test_the_error_on_requests_is_told(operator: str) -> None:
    nodes, weights = GRAPHS[operator]

    def with_weights(array: NDArray[np.int8]) -> ModelProto:
        shape = ("batch", "time", K)
        return model(nodes, {"x": shape}, {"y": shape}, {"s": np.float32(1), "W": array, **weights})

    loud = found_in(with_weights(np.full((K, N), 127, np.int8)), [{"x": POSITIVE}])
    assert loud is not None
    assert loud.possible == 1
    assert loud.error is not None
    assert 0.1 < loud.error < 0.5  # 32767 instead of up to 64770
    quiet = found_in(with_weights(bytes_(K, N, largest=64)), [{"x": POSITIVE}])
    assert quiet == Saturation(0, None)
    mixed = with_weights(np.tile(np.array([[127], [-127]], np.int8), (K // 2, N)))
    assert found_in(mixed, [{"x": POSITIVE}]) == Saturation(0, None)
    unknown = found_in(with_weights(np.full((K, N), 127, np.int8)), [])
    assert unknown == Saturation(1, None)


def test_the_exact_product_is_the_one_of_onnx_runtime() -> None:
    """Where nothing saturates, the emulation gives what the operator gives."""
    weights, rows = bytes_(K, N, largest=64), np.random.default_rng(2).integers(0, 256, (5, K)).astype(np.uint8)
    graph = model([node("MatMulInteger", "x W", "y")], {"x": ("n", K)}, {"y": ("n", N)}, {"W": weights})
    graph.graph.input[0].type.tensor_type.elem_type = 2  # uint8
    graph.graph.output[0].type.tensor_type.elem_type = 6  # int32
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(product(rows, weights), session.run(None, {"x": rows})[0])


def test_activations_inside_a_scan_are_seen() -> None:
    step = [node("DynamicQuantizeMatMul", "x_t W s", "y_t", CONTRIB), node("Identity", "h", "h_next")]
    body = graph(step, {"h": ("batch", K), "x_t": ("batch", K)}, {"h_next": ("batch", K), "y_t": ("batch", N)})
    scan = model(
        [node("Scan", "h0 x", "h y", body=body, num_scan_inputs=1, scan_output_axes=[0], name="scan")],
        {"h0": ("batch", K), "x": ("time", "batch", K)},
        {"y": ("time", "batch", N)},
        {"W": np.full((K, N), 127, np.int8), "s": np.float32(1)},
    )
    request: dict[str, NDArray[np.generic]] = {"h0": np.zeros((5, K), np.float32), "x": POSITIVE}
    found = found_in(scan, [request])
    assert found is not None
    assert found.error is not None
    assert 0.1 < found.error < 0.5


def test_other_weights_do_not_saturate() -> None:
    fp32 = model([node("MatMul", "x W", "y")], {"x": ("n", K)}, {"y": ("n", N)}, {"W": floats(K, N)})
    assert found_in(fp32, []) is None
    unsigned = model(
        [node("DynamicQuantizeMatMul", "x W s z", "y", CONTRIB)],
        {"x": ("n", K)},
        {"y": ("n", N)},
        {"W": np.full((K, N), 255, np.uint8), "s": np.float32(1), "z": np.uint8(128)},
    )
    assert found_in(unsigned, []) is None


def test_the_worst_case_of_an_lstm_is_told() -> None:
    lstm = model(
        [node("DynamicQuantizeLSTM", "x W R - - - - - s z s z", "y", CONTRIB, hidden_size=3)],
        {"x": ("time", "batch", K)},
        {"y": ("time", 1, "batch", 3)},
        {
            "W": np.full((1, K, 12), 64, np.int8),
            "R": np.full((1, 3, 12), 127, np.int8),
            "s": np.ones(1, np.float32),
            "z": np.zeros(1, np.int8),
        },
    )
    assert found_in(lstm, [{"x": POSITIVE}]) == Saturation(0.5, None)
