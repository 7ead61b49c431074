"""The backend's execute, in process: batches, groups, per-request errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format

from tests import tiny_models
from tests.serving.fake_pb_utils import InferenceRequest, InferenceResponse, Logger, TritonError
from tests.tiny_models import TinyModel


def loaded(backend: ModuleType, tmp_path: Path, model: TinyModel, kind: str = "CPU") -> Any:
    """An instance of ``model``, initialised as Triton does it, that records the rows of each of its runs."""
    folder = model.write(tmp_path)
    config = json_format.MessageToDict(model.config, preserving_proto_field_name=True)
    instance = backend.TritonPythonModel()
    instance.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_name": f"{model.spec.name}_0_0",
            "model_instance_kind": kind,
            "model_instance_device_id": "0",
        }
    )
    instance._session = Recorder(instance._session)
    return instance


class Recorder:
    """A session that notes how many rows each run had."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session, self.runs = session, list[int]()

    def run(self, names: list[str], feed: dict[str, Any], options: Any) -> Any:
        self.runs.append(len(next(iter(feed.values()))))
        return self._session.run(names, feed, options)


def error_of(response: InferenceResponse) -> TritonError:
    assert response.error is not None
    return response.error


def request(model: TinyModel, *wanted: str, **arrays: Any) -> InferenceRequest:
    return InferenceRequest(arrays, list(wanted) or [tensor.name for tensor in model.spec.outputs])


def test_requests_of_one_call_are_one_run(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.double()
    instance = loaded(backend, tmp_path, model)
    arrays = [np.full((rows, 4), rows, np.float32) for rows in (1, 2, 1)]
    responses = instance.execute([request(model, x=array) for array in arrays])
    assert instance._session.runs == [4]
    for array, response in zip(arrays, responses, strict=True):
        np.testing.assert_array_equal(response.arrays()["y"], 2 * array)
        np.testing.assert_array_equal(response.arrays()["rows"], np.full((len(array), 1), 4))


def test_a_single_request_is_not_copied(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.double()
    instance = loaded(backend, tmp_path, model)
    array = np.ones((1, 4), np.float32)
    work = instance._enter(0, request(model, x=array), None)
    assert work.arrays[0] is array


def test_unequal_shapes_run_apart_and_unpadded(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.sums()
    instance = loaded(backend, tmp_path, model)
    arrays = [np.ones((1, time, 2), np.float32) for time in (3, 5, 3)]
    responses = instance.execute([request(model, x=array) for array in arrays])
    assert instance._session.runs == [2, 1]
    for array, response in zip(arrays, responses, strict=True):
        np.testing.assert_array_equal(response.arrays()["total"], array.sum(axis=1))
        np.testing.assert_array_equal(response.arrays()["scaled"], 3 * array)


def test_only_the_wanted_outputs_are_answered(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.sums()
    instance = loaded(backend, tmp_path, model)
    x = np.ones((1, 3, 2), np.float32)
    responses = instance.execute([request(model, "scaled", x=x), request(model, "total", "scaled", x=x)])
    assert [list(response.arrays()) for response in responses] == [["scaled"], ["total", "scaled"]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((1, 4))}, "input 'x': expected float32, got float64"),
        ({"x": np.ones((1, 5), np.float32)}, "input 'x': expected shape [batch, 4], got [1, 5]"),
        ({"x": np.ones((4,), np.float32)}, "input 'x': expected shape [batch, 4], got [4]"),
        ({"x": np.ones((0, 4), np.float32)}, "input 'x': shape [0, 4] holds nothing"),
        ({"x": np.array([[1, 2, np.nan, 4]], np.float32)}, "input 'x': expected finite numbers, got nan at [0, 2]"),
        ({"x": np.array([[1, 2, 3, -np.inf]], np.float32)}, "input 'x': expected finite numbers, got -inf at [0, 3]"),
        ({"z": np.ones((1, 4), np.float32)}, "input 'x' is missing"),
    ],
)
def test_a_bad_request_fails_alone(backend: ModuleType, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    model = tiny_models.double()
    instance = loaded(backend, tmp_path, model)
    good = request(model, x=np.ones((1, 4), np.float32))
    first, bad, last = instance.execute([good, InferenceRequest(arrays, ["y"]), good])
    assert (error_of(bad).message, error_of(bad).code) == (message, TritonError.INVALID_ARG)
    for response in (first, last):
        np.testing.assert_array_equal(response.arrays()["rows"], [[2]])


def test_a_run_that_fails_is_repeated_for_each_request(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.lookup()
    instance = loaded(backend, tmp_path, model)
    responses = instance.execute([request(model, index=np.array([[index]])) for index in (2, 99, 0)])
    assert instance._session.runs == [3, 1, 1, 1]
    assert responses[0].arrays()["value"] == 30
    assert responses[2].arrays()["value"] == 10
    assert error_of(responses[1]).message.startswith("the model failed: ")
    assert error_of(responses[1]).code == TritonError.INTERNAL


def test_outputs_that_lose_rows_are_an_error(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.lookup()
    graph = model.graph.graph
    graph.node[0].output[0] = "all"  # of which the answer becomes the first row, whatever the batch
    graph.node.append(onnx.helper.make_node("Slice", ["all", "zero", "one"], ["value"]))
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([i]), name) for i, name in enumerate(["zero", "one"])
    )
    instance = loaded(backend, tmp_path, model)
    (response,) = instance.execute([request(model, index=np.array([[0], [1], [2]]))])
    assert "output 'value' has 1 rows for a batch of 3" in error_of(response).message


def test_a_warm_up_that_fails_is_only_noted(backend: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.lookup()
    table = next(constant for constant in model.graph.graph.initializer if constant.name == "table")
    table.CopyFrom(onnx.numpy_helper.from_array(np.array([10], np.float32), "table"))
    Logger.warnings.clear()
    instance = loaded(backend, tmp_path, model)
    assert Logger.warnings
    assert "warm-up" in Logger.warnings[0]
    (response,) = instance.execute([request(model, index=np.array([[0]]))])
    assert response.arrays()["value"] == 10


def test_numpy_2_is_refused(backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(RuntimeError, match=r"numpy 2\.4\.6.*numpy < 2 is needed"):
        loaded(backend, tmp_path, tiny_models.double())


def test_finalize_releases_the_session(backend: ModuleType, tmp_path: Path) -> None:
    instance = loaded(backend, tmp_path, tiny_models.double())
    instance.finalize()
    assert not hasattr(instance, "_session")
