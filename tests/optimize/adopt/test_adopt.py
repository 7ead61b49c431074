"""Models from elsewhere: what a graph says is read right, what it does not say is asked for, and faults are found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from optimize import verify
from optimize.adopt import Options, adopt, foreign, names, side_by_side, wrapping
from optimize.adopt.asked import Asked
from optimize.adopt.foreign import Port
from optimize.errors import UserError
from optimize.onnx_export import BATCH
from optimize.triton_config import from_config, parse_text
from optimize.validator import UnfitModelError
from optimize.verify import GateError
from tests import foreign_models

LSTM = Asked(("h0.in:h0.out", "C_prev:C_next"), chunk=("8",))
DETECTOR = Asked(("state:stateN", "context:contextN"), constants=("sr=16000",))
Shape = list[int | str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    return {
        "lstm": foreign_models.lstm(folder / "My-LSTM v2.onnx"),
        "frozen": foreign_models.lstm(folder / "frozen.onnx", batch=None),
        "gru": foreign_models.gru(folder / "gru.onnx"),
        "detector": foreign_models.detector(folder / "detector.onnx"),
    }


def _tensors(model: ModelProto) -> tuple[dict[str, Shape], dict[str, Shape]]:
    def shape(value: onnx.ValueInfoProto) -> Shape:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    return {v.name: shape(v) for v in model.graph.input}, {v.name: shape(v) for v in model.graph.output}


TOTALS = Asked(("State_S:S",), lengths="Len")


def test_seeded_lengths_are_within_the_chunk() -> None:
    lengths = Port("n", "lengths", "int64", (BATCH,), 0)
    voice, state = Port("v", "voice", "float32", (BATCH, 256), 0), Port("h", "state_h", "float32", (BATCH, 512), 0)
    fixed = Port("x", "x", "float32", (BATCH, 4), 0)
    time_last = Port("x", "x", "float32", (80, BATCH, 4), 1, times=(2,))
    for ports in ([lengths, state, fixed, voice], [voice, lengths, time_last, state]):
        arrays = foreign.seeded(ports, 200, np.random.default_rng(0))
        assert set(arrays["lengths"].flatten()) == {1, 2, 3, 4}


# What is made of a graph.


def test_states_are_paired_by_name_and_everything_is_batch_first(models: dict[str, Path], tmp_path: Path) -> None:
    adopted = adopt(models["lstm"], None, LSTM, Options(tmp_path / "a", tmp_path / "r"))
    assert adopted.published.path == tmp_path / "r/my_lstm_v2/1"
    wrapped = onnx.load(adopted.published.path / "model.onnx")
    onnx.checker.check_model(wrapped, full_check=True)
    assert _tensors(wrapped) == (
        {"x": ["batch", 8, 5], "state_h0_in": ["batch", 2, 16], "state_c_prev": ["batch", 2, 16]},
        {
            "logits_out": ["batch", 8, 3],
            "next_state_h0_in": ["batch", 2, 16],
            "next_state_c_prev": ["batch", 2, 16],
        },
    )
    before = [node.op_type for node in onnx.load(models["lstm"]).graph.node]
    assert [node.op_type for node in wrapped.graph.node] == 3 * ["Transpose"] + before + 3 * ["Transpose"]
    assert [gate.value for gate in adopted.proof.gates] == [0, 0, 0, pytest.approx(0, abs=1e-5)]
    config = (tmp_path / "r/my_lstm_v2/config.pbtxt").read_text()
    assert from_config(parse_text(config))[0] == adopted.spec
    manifest = json.loads((adopted.published.path / "manifest.json").read_text())
    assert manifest["tensors"]["h0.out"]["served_as"] == "next_state_h0_in"
    assert (
        "| state: `state_c_prev` | float32 | (batch, 2, 16) | `C_prev` (2, batch, 16) |"
        in (adopted.published.path / "README.md").read_text()
    )
    assert adopt(models["lstm"], None, LSTM, Options(tmp_path / "a", tmp_path / "r")).published.reused


def test_tensors_of_one_axis_get_a_second_one_and_the_time_axis_stays(models: dict[str, Path], tmp_path: Path) -> None:
    adopted = adopt(
        models["gru"], "g", Asked(("state:state_out",), chunk=("4",)), Options(tmp_path / "a", tmp_path / "r")
    )
    inputs = {tensor.name: tensor.shape for tensor in adopted.spec.inputs}
    assert inputs == {"features": (6, 4), "gain": (1,)}
    assert {tensor.name: tensor.shape for tensor in adopted.spec.outputs} == {"y": (4, 16), "level": (1,)}
    assert [(state.what, state.shape) for state in adopted.spec.states] == [("state", (1, 16))]
    assert len(adopted.proof.gates) == 4


def test_an_input_without_a_batch_is_fixed(models: dict[str, Path], tmp_path: Path) -> None:
    adopted = adopt(models["detector"], None, DETECTOR, Options(tmp_path / "a", tmp_path / "r"))
    wrapped = onnx.load(adopted.published.path / "model.onnx")
    assert list(_tensors(wrapped)[0]) == ["input", "state_state", "state_context"]
    assert "is not proven" in adopted.proof.notes[0]
    other = adopt(
        models["detector"], None, replace(DETECTOR, constants=("sr=8000",)), Options(tmp_path / "a", tmp_path / "r")
    )
    assert (other.published.version, other.published.reused) == (2, False)


def test_lengths_odd_names_and_clashes(tmp_path: Path) -> None:
    adopted = adopt(foreign_models.totals(tmp_path / "9.onnx"), None, TOTALS, Options(tmp_path / "a", tmp_path / "r"))
    assert adopted.spec.name == "x_9"
    assert adopted.layout.renamed == {
        "X": "x", "Len": "lengths", "State_S": "state_s", "state_total": "output_state_total", "S": "next_state_s",
    }  # fmt: skip
    wrapped = onnx.load(adopted.published.path / "model.onnx")
    assert _tensors(wrapped)[0] == {"x": ["batch", 4], "lengths": ["batch", 1], "state_s": ["batch", 1]}
    [gate] = [gate for gate in adopted.proof.gates if "original" in gate.name]
    assert gate.value == 0


def test_bodies_see_the_served_inputs_and_an_input_may_be_an_output(tmp_path: Path) -> None:
    def branch(operator: str, name: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"])
        return helper.make_graph([helper.make_node(operator, ["sum", "State_S"], [name])], name, [], [info])

    nodes = [
        helper.make_node("Cast", ["one"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["S"], then_branch=branch("Add", "then"), else_branch=branch("Sub", "else")),
    ]
    path = foreign_models.totals(tmp_path / "m.onnx", nodes=nodes)
    model = onnx.load(path)
    model.graph.output.append(model.graph.input[0])
    onnx.save(model, path)
    adopted = adopt(path, None, TOTALS, Options(tmp_path / "a", tmp_path / "r"))
    assert [tensor.name for tensor in adopted.spec.outputs] == ["output_state_total", "x_2"]
    assert adopted.proof.gates[0].value == 0


def test_a_batch_on_the_last_of_three_axes(tmp_path: Path) -> None:
    """Where the way in is not the way out: one is (2, 0, 1), the other (1, 2, 0)."""
    info, weights = helper.make_tensor_value_info, np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "weights"], ["v"]),
            helper.make_node("Add", ["s", "v"], ["t"]),
            helper.make_node("Mul", ["t", "t"], ["y"]),
        ],
        "last",
        [info("x", TensorProto.FLOAT, [2, 3, "n"]), info("s", TensorProto.FLOAT, [2, 3, "n"])],
        [info("y", TensorProto.FLOAT, [2, 3, "n"]), info("t", TensorProto.FLOAT, [2, 3, "n"])],
        [numpy_helper.from_array(weights[..., None], "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    adopted = adopt(tmp_path / "m.onnx", None, Asked(("s:t",)), Options(tmp_path / "a", tmp_path / "r"))
    assert adopted.spec.states[0].shape == (2, 3)
    session = onnxruntime.InferenceSession(adopted.published.path / "model.onnx", providers=["CPUExecutionProvider"])
    x, state = np.random.default_rng(0).normal(size=(2, 4, 2, 3)).astype(np.float32)
    [next_state] = session.run(["next_state_s"], {"x": x, "state_s": state})
    np.testing.assert_array_equal(next_state, x * weights + state)


def test_recorded_streams_stand_in_for_seeded_ones(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Log", ["sum"], ["log"]),  # of what is negative: NaN, which no gate lets pass
        helper.make_node("Add", ["log", "State_S"], ["S"]),
    ]
    path = foreign_models.totals(tmp_path / "m.onnx", nodes=nodes)
    with pytest.raises(GateError, match="nan"):
        adopt(path, None, TOTALS, Options(tmp_path / "a", tmp_path / "r"))
    x = np.random.default_rng(0).uniform(1, 2, (4, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "streams.npz", x=x, lengths=np.full((4, 4, 1), 3))
    options = Options(tmp_path / "a", tmp_path / "r", calibration=tmp_path / "streams.npz")
    assert adopt(path, None, TOTALS, options).published.version == 1


@pytest.mark.parametrize(
    ("name", "plain"), [("h0.in", "h0_in"), ("serving_default_x:0", "serving_default_x_0"), ("9", "x_9"), ("é", "x")]
)
def test_identifiers(name: str, plain: str) -> None:
    assert names.identifier(name) == plain


def test_a_frozen_batch_is_thawed_only_where_the_graph_does_not_need_it(
    models: dict[str, Path], tmp_path: Path
) -> None:
    where = ("X:1", "h0.in:1", "C_prev:1")
    adopted = adopt(models["frozen"], None, replace(LSTM, batch_axis=where), Options(tmp_path / "a", tmp_path / "r"))
    assert adopted.layout.frozen
    assert adopted.spec.states[0].shape == (2, 16)
    baked = [helper.make_node("Reshape", ["sum", "flat"], ["row"]), helper.make_node("Add", ["row", "State_S"], ["S"])]
    path = foreign_models.totals(tmp_path / "baked.onnx", 1, nodes=baked)
    with pytest.raises(UserError, match="a batch of 2: its batch is frozen in the graph: export it with a dynamic"):
        adopt(
            path,
            None,
            replace(TOTALS, batch_axis=("X:0", "Len:0", "State_S:0")),
            Options(tmp_path / "a", tmp_path / "r"),
        )


# Faults.


def _swap_next_states(wrapped: ModelProto) -> None:
    one, other = wrapped.graph.output[1], wrapped.graph.output[2]
    for node in wrapped.graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = {one.name: other.name, other.name: one.name}.get(name, name)


def _perturb(wrapped: ModelProto) -> None:
    for tensor in wrapped.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype == np.float32:
            array.flat[0] = np.nextafter(array.flat[0], np.float32(9))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("fault", [_swap_next_states, _perturb])
def test_a_wrapped_graph_that_answers_otherwise_is_refused(models: dict[str, Path], fault: Any) -> None:
    original = onnx.load(models["lstm"])
    layout = foreign.layout(original, LSTM)
    wrapped = wrapping.wrap(original, layout)
    assert side_by_side.prove(original, wrapped, layout).gates[0].value == 0
    fault(wrapped)
    with pytest.raises(GateError, match="values that differ from the original graph's"):
        verify.require(side_by_side.prove(original, wrapped, layout).gates)


@pytest.mark.parametrize("states", [("h0.in:C_next", "C_prev:h0.out"), ("h0.in:h0.out",)])
def test_a_wrong_or_forgotten_pair_is_refused(models: dict[str, Path], tmp_path: Path, states: tuple[str, ...]) -> None:
    asked = replace(LSTM, states=states)
    with pytest.raises(GateError, match="two chunks against one as long as both"):
        adopt(models["lstm"], None, asked, Options(tmp_path / "a", tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    taken = adopt(models["lstm"], None, asked, Options(tmp_path / "a", tmp_path / "r", any_chunk=False))
    assert "not proven" in taken.proof.notes[0]


def test_rows_that_mix_are_refused(tmp_path: Path) -> None:
    mixing = [
        helper.make_node("ReduceMean", ["sum"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["sum", "mean"], ["centred"]),
        helper.make_node("Add", ["centred", "State_S"], ["S"]),
    ]
    path = foreign_models.totals(tmp_path / "mixing.onnx", nodes=mixing)
    with pytest.raises(GateError, match="drift in company"):
        adopt(path, None, TOTALS, Options(tmp_path / "a", tmp_path / "r"))


def test_what_the_official_image_cannot_run_is_refused(tmp_path: Path) -> None:
    path = foreign_models.totals(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.ir_version = 11
    onnx.save(model, path)
    with pytest.raises((UserError, UnfitModelError), match="IR version 11"):
        adopt(path, None, TOTALS, Options(tmp_path / "a", tmp_path / "r"))
    assert not (tmp_path / "r").exists()
