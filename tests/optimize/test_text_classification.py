"""docs/examples/text_classification.py with a tiny encoder: trained, distilled, quantised, published and asked."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.__main__ import main
from optimize import fuse, onnx_export, pipeline, recipes
from optimize.checkpoint import load_checkpoint, path_of
from optimize.data.dataset import Dataset
from optimize.data.texts import Tokenizer
from optimize.errors import UserError
from optimize.quantize import operators, plan
from optimize.quantize.plan import Choice
from optimize.recipes import Recipe
from optimize.report import Report
from optimize.train import train_network
from optimize.work import Options
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_bert

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "text_classification.py"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the user's copy of the recipe, the encoder and the labelled texts are."""
    root = tmp_path_factory.mktemp("user")
    shutil.copy(EXAMPLE, root)
    write(root / "labelled.tsv", tiny_bert.labelled(600))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXT_ENCODER", str(tiny_bert.write(root / "encoder")))
        yield root


def write(path: Path, rows: list[tuple[str, str]], columns: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *rows])
    return path


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    """With fewer epochs, a learning rate for an encoder without pretraining, and a plan: all products in int8."""
    found = recipes.load(file=folder / EXAMPLE.name)
    variant = found.variants["encoder"]
    quick: dict[str, Any] = {"epochs": 4, "learning_rate": 3e-3, "average_decay": 0.9}
    networks = {key: replace(own, training=replace(own.training, **quick)) for key, own in variant.networks.items()}
    tolerances = replace(variant.tolerances, metric_loss=0.2)
    fused, _ = fuse.fuse(onnx_export.export(networks["student"](), variant.spec))
    choices = {
        name: Choice(kind, "fp32" if kind == "Gather" else "per_row", "by hand")
        for name, kind in operators(fused).items()
    }
    by_hand = plan.Plan("invariant", "by hand", {"invariant": choices, "throughput": choices})
    plan.write(folder / f"{EXAMPLE.stem}.plan.json", "encoder", by_hand)
    return replace(found, variants={"encoder": replace(variant, networks=networks, tolerances=tolerances)})


@pytest.fixture(scope="module")
def data(recipe: Recipe, folder: Path) -> Dataset:
    return recipe.load(folder / "labelled.tsv")


@pytest.fixture(scope="module")
def options(recipe: Recipe, folder: Path, data: Dataset) -> Options:
    made = Options(
        True,
        data=folder / "labelled.tsv",
        checkpoints=folder / "checkpoints",
        artifacts=folder / "artifacts",
        model_repository=folder / "models",
        rounds=20,
    )
    train_network(recipe, "encoder", "teacher", data, made.checkpoints)
    return made


@pytest.fixture(scope="module")
def report(recipe: Recipe, options: Options) -> Report:
    return pipeline.run(recipe, None, options)


def test_the_way_from_an_encoder_to_a_published_model(report: Report) -> None:
    values = {stage.name: stage.metric.value for stage in report.stages}
    assert values["teacher_torch_fp32"] > 80, "one label for all would have a macro-F1 of 17"
    assert {"student_torch_fp32", "student_onnx_fused", "student_onnx_int8"} <= values.keys()
    assert report.fusion["attentions fused"] == 1, "half of two layers"
    coverage = report.stage("student_onnx_int8").quantized
    assert coverage is not None
    assert coverage.mac_fraction == 1
    assert any("decisions" in gate.name for gate in report.gates)
    assert all(gate.passed for gate in report.gates)
    assert report.published is not None


def test_a_real_server_tells_the_label(
    recipe: Recipe, folder: Path, options: Options, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text for text, _ in tiny_bert.labelled(600)[:20]]
    config = ServerConfig(options.model_repository, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2)
    with Server(config) as server:
        assert main(["classify", "--address", server.grpc, *texts]) == 0
    student, _ = load_checkpoint(
        path_of(options.checkpoints, recipe.name, "encoder", "student"), recipe.variants["encoder"].networks["student"]
    )
    tokenizer = Tokenizer.load(folder / "encoder")
    for text, line in zip(texts, capsys.readouterr().out.splitlines(), strict=True):
        tokens = torch.tensor([tokenizer.encode(text)])
        with torch.inference_mode():
            _, log_probs = student(tokens, torch.tensor([[tokens.shape[1]]], dtype=torch.int32))
        label, share = line.split("\t")
        probabilities = dict(zip(("negative", "neutral", "positive"), log_probs[0].exp().tolist(), strict=True))
        assert float(share) == pytest.approx(probabilities[label], abs=0.03)
        assert probabilities[label] > max(probabilities.values()) - 0.03


def test_a_text_is_in_one_part_only_whatever_the_order(recipe: Recipe, folder: Path, data: Dataset) -> None:
    def rows(part: Any) -> set[bytes]:
        return {row.tobytes() for row in part.inputs["tokens"]}

    parts = [data.train, data.validation, data.test]
    assert len(data.train) > 6 * max(len(data.validation), len(data.test))
    turned = recipe.load(write(folder / "turned.tsv", tiny_bert.labelled(600)[::-1]))
    assert [rows(part) for part in parts] == [rows(part) for part in (turned.train, turned.validation, turned.test)]


def test_long_texts_are_cut_and_padding_is_trimmed(recipe: Recipe, folder: Path) -> None:
    texts = [(f"{'word ' * 100} {index}", "neutral") for index in range(100)]
    long = recipe.load(write(folder / "long.tsv", texts)).train
    assert set(long.inputs["lengths"].ravel().tolist()) == {64}
    assert (long.inputs["tokens"][:, -1] == 3).all(), "[SEP]"
    assert recipe.augment is not None
    inputs, _ = recipe.augment({"tokens": torch.zeros(2, 64), "lengths": torch.tensor([[5], [9]])}, {})
    assert inputs["tokens"].shape == (2, 9)


def test_macro_f1_by_hand(recipe: Recipe, data: Dataset) -> None:
    items = data.test.take(np.arange(4))
    items.targets["label"][:] = np.array([[0], [0], [1], [2]])
    answers = {"label": np.array([[0], [1], [1], [1]])}
    assert recipe.metric(answers, items) == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("Fine.", "good")], ("text", "label"), r"text 1, 'Fine.': 'good' is none of \('negative'"),
        ([("Fine.", "neutral"), (" ", "neutral")], ("text", "label"), "text 2, ' ': .* or no text"),
        ([("Fine.", "neutral")], ("review", "label"), r"has the columns \['review', 'label'\]"),
        ([("Fine.", "neutral")], ("text", "label"), "at least one"),
    ],
    ids=["unknown label", "empty text", "columns", "too few"],
)
def test_texts_that_cannot_be_used(
    recipe: Recipe, rows: list[tuple[str, str]], columns: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        recipe.load(write(tmp_path / "texts.tsv", rows, columns))


def test_the_folder_must_be_named_and_complete(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT_ENCODER", str(tmp_path))
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        recipes.load(file=folder / EXAMPLE.name)
    monkeypatch.delenv("TEXT_ENCODER")
    with pytest.raises(UserError, match="TEXT_ENCODER is not set"):
        recipes.load(file=folder / EXAMPLE.name)
