"""Configuration against graph: what the official backend rejects is rejected, and the message says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format
from onnx_contract import Contract, ContractError, Tensor, check

from tests import tiny_models
from tests.tiny_models import TinyModel


def config_of(model: TinyModel) -> dict[str, Any]:
    config: dict[str, Any] = json_format.MessageToDict(model.config, preserving_proto_field_name=True)
    return config


def checked(model: TinyModel, config: dict[str, Any]) -> Contract:
    session = onnxruntime.InferenceSession(model.graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return check(config, session.get_inputs(), session.get_outputs())


def test_the_generated_configuration_is_accepted() -> None:
    model = tiny_models.sums()
    contract = checked(model, config_of(model))
    assert contract.max_batch == 8
    assert contract.inputs == (Tensor("x", np.dtype(np.float32), (-1, 2)),)
    assert [tensor.name for tensor in contract.outputs] == ["total", "scaled"]


def test_an_output_may_be_left_out() -> None:
    model = tiny_models.sums()
    config = config_of(model)
    del config["output"][0]
    assert [tensor.name for tensor in checked(model, config).outputs] == ["scaled"]


def test_an_input_may_be_narrower_than_the_graph() -> None:
    model = tiny_models.sums()
    config = config_of(model)
    config["input"][0]["dims"] = ["24", "2"]
    assert checked(model, config).inputs[0].shape == (24, 2)


def test_a_reshape_is_what_counts() -> None:
    model = tiny_models.double()
    config = config_of(model)
    config["input"][0] |= {"dims": ["2", "2"], "reshape": {"shape": ["4"]}}
    assert checked(model, config).inputs[0].shape == (4,)


def test_without_a_batch_axis_the_shapes_are_whole() -> None:
    model = tiny_models.double()
    config = config_of(model)
    config["max_batch_size"] = 0
    config["input"][0]["dims"] = [3, 4]
    config["output"] = [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 4]}]
    assert checked(model, config).inputs[0].shape == (3, 4)


def _extra_input(config: dict[str, Any]) -> None:
    config["input"].append({"name": "more", "data_type": "TYPE_FP32", "dims": [1]})


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def edit(config: Any) -> None:
        for step in way:
            config = config[step]
        config[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_extra_input, "configuration expects 2 inputs ('x', 'more'), model provides 1 ('x')"),
        (_set("input", 0, "name", "z"), "unexpected input 'z' in the configuration; the model has 'x'"),
        (_set("output", 0, "name", "z"), "unexpected output 'z' in the configuration; the model has 'y', 'rows'"),
        (
            _set("input", 0, "data_type", "TYPE_FP64"),
            "expects datatype TYPE_FP64 for input 'x', model provides tensor(fl",
        ),
        (_set("input", 0, "data_type", "TYPE_STRING"), "unsupported datatype TYPE_STRING for input 'x'"),
        (_set("input", 0, "dims", [5]), "input 'x': the model has shape [-1, 4], the configuration specifies [-1, 5]"),
        (
            _set("input", 0, "dims", [-1]),
            "input 'x': the model has shape [-1, 4], the configuration specifies [-1, -1]",
        ),
        (_set("input", 0, "dims", [1, 4]), "the model has shape [-1, 4], the configuration specifies [-1, 1, 4]"),
        (
            _set("output", 0, "dims", [-1]),
            "output 'y': the model has shape [-1, 4], the configuration specifies [-1, -1]",
        ),
        (_set("max_batch_size", 0), "input 'x': the model has shape [-1, 4], the configuration specifies [4]"),
        (_set("input", 0, "optional", True), "input 'x': 'optional' is not supported"),
        (_set("input", 0, "allow_ragged_batch", True), "input 'x': 'allow_ragged_batch' is not supported"),
        (_set("model_transaction_policy", {"decoupled": True}), "an ONNX model cannot be decoupled"),
        (_set("ensemble_scheduling", {"step": [{}]}), "'ensemble_scheduling' is not supported by this backend"),
    ],
)
def test_disagreement_is_rejected(edit: Callable[[dict[str, Any]], None], message: str) -> None:
    model = tiny_models.double()
    config = config_of(model)
    edit(config)
    with pytest.raises(ContractError, match=re.escape(message)):
        checked(model, config)


def test_a_fixed_batch_is_rejected() -> None:
    model = tiny_models.double()
    model.graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ContractError, match=r"max_batch_size is 8, so the model's first dimension must be dynamic"):
        checked(model, config_of(model))
