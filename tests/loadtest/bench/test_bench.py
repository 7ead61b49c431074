"""The command, on a small recipe of a user's own that was trained and exported: measured, written, and merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loadtest.bench.__main__ import main
from loadtest.bench.results import CALLERS, THREADS, Bench, from_json
from optimize import pipeline, recipes, report
from optimize.errors import UserError
from optimize.train import train_network
from optimize.work import Options

RECIPES = Path(__file__).parents[2] / "recipes"


def exported(root: Path, file: str, variant: str) -> Path:
    """A folder with the recipe, its checkpoints, and the artefacts of an export."""
    for path in RECIPES.glob(f"{file}*"):
        shutil.copy(path, root)
    recipe = recipes.load(file=root / f"{file}.py")
    options = Options(
        True,
        checkpoints=root / "checkpoints",
        artifacts=root / "artifacts",
        model_repository=root / "models",
        rounds=10,
    )
    train_network(recipe, variant, "teacher", recipe.load(None), options.checkpoints)
    pipeline.run(recipe, variant, options)
    return root


def run(folder: Path, *more: str) -> Bench:
    (recipe,) = folder.glob("*.py")
    main(["--recipe", str(recipe), "--checkpoints", str(folder / "checkpoints"),
          "--artifacts", str(folder / "artifacts"), "--quick", *more])  # fmt: skip
    return from_json((folder / "artifacts" / "bench.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("bench"), "sine_gru", "gru")


@pytest.fixture(scope="module")
def found(folder: Path) -> Bench:
    return run(folder)


def test_every_stage_is_measured_everywhere(found: Bench) -> None:
    (model,) = found.models
    names = [it.name for it in model.stages]
    assert names[:2] == ["teacher_torch_fp32", "student_torch_fp32"]
    assert model.published is not None
    assert model.published.name in names[2:]
    for it in model.stages:
        assert set(it.in_process_ms) == set(THREADS)
        assert all(latency.count >= 10 for latency in it.in_process_ms.values())
        assert (it.served is not None) == (it.stage.runtime == "onnxruntime")
        if it.served:
            assert set(it.served.load) == {"gRPC", "HTTP"}
            assert all(set(loads) == set(CALLERS) for loads in it.served.load.values())
            assert all(
                load.latency_ms.count >= callers for loads in it.served.load.values() for callers, load in loads.items()
            )
            assert it.served.worker_bytes > 20e6
            time = it.served.time_ms
            assert time.compute > 0
            assert time.queue > 0


def test_the_recipes_report_has_the_latencies_through_triton(found: Bench, folder: Path) -> None:
    merged = report.from_json((folder / "artifacts" / "sine" / "gru" / "report.json").read_text())
    for it in found.models[0].stages:
        expected = it.served.client_ms if it.served else None
        assert merged.stage(it.name).server_latency_ms == expected


def test_streams_are_benched_by_grpc(tmp_path: Path) -> None:
    (model,) = run(exported(tmp_path, "smooth_gru", "stream")).models
    assert model.unit == "chunks"
    served = [it.served for it in model.stages if it.served]
    assert served
    for each in served:
        assert set(each.load) == {"gRPC"}
        assert all(load.latency_ms.count >= callers for callers, load in each.load["gRPC"].items())


def test_pages_are_written(found: Bench, folder: Path) -> None:
    assert "sine · gru" in (folder / "artifacts" / "bench.html").read_text()
    assert json.loads((folder / "artifacts" / "bench.json").read_text())["settings"]["quick"] is True
    assert (folder / "artifacts" / "bench.md").read_text().startswith("# Every model")


def test_what_was_never_exported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; run python -m optimize\.export --quantize"):
        run(folder, "--artifacts", str(tmp_path))
    with pytest.raises(UserError, match="has no exported model"):
        main(["--artifacts", str(tmp_path)])
