"""The tuner with a real Triton and a known answer: a model that waits longer for company than the limit allows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from optimize import recipes, repository
from tests import tiny_models

ROOT = Path(__file__).parents[3]
LIMIT_MS = 2000
RECIPE = """
from dataclasses import replace
from torch import nn
from optimize.recipes import Metric, Network, Recipe, Variant
from optimize.specs import ServingSpec
from tests import tiny_models

def unused(*_):
    raise AssertionError("the tuner needs the interface alone")

def variant(spec, serving):
    return Variant(spec, {"teacher": Network(lambda _: nn.Identity(), None)}, serving)

# 64 requests never come together within three seconds, so every one waits for those.
WAITS = ServingSpec(preferred_batch=(64,), queue_delay_us=3_000_000, response_cache=True)
RECIPE = Recipe(
    "double", unused, unused, Metric("none", True, unused, unused),
    {
        "plain": variant(replace(tiny_models.double().spec, max_batch=64), WAITS),
        "absent": variant(tiny_models.double("double_absent").spec, ServingSpec()),
        "stream": variant(tiny_models.listen("double_stream", time=1600).spec, ServingSpec(max_streams=2)),
    },
)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's recipe, and its models published but for one."""
    (tmp_path / "double.py").write_text(RECIPE)
    recipe = recipes.load(file=tmp_path / "double.py")
    for name, graph in (
        ("plain", tiny_models.double().graph),
        ("stream", tiny_models.listen("double_stream", time=1600).graph),
    ):
        onnx.save(graph, tmp_path / "model.onnx")
        variant = recipe.variants[name]
        repository.publish(tmp_path / "models", variant.spec, variant.serving, tmp_path / "model.onnx")
    return tmp_path


def command(place: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "optimize.tune", "--recipe", str(place / "double.py"), "--artifacts",
        str(place / "artifacts"), "--model-repository", str(place / "models"), "--seconds", "1", "--rounds", "2",
        "--cores", "1", "--processes", "1", *more,
    ]  # fmt: skip


def run(place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(place, *more), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.timeout(600)  # three servers, one after the other
def test_interrupted_then_nothing_within_the_limit_then_the_winner_is_written(place: Path) -> None:
    folder = place / "artifacts" / "double" / "plain"
    limit = ("--p99-ms", str(LIMIT_MS), "--max-rate", "20")
    with subprocess.Popen(command(place, *limit), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "tuning.json").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert (process.returncode, "interrupted" in told) == (130, True), told

    found = run(place, *limit, "--trials", "1")  # which has been measured: the present settings
    assert found.returncode == 2, found.stdout + found.stderr
    assert "nothing keeps the p99 of model 'double' within 2000 ms: the best was" in found.stderr
    assert not (place / "double.serving.json").exists()

    found = run(place, *limit, "--trials", "2")
    assert found.returncode == 0, found.stdout + found.stderr
    content = json.loads((folder / "tuning.json").read_text())
    first, second = content["measured"]
    assert (first["reading"]["level"], second["reading"]["level"]) == (0, 20)
    assert len(first["reading"]["runs"]) == 1, "from the journal"
    assert content["duel"] == {"present": [0, 0], "challenger": [20, 20]}
    assert (folder / "tuning.svg").exists()
    printed = "".join(found.stdout.split())
    assert f"optimize.export--recipe{place}/double.py--variantplain--quantize" in printed
    assert f"details:{folder}" in printed
    written = recipes.load(file=place / "double.py").variant("plain")[1].serving
    assert written.queue_delay_us == second["candidate"]["queue_delay_us"] < LIMIT_MS * 1000
    assert written.response_cache, "what was not tuned is as it was"


def test_streams(place: Path) -> None:
    """Both of the two streams there may be are sustained, whatever the settings: a tie, which the present ones win."""
    found = run(place, "--variant", "stream", "--streams", "--trials", "1")
    content = json.loads((place / "artifacts" / "double" / "stream" / "tuning.json").read_text())
    assert (content["unit"], content["p99_limit_ms"]) == ("real-time streams", 100)
    if found.returncode == 0:  # a busy machine may not sustain even one
        assert content["measured"][0]["reading"]["level"] <= 2
        assert "nothing was written" in found.stdout
    else:
        assert (found.returncode, found.stderr.count("error: noth")) == (2, 1), found.stderr
    assert not (place / "double.serving.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--p99-ms", "0"], "--p99-ms is 0; expected milliseconds above 0"),
        ([], "give --p99-ms"),
        (["--p99-ms", "20", "--variant", "absent"], "double.py --variant absent --quantize first"),
        (["--p99-ms", "20", "--variant", "nothing"], "no variant 'nothing'"),
        (["--p99-ms", "20", "--streams"], "--streams: model 'double' keeps no state"),
        (["--p99-ms", "20", "--profile", "throughput"], "there is no such file of what is published"),
    ],
)
def test_mistakes_end_with_one_line(
    place: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loadtest import command as ending
    from optimize import tune

    monkeypatch.setattr(sys, "argv", command(place, *arguments)[2:])
    with pytest.raises(SystemExit) as ended:
        ending.run(tune.main)
    assert ended.value.code == 2
    *_, error = capsys.readouterr().err.strip().splitlines()  # after the progress bar, if there was one
    assert error.startswith("error: ")
    assert words in error


def test_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "optimize.tune", "--model", "nothing", "--p99-ms", "20"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2
    assert "no recipe 'nothing'; built in are" in found.stderr
