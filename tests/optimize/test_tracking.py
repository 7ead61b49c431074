"""What --mlflow leaves in a local store, and what it says when it cannot; skipped without MLflow."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimize import tracking
from optimize.errors import UserError
from optimize.report import GateResult, Report, write
from optimize.verify import GateError
from tests.optimize.test_report import REPORT

mlflow_tracking = pytest.importorskip(
    "mlflow.tracking", reason="mlflow is not installed: pip install -e '.[mlflow]'", exc_type=ImportError
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # and its connections, open until it ends
]

GATE = GateResult("student_onnx_int8: parity (RMS)", True, 0.01, 0.02, False, "")
FULL = replace(REPORT, gates=[GATE], comparisons={"int8 against torch, p50": 9.9})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a pipeline run leaves."""
    made = tmp_path / "artifacts"
    write(FULL, made)
    (made / "student_onnx_int8.onnx").write_bytes(b"model")
    return made


def runs(uri: str) -> list[Any]:
    client = mlflow_tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("load_forecast")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def test_a_run_is_logged_whole(tmp_path: Path, folder: Path) -> None:
    uri = f"sqlite:///{tmp_path}/runs.db"
    for rounds in (100, 200):
        with tracking.recorded(uri, "load_forecast", "lstm", folder, {"quantize": True, "rounds": rounds}):
            pass
    last, first = runs(uri)
    assert (first.data.params["rounds"], last.data.params["rounds"]) == ("100", "200")
    assert last.info.status == "FINISHED"
    assert last.data.params | {"quantize": "True", "variant": "lstm", "cpu": "x86"} == last.data.params
    figures = last.data.metrics
    assert figures["student_onnx_int8/latency_ms/p50"] == 0.68
    assert figures["student_onnx_int8/metric/ci95/low"] == 134.8
    assert figures["student_onnx_int8/also/MASE"] == 0.38
    assert figures["gate/student_onnx_int8_ parity _RMS_"] == 0.01
    assert figures["compared/int8 against torch_ p50"] == 9.9
    client = mlflow_tracking.MlflowClient(tracking_uri=uri)
    files = {file.path for file in client.list_artifacts(last.info.run_id)}
    assert files == {"report.json", "report.md", "report.html", "student_onnx_int8.onnx"}
    place = tmp_path / "runs.files" / last.info.run_id / "artifacts" / "student_onnx_int8.onnx"
    assert place.read_bytes() == b"model"


def test_failed_gates_are_logged_as_a_failed_run_and_other_mistakes_not_at_all(tmp_path: Path, folder: Path) -> None:
    uri = f"sqlite:///{tmp_path}/runs.db"
    for error in (UserError("no such data"), GateError("too slow")):
        with pytest.raises(type(error)), tracking.recorded(uri, "load_forecast", "lstm", folder, {}):
            raise error
    (run,) = runs(uri)
    assert run.info.status == "FAILED"


def test_a_store_that_fails_hides_no_gate_and_keeps_no_run_that_seems_to_go_on(tmp_path: Path, folder: Path) -> None:
    uri = f"sqlite:///{tmp_path}/runs.db"
    (folder / "student_onnx_int8.onnx").unlink()  # so half of it is logged
    store = pytest.raises(UserError, match=r"^--mlflow sqlite")
    with store, tracking.recorded(uri, "load_forecast", "lstm", folder, {}):
        pass
    both = pytest.raises(GateError, match=r"^too slow\n--mlflow sqlite")
    with both, tracking.recorded(uri, "load_forecast", "lstm", folder, {}):
        raise GateError("too slow")
    assert [run.info.status for run in runs(uri)] == ["FAILED", "FAILED"]


def test_a_store_that_cannot_be_opened_is_told_before_the_run(tmp_path: Path) -> None:
    for uri, words in (
        ("http://127.0.0.1:9", "Connection refused"),
        ("nonsense://here", "unsupported URI"),
        ("sqlite:////no/such/folder/runs.db", "create it first"),
    ):
        with pytest.raises(UserError) as told, tracking.recorded(uri, "load_forecast", "lstm", tmp_path, {}):
            raise AssertionError("the run began")
        assert str(told.value).startswith(f"--mlflow {uri}: ")
        assert words in str(told.value)
        assert "\n" not in str(told.value)


def test_without_mlflow_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with (
        pytest.raises(UserError, match=r"pip install -e '\.\[mlflow\]'"),
        tracking.recorded("x", "m", "v", tmp_path, {}),
    ):
        pass


def test_what_is_no_number_is_no_metric() -> None:
    stage = replace(REPORT.stages[0], throughput_per_s=math.nan)
    report: Report = replace(FULL, stages=[stage], gates=[replace(GATE, value=math.inf)])
    found = tracking.metrics(report)
    assert not [name for name in found if "throughput_per_s" in name or name.startswith("gate/")]
    assert all(math.isfinite(value) for value in found.values())
