"""The regression guard: planted regressions are found, noise and other machines' speed are not taken for them."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.compare import Values, compare, main

ROOT = Path(__file__).parents[2]


def latency(p50: float, spread: float = 0.1, count: int = 200) -> Values:
    return {"p50": p50, "p95": p50 * (1 + spread), "p99": p50 * (1 + 2 * spread), "count": count}


def stage(name: str, p50: float, **more: Any) -> Values:
    return {
        "name": name,
        "role": "chain",
        "size_bytes": 1_000_000,
        "latency_ms": latency(p50),
        "throughput_per_s": 2000 / p50,
        "server_latency_ms": None,
        "metric": {"name": "MAE", "value": 140.0, "ci95": [132.0, 149.0], "higher_is_better": False},
        "parity": {"max_abs": 0.1, "relative": 0.02, "relative_rms": 0.004},
        "quantized": {"weight_bytes_fraction": 0.99, "mac_fraction": 0.98},
        "batch_invariance": {"max_abs_drift": 0.0, "decision_flips": 0, "cases": 10},
        **more,
    }


def report() -> Values:
    return {
        "model": "load_forecast",
        "variant": "lstm",
        "data": "real",
        "stages": [
            stage("teacher_torch_fp32", 6.0, parity=None, quantized=None),
            stage("student_onnx_fp32", 1.5, server_latency_ms=latency(2.4)),
            stage("student_onnx_int8", 0.6, server_latency_ms=latency(1.3)),
        ],
        "gates": [{"name": "parity", "passed": True}, {"name": "coverage", "passed": True}],
        "published": {"version": 1},
    }


def worse(new: Values, old: Values | None = None) -> list[tuple[str, str]]:
    return [(row.stage, row.what) for row in compare(old or report(), new) if row.worse]


INT8 = "student_onnx_int8"
TO_TEACHER = "latency p50 / teacher_torch_fp32"


def test_a_report_is_no_worse_than_itself() -> None:
    assert worse(report()) == []


def test_a_machine_of_half_the_speed_is_no_regression() -> None:
    new = report()
    for each in new["stages"]:
        for key in ("latency_ms", "server_latency_ms"):
            if each[key]:
                each[key] = {name: value * (2 if name != "count" else 1) for name, value in each[key].items()}
        each["throughput_per_s"] /= 2
    assert worse(new) == []


PLANTED: dict[str, tuple[Callable[[Values], Any], list[tuple[str, str]]]] = {
    "slower": (lambda s: s.update(latency_ms=latency(0.72)), [(INT8, TO_TEACHER)]),
    "slower through Triton": (
        lambda s: s.update(server_latency_ms=latency(1.7)),
        [(INT8, "server latency p50 / student_onnx_fp32")],
    ),
    "fewer in batches": (lambda s: s.update(throughput_per_s=2000), [(INT8, "time per item in batches")]),
    "larger": (lambda s: s.update(size_bytes=1_020_000), [(INT8, "bytes")]),
    "less accurate": (lambda s: s["metric"].update(value=150), [(INT8, "MAE")]),
    "no accuracy": (lambda s: s["metric"].update(value=float("nan")), [(INT8, "MAE")]),
    "other answers": (lambda s: s["parity"].update(relative_rms=0.007), [(INT8, "parity, relative_rms")]),
    "less in int8": (
        lambda s: s["quantized"].update(weight_bytes_fraction=0.9),
        [(INT8, "int8, weight_bytes_fraction")],
    ),
    "drift": (
        lambda s: s["batch_invariance"].update(max_abs_drift=1e-7),
        [(INT8, "batch invariance, max_abs_drift")],
    ),
    "flips": (lambda s: s["batch_invariance"].update(decision_flips=1), [(INT8, "decisions flipped in company")]),
}


@pytest.mark.parametrize(("plant", "found"), PLANTED.values(), ids=PLANTED)
def test_a_planted_regression_is_found_and_nothing_else(
    plant: Callable[[Values], Any], found: list[tuple[str, str]]
) -> None:
    new = report()
    plant(new["stages"][2])
    assert worse(new) == found
    assert worse(report(), old=new) == [], "the other way round it is an improvement"


def test_gates_stages_and_publications_that_are_gone() -> None:
    new = report()
    new["gates"] = [{"name": "parity", "passed": False}]
    new["published"] = None
    del new["stages"][2]
    assert worse(new) == [(INT8, "stage"), ("", "gate parity"), ("", "gate coverage"), ("", "published")]


def test_another_data_set_s_metric_is_not_compared() -> None:
    new = report() | {"data": "synthetic"}
    new["stages"][2]["metric"]["value"] = 500
    assert worse(new) == []


def measured(seed: int, slowdown: float, calls: int) -> Values:
    """A report with latencies drawn as a machine would give them, 15 % spread, whose int8 is slower by so much."""
    new, draw = report(), np.random.default_rng(seed)
    for each in new["stages"]:
        centre = each["latency_ms"]["p50"] * (slowdown if each["name"] == INT8 else 1)
        p50, p95, p99 = np.percentile(draw.lognormal(np.log(centre), 0.15, calls), (50, 95, 99))
        each["latency_ms"] = {"p50": p50, "p95": p95, "p99": p99, "count": calls}
    return new


def test_noise_is_told_from_slowness() -> None:
    """Of 100 pairs that differ by chance alone, hardly any is called worse; of 100 that are 25 % slower, nearly all."""

    def alarms(slowdown: float, calls: int) -> int:
        pairs = ((measured(2 * n, 1.0, calls), measured(2 * n + 1, slowdown, calls)) for n in range(100))
        return sum((INT8, TO_TEACHER) in worse(new, old) for old, new in pairs)

    assert alarms(1.0, 200) <= 1
    assert alarms(1.05, 200) <= 6  # just what is allowed: 2.5 % by chance
    assert alarms(1.25, 200) >= 99
    assert alarms(1.15, 20) < alarms(1.15, 1000), "few calls prove less"


def write(path: Path, content: Values) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = report()
    new["stages"][2]["size_bytes"] *= 2
    paths = write(tmp_path / "old.json", report()), write(tmp_path / "new.json", new)
    assert main(paths) == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        "WORSE student_onnx_int8 bytes: 1,000,000 -> 2,000,000  +100.0%, allowed +1%"
    )
    assert main([paths[0], paths[0]]) == 0
    assert capsys.readouterr().out.endswith("none worse\n")


def test_make_bench_compare(tmp_path: Path) -> None:
    """The target passes both files on, and a regression fails it; set up for this interpreter, not anew."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".ready").touch()
    new = copy.deepcopy(report())
    new["gates"][0]["passed"] = False
    old, worse_one = write(tmp_path / "old.json", report()), write(tmp_path / "new.json", new)
    for second, status, words in ((worse_one, 2, "WORSE"), (old, 0, "none worse")):
        run = subprocess.run(
            [make, "bench-compare", f"OLD={old}", f"NEW={second}", f"VENV={tmp_path}"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert (run.returncode, words in run.stdout) == (status, True), run.stdout + run.stderr  # make's 2: it failed


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("", "is no report.json"),
        ("[]", "is no report.json"),
        ('{"stages": []}', "has no stages"),
        (json.dumps(report() | {"variant": "gru"}), "different variants"),
        (json.dumps(report() | {"stages": [stage("other", 1.0)]}), "no stage is in both"),
        (json.dumps(report() | {"stages": [{"name": INT8, "latency_ms": latency(1)}]}), "lacks what every report"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, new: str, words: str) -> None:
    (tmp_path / "new.json").write_text(new)
    old = write(tmp_path / "old.json", report())
    run = subprocess.run(
        [sys.executable, "-m", "loadtest.compare", old, str(tmp_path / "new.json")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert words in run.stderr


def test_shuffled_stages_compare_alike() -> None:
    new = report()
    random.Random(3).shuffle(new["stages"])
    assert worse(new) == []
