"""Export and fusion of the forecaster's graph, checked on the graph itself."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto

from optimize import fuse, onnx_export, recipes
from optimize.data.dataset import Arrays
from optimize.fuse.rnn_state import drop_zero_states
from optimize.onnx_export import ExportError

VARIANT = recipes.load("load_forecast").variants["lstm"]
SPEC = VARIANT.spec
SINE = Path(__file__).parents[1] / "recipes" / "sine_gru.py"


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return VARIANT.networks["small_32"]().eval()


@pytest.fixture(scope="module")
def exported(module: torch.nn.Module) -> ModelProto:
    return onnx_export.export(module, SPEC)


@pytest.fixture(scope="module")
def fused(exported: ModelProto) -> ModelProto:
    return fuse.fuse(exported)[0]


def feed(batch: int) -> Arrays:
    inputs = onnx_export.example_inputs(SPEC, batch, seed=5)
    return {name: tensor.numpy() for name, tensor in zip(SPEC.input_names, inputs, strict=True)}


def answer(model: ModelProto, inputs: Arrays) -> np.ndarray:  # type: ignore[type-arg]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, inputs)[0]  # type: ignore[type-arg]
    return result


@pytest.mark.parametrize("batch", [1, 3])
def test_export_and_fusion_answer_like_torch(
    module: torch.nn.Module, exported: ModelProto, fused: ModelProto, batch: int
) -> None:
    inputs = feed(batch)
    with torch.inference_mode():
        expected = module(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    np.testing.assert_allclose(answer(exported, inputs), expected, atol=1e-5)
    np.testing.assert_allclose(answer(fused, inputs), expected, atol=1e-5)


def test_the_same_module_exports_to_the_same_bytes(module: torch.nn.Module, exported: ModelProto) -> None:
    again = onnx_export.export(module, SPEC)
    assert again.SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)


def test_fusion_removes_nodes_and_zero_states(exported: ModelProto) -> None:
    fused, counts = fuse.fuse(exported)
    assert counts["zero RNN states dropped"] == 2
    assert (len(exported.graph.node), len(fused.graph.node)) == (47, 26)
    assert "ConstantOfShape" not in {node.op_type for node in fused.graph.node}
    onnx_export.check(fused, SPEC)


def test_a_state_that_is_not_zero_is_kept() -> None:
    fill = onnx.numpy_helper.from_array(np.array([1.0], np.float32))
    zero = onnx.numpy_helper.from_array(np.array([0.0], np.float32))
    random = np.random.default_rng(0)
    weights = {"W": (1, 12, 2), "R": (1, 12, 3)}
    nodes = [
        onnx.helper.make_node("ConstantOfShape", ["shape"], ["h"], value=fill),
        onnx.helper.make_node("ConstantOfShape", ["shape"], ["c"], value=zero),
        onnx.helper.make_node("LSTM", ["x", "W", "R", "", "", "h", "c"], ["y"], hidden_size=3),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 1, 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 1, 1, 3])],
        [
            *(onnx.numpy_helper.from_array(random.normal(size=s).astype(np.float32), n) for n, s in weights.items()),
            onnx.numpy_helper.from_array(np.array([1, 1, 3]), "shape"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    rewritten, count = drop_zero_states(model)
    assert count == 1
    assert list(rewritten.graph.node[-1].input) == ["x", "W", "R", "", "", "h"]
    x: Arrays = {"x": random.normal(size=(4, 1, 2)).astype(np.float32)}
    np.testing.assert_array_equal(answer(rewritten, x), answer(model, x))


def _wrong_names(model: ModelProto) -> None:
    model.graph.output[0].name = "wrong"
    next(node for node in model.graph.node if "forecast" in node.output).output[0] = "wrong"


def _frozen_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _hidden_weights(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [node.input[1]], ["hidden_weights"]))
    node.input[1] = "hidden_weights"


def _new_ir(model: ModelProto) -> None:
    model.ir_version = 11


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_wrong_names, "outputs of the graph"),
        (_frozen_batch, "batch axis is frozen"),
        (_hidden_weights, "no initializers"),
        (_new_ir, "IR version 11"),
    ],
)
def test_a_planted_fault_is_found(fused: ModelProto, fault: object, message: str) -> None:
    broken = copy.deepcopy(fused)
    assert callable(fault)
    fault(broken)
    with pytest.raises(ExportError, match=message):
        onnx_export.check(broken, SPEC)


def test_a_gru_of_the_other_flavour_is_found() -> None:
    spec = recipes.load(file=SINE).variants["gru"].spec
    model = onnx_export.export(recipes.load(file=SINE).variants["gru"].networks["student"](), spec)
    gru = next(node for node in model.graph.node if node.op_type == "GRU")
    flavour = next(attribute for attribute in gru.attribute if attribute.name == "linear_before_reset")
    assert flavour.i == 1
    flavour.i = 0
    with pytest.raises(ExportError, match="linear_before_reset is not 1"):
        onnx_export.check(model, spec)
