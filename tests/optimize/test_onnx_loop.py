"""Beam search inside the graph: the same answers as torch, alone and in company, and as few steps as needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, ModelProto
from torch import Tensor

from optimize import fuse, onnx_export
from optimize.benchmark import session
from optimize.data.dataset import Arrays
from optimize.data.subwords import END, PADDING, UNKNOWN
from optimize.models.beam_search import greedy_search
from optimize.models.looping import Looping
from optimize.models.translator import Translator, TranslatorConfig
from optimize.quantize import calibrate, guards, operators, quantize
from optimize.quantize.coverage import coverage
from optimize.quantize.plan import Choice, Choices
from optimize.specs import ModelSpec, TensorSpec

CONFIG = TranslatorConfig(vocabulary=96, hidden=32, encoder=16, embedding=32, attention=16, most_tokens=12)
SPEC = ModelSpec(
    "tiny",
    (TensorSpec("source", "int64", ("source_tokens",)), TensorSpec("lengths", "int32", (1,))),
    (
        TensorSpec("tokens", "int64", (CONFIG.most_tokens,)),
        TensorSpec("output_lengths", "int64", (1,)),
        TensorSpec("score", "float32", (1,)),
    ),
    buckets={"source_tokens": (4, 8, 16)},
)
NAMES = SPEC.output_names


def translator(seed: int = 3, **changes: object) -> Translator:
    torch.manual_seed(seed)
    module = Translator(replace(CONFIG, **changes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)  # decisive enough that sentences end and differ
        module.bias[END] += 3
    return module


def sentences(count: int, width: int, seed: int = 5) -> Arrays:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, width + 1, (count, 1)).astype(np.int32)
    source = random.integers(4, CONFIG.vocabulary, (count, width))
    return {"source": np.where(np.arange(width) < lengths, source, PADDING), "lengths": lengths}


def by_torch(module: Translator, request: Arrays) -> Arrays:
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(request[name]) for name in SPEC.input_names))
    return {name: tensor.numpy() for name, tensor in zip(NAMES, outputs, strict=True)}


def by_onnx(model: ModelProto, request: Arrays) -> Arrays:
    return dict(zip(NAMES, session(model.SerializeToString()).run(NAMES, request), strict=True))


def assert_same(found: Arrays, expected: Arrays, tolerance: float = 1e-4) -> None:
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    np.testing.assert_array_equal(found["output_lengths"], expected["output_lengths"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=tolerance, atol=tolerance)  # type: ignore[arg-type]


def the_body(model: ModelProto) -> GraphProto:
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body: GraphProto = loop.attribute[0].g
    return body


def in_int8(model: ModelProto, method: str, keep: tuple[str, ...] = ()) -> tuple[ModelProto, Choices]:
    choices = {
        name: Choice(operator, "fp32" if operator == "Gather" or name in keep else method, "asked for")
        for name, operator in operators(model).items()
    }
    return quantize(model, choices, {}), choices


@pytest.fixture(scope="module")
def module() -> Translator:
    return translator()


@pytest.fixture(scope="module")
def exported(module: Translator) -> ModelProto:
    return onnx_export.export(module, SPEC)


@pytest.fixture(scope="module")
def fused(exported: ModelProto) -> ModelProto:
    return fuse.fuse(exported)[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"cell": "lstm"}, {"beam": 1}, {"beam": 7, "length_alpha": 0.0}, {"most_tokens": 1}],
    ids=["gru", "lstm", "beam of one", "beam of seven", "one word at most"],
)
@pytest.mark.parametrize("seed", [3, 4])
def test_the_graph_searches_as_torch_does(changes: dict[str, Any], seed: int) -> None:
    module = translator(seed, **changes)
    tokens = TensorSpec("tokens", "int64", (module.config.most_tokens,))
    graph = onnx_export.export(module, replace(SPEC, outputs=(tokens, *SPEC.outputs[1:])))
    smaller, _ = fuse.fuse(graph)
    for model in (graph, smaller):
        for count, width in ((1, 1), (1, 16), (2, 5), (9, 8), (33, 13)):
            request = sentences(count, width, seed=count)
            assert_same(by_onnx(model, request), by_torch(module, request))
    lengths = by_torch(module, sentences(33, 13))["output_lengths"]
    assert len(set(lengths.ravel().tolist())) > 2 or module.config.most_tokens == 1


def test_a_beam_of_one_is_greedy() -> None:
    module = translator(beam=1, length_alpha=0.0)
    request = sentences(12, 9)
    with torch.inference_mode():
        memory, state = module.encode(*(torch.from_numpy(request[name]) for name in SPEC.input_names))
        greedy = greedy_search(lambda tokens, state: module.step(tokens, state, memory), state, CONFIG.most_tokens)
    found = by_onnx(onnx_export.export(module, SPEC), request)
    np.testing.assert_array_equal(found["tokens"], greedy.tokens.numpy())
    np.testing.assert_allclose(found["score"][:, 0], greedy.scores.numpy(), rtol=1e-4)  # type: ignore[arg-type]


def test_weights_are_there_once_and_outside_the_body(exported: ModelProto, module: Translator) -> None:
    onnx.checker.check_model(exported, full_check=True)
    assert {entry.domain: entry.version for entry in exported.opset_import} == {"": 17}
    assert not the_body(exported).initializer
    weights = sum(int(np.prod(tensor.dims)) for tensor in exported.graph.initializer if np.prod(tensor.dims) > 8)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert parameters <= weights + 16 <= parameters * 1.02
    nodes = Counter(node.op_type for node in the_body(exported).node)
    assert not {"If", "Loop", "Scan"} & nodes.keys()
    assert nodes["Gemm"] + nodes["MatMul"] == 7  # query, energy, context, twice the cell's, read-out, words


def test_fusing_reaches_into_the_body(exported: ModelProto, fused: ModelProto) -> None:
    assert len(the_body(fused).node) < 0.6 * len(the_body(exported).node)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_company_and_padding_change_no_translation(fused: ModelProto, kind: str) -> None:
    model = in_int8(fused, "per_row")[0] if kind == "int8" else fused
    request = sentences(24, 16)
    together = by_onnx(model, request)
    for row in range(24):
        length = int(request["lengths"][row, 0])
        short = {"source": request["source"][row : row + 1, :length], "lengths": request["lengths"][row : row + 1]}
        padded = {**short, "source": np.pad(short["source"], ((0, 0), (0, 16 - length)), constant_values=77)}
        expected = {name: values[row : row + 1] for name, values in together.items()}
        for alone in (padded, short):
            assert_same(by_onnx(model, alone), expected, 1e-5)
        if kind == "int8":
            assert by_onnx(model, padded)["score"] == expected["score"], "to the bit, at the same width"


def test_numbers_that_are_no_subword_harm_nobody(fused: ModelProto, module: Translator) -> None:
    request = sentences(4, 6)
    request["lengths"][:] = 6
    meant = {name: values.copy() for name, values in request.items()}
    request["source"][1, 2], request["source"][2, 3] = CONFIG.vocabulary, -1
    request["source"][2, 4] = 2**40
    meant["source"][1, 2] = meant["source"][2, 3] = meant["source"][2, 4] = UNKNOWN
    request["lengths"][3], meant["lengths"][3] = 99, 6
    assert_same(by_onnx(fused, request), by_onnx(fused, meant))
    assert_same(by_torch(module, request), by_torch(module, meant))
    request["lengths"][0] = -5
    assert_same(
        {name: values[1:] for name, values in by_onnx(fused, request).items()},
        {name: values[1:] for name, values in by_onnx(fused, meant).items()},
    )


def trips(model: ModelProto, request: Arrays) -> int:
    """How often the loop runs, told by an output of its own."""
    counted = ModelProto.FromString(model.SerializeToString())
    body, (loop,) = the_body(counted), [node for node in counted.graph.node if node.op_type == "Loop"]
    body.node.add(op_type="Identity", input=[body.input[0].name], output=["trip"])
    body.output.add().CopyFrom(onnx.helper.make_tensor_value_info("trip", onnx.TensorProto.INT64, []))
    loop.output.append("trips")
    counted.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("trips", onnx.TensorProto.INT64, [None]))
    return len(session(counted.SerializeToString()).run(["trips"], request)[0])


class CountDown(Looping):
    """Adds until as often as the largest number in the batch says, at most nine times."""

    @property
    def most_steps(self) -> int:
        return 9

    def begin(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (number,) = inputs
        return number, torch.zeros_like(number)

    def repeat(self, position: Tensor, carried: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        return carried + (position < fixed).to(fixed.dtype), (position + 1 < fixed).any()

    def finish(self, carried: Tensor) -> tuple[Tensor, ...]:
        return (carried,)


@pytest.mark.parametrize(("numbers", "expected"), [([3], 3), ([1, 5], 5), ([2, 40], 9), ([0], 1)])
def test_any_looping_network_stops_as_soon_as_nothing_goes_on(numbers: list[int], expected: int) -> None:
    spec = ModelSpec("count", (TensorSpec("number", "float32", (1,)),), (TensorSpec("steps", "float32", (1,)),))
    graph = onnx_export.export(CountDown(), spec)
    request: Arrays = {"number": np.array([[number] for number in numbers], np.float32)}
    (steps,) = session(graph.SerializeToString()).run(None, request)
    assert steps.ravel().tolist() == [min(number, 9) for number in numbers]
    assert trips(graph, request) == expected


def test_the_search_stops_when_every_sentence_is_decided(fused: ModelProto) -> None:
    singles = [sentences(1, 8, seed) for seed in range(8)]
    alone = [trips(fused, request) for request in singles]
    batch = {name: np.concatenate([request[name] for request in singles]) for name in SPEC.input_names}
    lengths = by_onnx(fused, batch)["output_lengths"].ravel()
    assert trips(fused, batch) == max(alone)
    assert min(alone) < CONFIG.most_tokens
    assert all(length <= steps for length, steps in zip(lengths, alone, strict=True))


def test_the_body_is_quantised_and_counted_by_its_trips(fused: ModelProto) -> None:
    int8, choices = in_int8(fused, "per_row")
    nodes = Counter(node.op_type for node in the_body(int8).node)
    assert nodes["MatMulIntegerToFloat"] == 6
    assert nodes["Gemm"] == 0
    assert nodes["MatMul"] == 1, "what attention multiplies by is no weight"
    request = sentences(1, 8)
    covered = coverage(int8, inputs=request)
    assert covered.mac_fraction == 1
    assert all("Gather" in name for name in covered.kept_fp32)
    guards.require(int8, before=fused, choices=choices, profile="invariant", requests=[request, sentences(3, 16)])
    words = "/step/Gemm"
    kept = coverage(in_int8(fused, "per_row", keep=(words,))[0], inputs=request).mac_fraction
    steps, length = trips(fused, request), 8
    body = CONFIG.beam * (32 * 16 + length * 16 + 64 * 96 + 32 * 96 + 96 * 32 + 32 * 96)
    once = length * (2 * (32 + 16) * 48 + 32 * 16) + 32 * 32
    assert kept == pytest.approx(1 - steps * CONFIG.beam * 32 * 96 / (once + steps * body))


def test_scales_inside_the_body_are_calibrated_over_all_its_trips(fused: ModelProto) -> None:
    choices = {
        name: Choice(operator, "fp32" if operator == "Gather" else "static", "asked for")
        for name, operator in operators(fused).items()
    }
    feeds = [sentences(16, 8, seed) for seed in range(4)]
    ranges = calibrate(fused, feeds, choices)
    low, high = ranges["/step/Tanh_1_output_0"]
    assert (low, high) == pytest.approx((-1, 1), abs=0.1)
    int8 = quantize(fused, choices, ranges)
    assert Counter(node.op_type for node in the_body(int8).node)["MatMulIntegerToFloat"] == 6
    agree = by_onnx(int8, feeds[0])["tokens"] == by_onnx(fused, feeds[0])["tokens"]
    assert agree.mean() > 0.6
    alone = {name: values[:1] for name, values in feeds[0].items()}
    assert by_onnx(int8, alone)["score"] == by_onnx(int8, feeds[0])["score"][:1], "invariant to the bit"


def test_a_table_in_eight_bits_is_shared_with_the_body(fused: ModelProto, tmp_path: Path) -> None:
    choices = {
        name: Choice(operator, "int8_table" if operator == "Gather" else "per_row", "asked for")
        for name, operator in operators(fused).items()
    }
    assert [choice.operator for choice in choices.values()].count("Gather") == 3
    int8 = quantize(fused, choices, {})
    tables = [
        tensor.name for tensor in int8.graph.initializer if list(tensor.dims) == [96, 32] and tensor.data_type == 3
    ]
    assert tables == ["network.embedding.weight/int8"]
    request = sentences(6, 8)
    agree = by_onnx(int8, request)["tokens"] == by_onnx(fused, request)["tokens"]
    assert agree.mean() > 0.6
