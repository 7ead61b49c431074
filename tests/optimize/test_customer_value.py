"""The recipe: macro-F1 as sums, losses with known answers, what training hides, one small run through the pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from optimize import fuse, onnx_export, pipeline
from optimize.data import customers, shop
from optimize.data.dataset import Arrays, Dataset, Split
from optimize.data.subwords import UNKNOWN, Subwords
from optimize.data.texts import Tokenizer
from optimize.errors import UserError
from optimize.models.transformer import LayerConfig
from optimize.quantize import operators, plan
from optimize.quantize.method import Profile
from optimize.recipes import Network, Recipe, Tolerances, Variant
from optimize.recipes import customer_value as recipe
from optimize.recipes.customer_value import MACRO_F1, RECIPE, SPEC, STUDENT, network
from optimize.train import predict, train_network
from optimize.work import Options
from tests import tiny_bert


def labelled(tiers: list[int], sentiments: list[int] | None = None) -> Split:
    count = len(tiers)
    inputs: Arrays = {"text_lengths": np.array([[place % 3] for place in range(count)], np.int32)}
    return Split(inputs, {"tier": np.array(tiers), "sentiment": np.array(sentiments or [0] * count)}, np.arange(count))


def said(tiers: list[int], classes: int = 4) -> NDArray[Any]:
    return np.eye(classes, dtype=np.float32)[tiers]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    made = customers.dataset(shop.customers(500, seed=4), Subwords.load(customers.VOCABULARY_FILE), "a shop")
    return replace(made, validation=made.validation.take(slice(0, 40)), test=made.test.take(slice(0, 64)))


def tiny(fusion: str = "cross", **training: Any) -> Network:
    config = replace(STUDENT, layer=LayerConfig(32, 2, 32), fusion=fusion)  # type: ignore[arg-type]
    return network(config, epochs=3, batch_size=32, learning_rate=5e-3, **training)


def test_macro_f1_is_the_mean_of_the_classes() -> None:
    split = labelled([0, 0, 0, 1, 1, 2, 3, 3])
    perfect, one_class = said([0, 0, 0, 1, 1, 2, 3, 3]), said([0] * 8)
    assert MACRO_F1({"tier": perfect}, split) == pytest.approx(100)
    assert MACRO_F1({"tier": one_class}, split) == pytest.approx(100 * (2 * 3 / 11) / 4)
    mixed = said([0, 0, 1, 1, 2, 2, 3, 0])  # F1 of 4/6, 2/4, 2/3 and 2/3
    assert MACRO_F1({"tier": mixed}, split) == pytest.approx(100 * (2 / 3 + 1 / 2 + 2 / 3 + 2 / 3) / 4)
    assert MACRO_F1.loss(70.0, 71.0) == pytest.approx(0.01), "one point"
    assert recipe.majority(split) == pytest.approx(100 * (2 * 3 / 11) / 4)


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    random = np.random.default_rng(2)
    split = labelled(random.integers(0, 4, 60).tolist())
    outputs = {"tier": said(random.integers(0, 4, 60).tolist())}
    rows = recipe.confusion(outputs, split)
    assert rows.shape == (60, 16)
    assert np.all(rows.sum(axis=1) == 1)
    assert MACRO_F1.value(rows[:30].sum(axis=0) + rows[30:].sum(axis=0)) == MACRO_F1(outputs, split)
    assert MACRO_F1.value(np.zeros(16)) == 0


def test_sentiment_counts_of_those_who_wrote() -> None:
    split = labelled([0] * 6, [0, 1, 2, 2, 0, 1])  # the first and the fourth wrote nothing
    right = {"tier": said([0] * 6), "sentiment": said([1, 1, 2, 0, 0, 1], 3)}
    assert recipe.sentiment_f1(right, split, split) == pytest.approx(100)
    wrong = right | {"sentiment": said([1, 1, 2, 0, 1, 1], 3)}
    assert recipe.sentiment_f1(wrong, split, split) < 70
    assert recipe.accuracy(right, split, split) == 100


def test_the_losses_of_a_uniform_answer_are_known() -> None:
    logits = {"tier": torch.zeros(5, 4), "sentiment": torch.zeros(5, 3)}
    targets = {"tier": torch.arange(5) % 4, "sentiment": torch.arange(5) % 3}
    uniform = np.log(4) + recipe.SENTIMENT_WEIGHT * np.log(3)
    assert recipe.cross_entropy(logits, targets).item() == pytest.approx(uniform)
    assert recipe.divergence(logits, logits).item() == pytest.approx(uniform)
    sure = {
        what: 100 * torch.nn.functional.one_hot(targets[what], size).float()
        for what, size in (("tier", 4), ("sentiment", 3))
    }
    assert recipe.cross_entropy(sure, targets).item() == pytest.approx(0, abs=1e-4)
    assert recipe.divergence(sure, sure).item() == pytest.approx(0, abs=1e-4)


def test_training_hides_a_branch_now_and_then_and_never_both(dataset: Dataset) -> None:
    there = [dataset.train.inputs[name][:, 0].astype(bool) for name in ("text_lengths", "event_lengths")]
    whole = dataset.train.take(np.flatnonzero(there[0] & there[1]))
    inputs = {name: torch.from_numpy(array) for name, array in whole.inputs.items()}
    torch.manual_seed(1)
    hidden, _ = recipe.misread(inputs, {})
    no_text, no_events = hidden["text_lengths"] == 0, hidden["event_lengths"] == 0
    assert 0 < no_text.sum() < 0.15 * len(whole)
    assert 0 < no_events.sum() < 0.15 * len(whole)
    assert not (no_text & no_events).any()
    assert hidden["text"].shape[1] == int(hidden["text_lengths"].max())
    same = hidden["text"] == inputs["text"][:, : hidden["text"].shape[1]]
    assert 0.9 < same.float().mean() < 0.99
    assert (hidden["text"][~same] == UNKNOWN).all()


@pytest.mark.parametrize("only", ["text_lengths", "event_lengths"])
def test_training_hides_nothing_from_who_has_one_branch_only(dataset: Dataset, only: str) -> None:
    there = np.flatnonzero(dataset.train.inputs[only][:, 0])
    inputs = {name: torch.from_numpy(array[there]) for name, array in dataset.train.inputs.items()}
    for name in {"text_lengths", "event_lengths"} - {only}:
        inputs[name] = torch.zeros_like(inputs[name])
    torch.manual_seed(1)
    assert torch.equal(recipe.hidden(inputs, {})[0][only], inputs[only])


def test_batches_are_of_like_customers(dataset: Dataset) -> None:
    sizes = recipe.sizes(dataset.train)
    order = np.argsort(sizes)
    events = dataset.train.inputs["event_lengths"][order, 0] // 16
    assert np.all(np.diff(events) >= 0)


def test_both_branches_train_and_gradients_reach_every_weight(dataset: Dataset) -> None:
    module = tiny()()
    rows = dataset.train.take(slice(0, 32))
    inputs = {name: torch.from_numpy(array) for name, array in rows.inputs.items()}
    targets = {name: torch.from_numpy(array) for name, array in rows.targets.items()}
    recipe.cross_entropy(recipe.logits(module, inputs, targets), targets).backward()  # type: ignore[no-untyped-call]
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]
    missing = [name for name, parameter in module.named_parameters() if not parameter.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert all(name.endswith("key.bias") for name in missing), "softmax does not know of a key's bias"


def test_a_pretrained_encoder_makes_a_recipe_of_its_own(tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "bert")
    made = recipe.recipe(text_encoder=folder)
    spec = made.variants["cross"].spec
    assert (made.name, spec.name, spec.buckets) == (
        "customer_value_pretrained",
        "customer_value_pretrained",
        SPEC.buckets,
    )
    assert spec.vocabulary == (folder / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.load(folder)
    split = customers.split(shop.customers(12, seed=2), tokenizer)
    assert split.inputs["text"].max() < tokenizer.size
    wrote = split.inputs["text_lengths"][:, 0].astype(bool)
    assert np.all(split.inputs["text"][wrote, 0] == 2), "[CLS]"
    small = replace(STUDENT, text_encoder=str(folder), layer=LayerConfig(32, 2, 32))
    answers = predict(network(small)(), spec, split)
    assert answers["tier"].shape == (12, 4)
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        recipe.recipe(text_encoder=tmp_path)


def small_recipe(folder: Path, dataset: Dataset) -> Recipe:
    """Every network of the recipe, tiny, with a plan of static scales beside it."""
    networks = {
        "teacher": tiny(),
        "student": tiny(soft_weight=0.8),
        "text_only": tiny("text"),
        "clicks_only": tiny("clicks"),
        "late": tiny("late"),
    }
    made = replace(
        RECIPE,
        load=lambda _: dataset,
        file=folder / "customer_value.py",
        variants={
            "cross": Variant(SPEC, networks, tolerances=Tolerances(parity_int8=0.2, metric_loss=1.0, flips_int8=0.2))
        },
    )
    graph, _ = fuse.fuse(onnx_export.export(tiny()().eval(), SPEC))
    choices = {
        name: plan.Choice(kind, "fp32" if kind == "Gather" else "static", "asked for")
        for name, kind in operators(graph).items()
    }
    profiles: dict[Profile, plan.Choices] = {"invariant": choices, "throughput": choices}
    plan.write(folder / "customer_value.plan.json", "cross", plan.Plan("invariant", "asked for", profiles))
    return made


def test_the_whole_pipeline_with_networks_that_read_one_branch(dataset: Dataset, tmp_path: Path) -> None:
    made = small_recipe(tmp_path, dataset)
    for name in ("teacher", "text_only", "clicks_only", "late"):
        train_network(made, "cross", name, dataset, tmp_path / "checkpoints")
    options = Options(
        quantize=True,
        checkpoints=tmp_path / "checkpoints",
        artifacts=tmp_path / "artifacts",
        model_repository=tmp_path / "models",
        rounds=5,
    )
    report = pipeline.run(made, None, options)
    assert report.published is not None
    beside = [stage.name for stage in report.stages if stage.role == "beside"]
    assert beside == ["text_only_torch_fp32", "clicks_only_torch_fp32", "late_torch_fp32"]
    int8 = report.stage("student_onnx_int8")
    assert int8.batch_invariance is not None
    assert (int8.batch_invariance.max_abs_drift, int8.batch_invariance.decision_flips) == (0, 0)
    assert set(int8.also) == {"accuracy of the tier (%)", "macro-F1 of the sentiment (%)"}
    assert report.baselines["always the most frequent tier"] < 15
