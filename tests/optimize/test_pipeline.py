"""The whole pipeline on a user's recipe that lives outside the package: a small GRU, trained on the spot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from optimize import pipeline, recipes, version_folder
from optimize.checkpoint import CheckpointError, load_checkpoint, path_of
from optimize.distill import distill, is_current
from optimize.errors import UserError
from optimize.quantize import plan
from optimize.recipes import Recipe, Tolerances
from optimize.report import Report, from_json
from optimize.train import cross_validate, train_network
from optimize.verify import GateError
from optimize.work import Options


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("user")
    for name in ("sine_gru.py", "sine_gru.plan.json"):
        shutil.copy(Path(__file__).parents[1] / "recipes" / name, folder)
    return recipes.load(file=folder / "sine_gru.py")


@pytest.fixture(scope="module")
def options(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """A trained teacher and an empty repository."""
    root = tmp_path_factory.mktemp("run")
    made = Options(
        True,
        checkpoints=root / "checkpoints",
        artifacts=root / "artifacts",
        model_repository=root / "models",
        rounds=20,
    )
    train_network(recipe, "gru", "teacher", recipe.load(None), made.checkpoints)
    return made


@pytest.fixture(scope="module")
def report(recipe: Recipe, options: Options) -> Report:
    return pipeline.run(recipe, None, options)


def test_a_missing_teacher_says_how_to_get_one(recipe: Recipe, tmp_path: Path) -> None:
    options = Options(checkpoints=tmp_path, artifacts=tmp_path, model_repository=tmp_path / "models")
    with pytest.raises(CheckpointError, match=r"does not exist; train it with python -m optimize\.train"):
        pipeline.run(recipe, None, options)
    assert not (tmp_path / "models").exists()


def test_artifacts_that_cannot_be_written_stop_the_run_at_once(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pipeline.run(recipe, None, Options(artifacts=tmp_path / "file"))


def test_every_stage_is_measured_and_the_model_published(report: Report, options: Options) -> None:
    names = [stage.name for stage in report.stages]
    assert names[:4] == ["teacher_torch_fp32", "student_torch_fp32", "student_onnx_fp32", "student_onnx_fused"]
    assert all(gate.passed for gate in report.gates)
    assert all(stage.latency_ms.count == 20 for stage in report.stages)
    assert report.published is not None
    folder = Path(report.published.path)
    files = {path.name for path in folder.iterdir()}
    assert files == {"README.md", "config.pbtxt", "manifest.json", "model.onnx", "report.json"}
    described = json.loads((folder / "manifest.json").read_text())
    assert described["weights_sha256"].keys() == {"teacher", "student"}
    onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    saved = from_json((options.artifacts / "sine" / "gru" / "report.json").read_text())
    assert saved == report


def test_the_report_says_where_the_time_goes(report: Report, options: Options) -> None:
    assert report.published is not None
    assert [profile.stage for profile in report.profiles] == ["student_onnx_fp32", report.published.stage]
    assert all(profile.verdict and profile.parts for profile in report.profiles)
    folder = options.artifacts / "sine" / "gru"
    assert all(profile.verdict in (folder / "report.md").read_text() for profile in report.profiles)
    kept = json.loads((folder / "profile.json").read_text())
    assert {found["batch"] for found in kept["profiles"]} == {1, 16}


def test_what_cannot_be_profiled_is_published_all_the_same(
    recipe: Recipe, options: Options, report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("this graph cannot be profiled")

    monkeypatch.setattr("optimize.profiler.stages.profile_stages", refuse)
    again = pipeline.run(recipe, None, replace(options, artifacts=tmp_path))
    assert again.published is not None
    assert again.profiles == []
    assert (tmp_path / "sine" / "gru" / "report.html").exists()


def test_the_plan_is_followed_in_both_profiles(report: Report) -> None:
    assert report.plan["/gru/GRU"]["method"] == "static"
    int8, beside = report.stage("student_onnx_int8"), report.stage("student_onnx_int8_throughput")
    assert (int8.role, beside.role) == ("chain", "beside")
    for stage in (int8, beside):
        assert stage.quantized is not None
        assert stage.quantized.mac_fraction > 0.9
        assert "GRU" not in stage.quantized.operators
    assert int8.batch_invariance is not None
    assert int8.batch_invariance.max_abs_drift == 0
    assert beside.batch_invariance is not None
    assert beside.batch_invariance.max_abs_drift > 0


def test_a_plan_is_measured_where_there_is_none(
    recipe: Recipe, options: Options, report: Report, tmp_path: Path
) -> None:
    assert recipe.file is not None
    shutil.copy(recipe.file, tmp_path / "sine_gru.py")
    own = recipes.load(file=tmp_path / "sine_gru.py")
    pipeline.run(own, None, replace(options, artifacts=tmp_path / "a", model_repository=tmp_path / "m"))
    measured = plan.read(tmp_path / "sine_gru.plan.json", "gru")
    assert measured is not None
    assert all("measured" in choice.reason for choice in measured.choices["invariant"].values())


def test_running_again_changes_nothing(recipe: Recipe, options: Options, report: Report) -> None:
    assert report.published is not None
    weights = path_of(options.checkpoints, "sine", "gru", "student").read_bytes()
    again = pipeline.run(recipe, None, options)
    assert again.published is not None
    assert again.published.sha256 == report.published.sha256
    assert again.published.version == report.published.version
    assert version_folder.versions(options.model_repository / "sine") == [report.published.version]
    assert path_of(options.checkpoints, "sine", "gru", "student").read_bytes() == weights


def test_a_candidate_is_published_beside(recipe: Recipe, options: Options, report: Report) -> None:
    candidate = pipeline.run(recipe, None, replace(options, profile="throughput", candidate=True))
    assert candidate.published is not None
    assert candidate.published.path == str(options.model_repository / "sine.candidate/2")
    assert version_folder.versions(options.model_repository / "sine") == [1]


def test_a_failed_gate_publishes_nothing_but_reports(
    recipe: Recipe, options: Options, report: Report, tmp_path: Path
) -> None:
    strict = replace(recipe.variants["gru"], tolerances=Tolerances(metric_loss=-1))
    with pytest.raises(GateError, match=r"not published: .*gate 'metric loss to teacher'.*use a larger student"):
        pipeline.run(
            replace(recipe, variants={"gru": strict}),
            None,
            replace(options, artifacts=tmp_path / "artifacts", model_repository=tmp_path / "models"),
        )
    assert not (tmp_path / "models").exists()
    written = from_json((tmp_path / "artifacts" / "sine" / "gru" / "report.json").read_text())
    assert written.published is None
    assert [gate.passed for gate in written.gates if gate.name == "metric loss to teacher"] == [False]


def test_a_new_teacher_makes_the_student_stale(
    recipe: Recipe, options: Options, report: Report, tmp_path: Path
) -> None:
    assert is_current(recipe, "gru", options.checkpoints)
    shutil.copytree(options.checkpoints, tmp_path / "checkpoints")
    network = recipe.variants["gru"].networks["teacher"]
    other = replace(network, training=replace(network.training, seed=2, epochs=3))
    changed = replace(
        recipe,
        variants={
            "gru": replace(recipe.variants["gru"], networks={**recipe.variants["gru"].networks, "teacher": other})
        },
    )
    train_network(changed, "gru", "teacher", changed.load(None), tmp_path / "checkpoints")
    assert not is_current(changed, "gru", tmp_path / "checkpoints")
    distill(changed, "gru", changed.load(None), tmp_path / "checkpoints")
    assert is_current(changed, "gru", tmp_path / "checkpoints")


def test_training_is_deterministic_and_learns(recipe: Recipe, options: Options, tmp_path: Path) -> None:
    again = train_network(recipe, "gru", "teacher", recipe.load(None), tmp_path)
    _, first = load_checkpoint(
        path_of(options.checkpoints, "sine", "gru", "teacher"), recipe.variants["gru"].networks["teacher"]
    )
    assert again.sha256 == first.sha256
    assert first.metrics["test"]["MSE"] < 0.01  # answering zero would be 0.5


def test_cross_validation_needs_folds(recipe: Recipe) -> None:
    variant = recipe.variants["gru"]
    with pytest.raises(UserError, match="defines no folds"):
        cross_validate(recipe, variant.spec, variant.networks["teacher"], None, 2)
    data = recipe.load(None)
    folded = replace(recipe, folds=lambda path, count: iter([(data.train, data.validation)] * count))
    short = replace(variant.networks["student"], training=replace(variant.networks["student"].training, epochs=2))
    assert len(cross_validate(folded, variant.spec, short, None, 2)) == 2
