"""The pipeline on a user's streaming recipe: its step is published, and a twin that answers whole recordings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optimize import pipeline, recipes, streaming
from optimize.benchmark import runner, session
from optimize.data.dataset import Arrays
from optimize.quantize import plan
from optimize.quantize.plan import Choice
from optimize.recipes import Recipe
from optimize.report import Report
from optimize.train import train_network
from optimize.verify import GateError
from optimize.work import Options

CHUNKED = "teacher_onnx_fp32 in chunks against torch on whole recordings"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(Path(__file__).parents[1] / "recipes" / "smooth_gru.py", folder)
    recipe = recipes.load(file=folder / "smooth_gru.py")
    choices = {
        name: Choice(operator, method, "by hand")
        for name, operator, method in (("/gru/GRU", "GRU", "static"), ("/output/MatMul", "MatMul", "fp32"))
    }
    by_hand = plan.Plan("invariant", "by hand", {"invariant": choices, "throughput": choices})
    plan.write(folder / "smooth_gru.plan.json", "stream", by_hand)
    return recipe


@pytest.fixture(scope="module")
def options(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Options:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("run")
    made = Options(True, checkpoints=root / "c", artifacts=root / "a", model_repository=root / "models", rounds=10)
    train_network(recipe, "stream", "teacher", recipe.load(None), made.checkpoints)
    return made


@pytest.fixture(scope="module")
def reports(recipe: Recipe, options: Options) -> dict[str, Report]:
    """A slower int8 is not published; here it is what is to be seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_fastest", lambda chain, *_: chain[-1])
        return {variant: pipeline.run(recipe, variant, options) for variant in recipe.variants}


def test_a_stream_is_judged_chunk_by_chunk(reports: dict[str, Report]) -> None:
    report = reports["stream"]
    gates = {gate.name: gate for gate in report.gates}
    assert gates[CHUNKED].passed
    assert 0 < gates[CHUNKED].value <= 1e-4
    assert report.published is not None
    assert report.published.stage == "teacher_onnx_int8"
    int8 = report.stage("teacher_onnx_int8")
    assert int8.batch_invariance is not None
    assert int8.batch_invariance.max_abs_drift == 0
    assert int8.batch_invariance.cases == 128  # whole recordings, not chunks
    assert abs(int8.metric.value / report.stage("teacher_torch_fp32").metric.value - 1) < 0.1


def test_the_twin_is_published_with_the_stream_s_bits(recipe: Recipe, reports: dict[str, Report]) -> None:
    runs = {}
    for variant, report in reports.items():
        assert report.published is not None
        runs[variant] = runner(session(Path(report.published.path) / "model.onnx"))
    recordings: Arrays = recipe.load(None).test.rows(0, 7)
    spec = recipe.variants["stream"].spec
    whole = runs["offline"](recordings)["smooth"]
    np.testing.assert_array_equal(whole, streaming.whole(runs["stream"], spec)(recordings)["smooth"])
    assert (
        reports["offline"].stage("teacher_onnx_int8").quantized
        == reports["stream"].stage("teacher_onnx_int8").quantized
    )


def test_a_model_that_forgets_is_not_published(
    recipe: Recipe, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = streaming.Step.forward

    def forgetful(self: streaming.Step, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, state = step(self, *tensors)
        return outputs, 0 * state

    monkeypatch.setattr(streaming.Step, "forward", forgetful)
    forgetting = Options(
        True, checkpoints=options.checkpoints, artifacts=tmp_path, model_repository=tmp_path / "m", rounds=5
    )
    with pytest.raises(GateError, match=CHUNKED):
        pipeline.run(recipe, "stream", forgetting)
    assert not list(tmp_path.glob("m/*/*/model.onnx"))


class BothWays(nn.Module):
    """A teacher that hears the future, and so has no step."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.gru, self.output = nn.GRU(1, 8, batch_first=True, bidirectional=True), nn.Linear(16, 1)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        smooth: torch.Tensor = self.output(self.gru(noisy)[0]).squeeze(2)
        return smooth


def test_a_teacher_that_cannot_stream_is_no_stage(recipe: Recipe, options: Options, tmp_path: Path) -> None:
    stream = recipe.variants["stream"]
    student = stream.networks["teacher"]
    networks = {"teacher": replace(student, build=BothWays), "student": student}
    taught = replace(recipe, variants={"stream": replace(stream, networks=networks)})
    made = replace(options, quantize=False, checkpoints=tmp_path / "c", artifacts=tmp_path / "a", rounds=5)
    train_network(taught, "stream", "teacher", taught.load(None), made.checkpoints)
    report = pipeline.run(taught, "stream", replace(made, model_repository=tmp_path / "m"))
    assert [stage.name for stage in report.stages if stage.runtime == "torch"] == ["student_torch_fp32"]
    assert not any("teacher" in label and "smallest" not in label for label in report.comparisons)
    assert any(note.startswith("teacher: answers whole recordings only, test MSE") for note in report.notes)
