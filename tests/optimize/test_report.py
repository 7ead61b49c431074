"""The report as data: JSON and back, what is no report, and the files of one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimize.benchmark import Latency
from optimize.errors import UserError
from optimize.report import GateResult, MetricValue, Report, Stage, from_json, to_json, with_server_latency, write

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ENVIRONMENTS = st.dictionaries(st.text(max_size=8), SCALARS | st.lists(SCALARS, max_size=3), max_size=4)
REPORTS = st.builds(
    Report,
    environment=ENVIRONMENTS,
    stages=st.lists(st.from_type(Stage), max_size=3),
    gates=st.lists(st.from_type(GateResult), max_size=3),
)
STAGE = Stage(
    name="student_onnx_int8",
    role="chain",
    runtime="onnxruntime",
    precision="int8",
    parameters=800_000,
    size_bytes=900_000,
    latency_ms=Latency(0.68, 0.7, 0.9, 200),
    throughput_per_s=3000.0,
    throughput_batch=16,
    server_latency_ms=None,
    metric=MetricValue("MAE (MW)", 140.9, (134.8, 147.3), False, 0.005, (-0.001, 0.011)),
    also={"MASE": 0.38},
    parity=None,
    quantized=None,
    batch_invariance=None,
)
REPORT = Report("load_forecast", "lstm", True, "synthetic", {"cpu": "x86", "threads": 1}, [STAGE], [], None)


@given(REPORTS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_json_and_back(report: Report) -> None:
    again = from_json(to_json(report))
    assert repr(again) == repr(report)  # not ==, because NaN is not equal to itself


def test_json_has_the_documented_keys() -> None:
    values = json.loads(to_json(REPORT))
    assert {"model", "variant", "default", "data", "environment", "stages", "gates", "published"} <= set(values)
    assert values["stages"][0]["latency_ms"] == {"p50": 0.68, "p95": 0.7, "p99": 0.9, "count": 200}
    assert values["stages"][0]["metric"]["ci95"] == [134.8, 147.3]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"stages": null}', to_json(REPORT).replace('"role"', '"part"')]
)
def test_what_is_no_report_says_so(text: str) -> None:
    with pytest.raises(UserError, match=r"no report\.json"):
        from_json(text)


def test_server_latency_is_merged_by_stage() -> None:
    latency = Latency(1.1, 1.2, 1.3, 50)
    report = replace(REPORT, stages=[STAGE, replace(STAGE, name="other")])
    merged = with_server_latency(report, {STAGE.name: latency, "unknown": latency})
    assert merged.stage(STAGE.name).server_latency_ms == latency
    assert merged.stage("other").server_latency_ms is None


def test_write_leaves_three_files_that_agree(tmp_path: Path) -> None:
    paths = write(REPORT, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert from_json(paths[0].read_text()) == REPORT
    assert all(STAGE.name in path.read_text() for path in paths)
