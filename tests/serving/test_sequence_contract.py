"""States and controls against the graph: what the official backend rejects or answers wrongly is rejected."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_contract import Contract, ContractError, Tensor, check
from sequence_contract import Sequences, check_sequences

from optimize.specs import ServingSpec
from tests import tiny_models
from tests.serving.test_onnx_contract import config_of
from tests.tiny_models import TinyModel


def checked(model: TinyModel, config: dict[str, Any]) -> tuple[Contract, Sequences | None]:
    session = onnxruntime.InferenceSession(model.graph.SerializeToString(), providers=["CPUExecutionProvider"])
    graph = session.get_inputs(), session.get_outputs()
    return check(config, *graph), check_sequences(config, *graph)


def test_a_model_without_states_has_no_sequences() -> None:
    assert checked(tiny_models.double(), config_of(tiny_models.double()))[1] is None


@pytest.mark.parametrize(("serving", "slots"), [(ServingSpec(max_streams=5), 5), (ServingSpec(strategy="direct"), 64)])
def test_the_generated_configuration_is_accepted(serving: ServingSpec, slots: int) -> None:
    model = tiny_models.listen(serving=serving)
    contract, sequences = checked(model, config_of(model))
    assert [tensor.name for tensor in contract.inputs] == ["pcm", "lengths"]
    assert sequences == Sequences(
        inputs=(
            Tensor("state_sum", np.dtype(np.int64), (1,)),
            Tensor("state_level", np.dtype(np.float32), (16,)),
        ),
        outputs=(
            Tensor("next_state_sum", np.dtype(np.int64), (1,)),
            Tensor("next_state_level", np.dtype(np.float32), (16,)),
        ),
        ready=None,
        slots=slots,
        idle_s=10.0,
    )


def test_without_max_streams_there_is_room_for_a_stream_and_its_successor() -> None:
    """As in a configuration of other making: Triton limits the streams, and forgets them a little earlier."""
    model = tiny_models.listen()
    config = config_of(model)
    del config["parameters"]["max_streams"]
    config["sequence_batching"]["oldest"]["max_candidate_sequences"] = 7
    sequences = checked(model, config)[1]
    assert sequences is not None
    assert sequences.slots == 14


@pytest.mark.parametrize("given", ["0", "-1", "many", "1280"])
def test_max_streams_must_leave_triton_something_to_hand_over(given: str) -> None:
    model = tiny_models.listen()
    config = config_of(model)
    assert config["sequence_batching"]["oldest"]["max_candidate_sequences"] == 256 + 1024
    config["parameters"]["max_streams"]["string_value"] = given
    with pytest.raises(ContractError, match=f"parameter 'max_streams' is '{given}'; expected a number from 1 to less"):
        checked(model, config)


def test_the_idle_limit_of_a_configuration_without_one_is_tritons() -> None:
    model = tiny_models.listen()
    config = config_of(model)
    del config["sequence_batching"]["max_sequence_idle_microseconds"]
    sequences = checked(model, config)[1]
    assert sequences is not None
    assert sequences.idle_s == 1.0


def test_declared_controls_are_inputs_of_the_graph() -> None:
    model = tiny_models.listen_with_controls()
    contract, sequences = checked(model, config_of(model))
    assert contract.inputs[2:] == (
        Tensor("READY", np.dtype(np.int32), (1,)),
        Tensor("START", np.dtype(np.float32), (1,)),
        Tensor("END", np.dtype(np.bool_), (1,)),
    )
    assert sequences is not None
    assert sequences.ready == "READY"


def test_a_stream_s_id_may_be_a_control() -> None:
    model = tiny_models.listen()
    model.graph.graph.input.append(onnx.helper.make_tensor_value_info("ID", onnx.TensorProto.UINT64, ["batch", 1]))
    config = config_of(model)
    control = {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}
    config["sequence_batching"]["control_input"] = [{"name": "ID", "control": [control]}]
    contract, sequences = checked(model, config)
    assert contract.inputs[2:] == (Tensor("ID", np.dtype(np.uint64), (1,)),)
    assert sequences is not None
    assert sequences.ready is None


def test_a_control_that_the_graph_lacks_is_rejected() -> None:
    config = config_of(tiny_models.listen_with_controls())
    with pytest.raises(ContractError, match=r"configuration expects 7 inputs .*'READY'.*model provides 4"):
        checked(tiny_models.listen(), config)


def test_a_control_of_another_type_is_rejected() -> None:
    model = tiny_models.listen_with_controls()
    config = config_of(model)
    config["sequence_batching"]["control_input"][0]["control"][0] = {
        "kind": "CONTROL_SEQUENCE_READY",
        "fp32_false_true": [0, 1],
    }
    with pytest.raises(
        ContractError, match=r"expects datatype TYPE_FP32 for input 'READY', model provides tensor\(int"
    ):
        checked(model, config)


def _state(index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["sequence_batching"]["state"][index].update(fields)


def _sequence(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["sequence_batching"].update(fields)


def _swap_outputs(config: dict[str, Any]) -> None:
    first, second = config["sequence_batching"]["state"]
    first["output_name"], second["output_name"] = second["output_name"], first["output_name"]


def _initial(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["sequence_batching"]["state"][1]["initial_state"][0].update(fields)


def _list_a_state_as_output(config: dict[str, Any]) -> None:
    config["output"].append({"name": "next_state_sum", "data_type": "TYPE_INT64", "dims": [1]})


def _list_a_state_as_input(config: dict[str, Any]) -> None:
    config["input"][1] = {"name": "state_sum", "data_type": "TYPE_INT64", "dims": [1]}


def _without_states(config: dict[str, Any]) -> None:
    config["input"] += [
        {"name": "state_sum", "data_type": "TYPE_INT64", "dims": [1]},
        {"name": "state_level", "data_type": "TYPE_FP32", "dims": [16]},
    ]
    del config["sequence_batching"]["state"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_sequence(state=[]), "configuration expects 2 inputs ('pcm', 'lengths'), model provides 4"),
        (_without_states, "sequence_batching has no 'state' section"),
        (_sequence(iterative_sequence=True), "'iterative_sequence' is not supported"),
        (_list_a_state_as_input, "state input 'state_sum' is also listed under 'input'"),
        (_list_a_state_as_output, "state output 'next_state_sum' is also listed under 'output'"),
        (_state(0, input_name="state_level"), "state input 'state_level' is named twice"),
        (_state(0, input_name="state_summ"), "unexpected state input 'state_summ' in the configuration"),
        (_state(0, output_name="next_state_t"), "unexpected state output 'next_state_t' in the configuration"),
        (_swap_outputs, "the states' inputs sort in another order than their outputs"),
        (_state(1, dims=[-1]), "state 'state_level': expected dims of fixed sizes, got [-1]"),
        (_state(1, initial_state=[]), "state 'state_level' needs one initial_state with zero_data: true"),
        (_state(1, use_growable_memory=True), "state 'state_level': 'use_growable_memory' is not supported"),
        (_initial(zero_data=False, data_file="x"), "state 'state_level' needs one initial_state with zero_data: true"),
        (_initial(dims=[8]), "state 'state_level': dims is [16], that of its initial_state [8]"),
        (_initial(data_type="TYPE_FP16"), "state 'state_level': data_type is TYPE_FP32, that of its initial_state"),
    ],
)
def test_disagreement_is_rejected(edit: Callable[[dict[str, Any]], None], message: str) -> None:
    model = tiny_models.listen()
    config = config_of(model)
    edit(config)
    with pytest.raises(ContractError, match=re.escape(message)):
        checked(model, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dims": [8]}, "state input 'state_level': the model has shape [-1, 16], the configuration specifies [-1, 8]"),
        ({"dims": [1, 16]}, "the model has shape [-1, 16], the configuration specifies [-1, 1, 16]"),
        (
            {"data_type": "TYPE_FP16"},
            "expects datatype TYPE_FP16 for state input 'state_level', model provides tensor(",
        ),
    ],
)
def test_a_state_is_as_the_graph_has_it(fields: dict[str, Any], message: str) -> None:
    model = tiny_models.listen()
    config = config_of(model)
    _state(1, **fields)(config)
    _initial(**fields)(config)
    with pytest.raises(ContractError, match=re.escape(message)):
        checked(model, config)


def test_a_state_s_sizes_may_be_dynamic_in_the_graph() -> None:
    model = tiny_models.listen()
    for port in (*model.graph.graph.input, *model.graph.graph.output):
        if port.name in ("state_level", "next_state_level"):
            port.type.tensor_type.shape.dim[1].dim_param = "width"
    sequences = checked(model, config_of(model))[1]
    assert sequences is not None
    assert [tensor.shape for tensor in sequences.outputs] == [(1,), (16,)]
