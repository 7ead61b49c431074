"""The translation recipe: BLEU as sums, what training compares, what the student learns from, and going on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU as SacreBLEU
from torch import Tensor, nn

from optimize import fuse, onnx_export, pipeline
from optimize.checkpoint import load_checkpoint, path_of
from optimize.data import translation
from optimize.data.dataset import Arrays, Dataset, Split
from optimize.data.grammar import sentence_pairs
from optimize.data.subwords import END, PADDING
from optimize.distill import distill
from optimize.models.translator import Translator
from optimize.quantize import operators, plan
from optimize.quantize.method import Profile
from optimize.recipes import Network, Recipe, Tolerances, Training
from optimize.recipes import translate as recipe
from optimize.recipes.translate import RECIPE, SPEC, network, subwords
from optimize.resume import Partial
from optimize.train import _similar, fit, predict, train_network
from optimize.work import Options

HYPOTHESES = ["le chat dort .", "je ne sais pas", "un deux trois quatre cinq", ""]
REFERENCES = [
    ["le chat dort .", "le chat est endormi ."],
    ["je n'en sais rien .", "je ne sais pas ."],
    ["un deux trois six"],
    ["rien ."],
]


def answers(texts: list[str]) -> Arrays:
    return {"tokens": translation.padded([subwords().encode(text) for text in texts], translation.TARGET_TOKENS)}


def references(texts: list[list[str]]) -> Split:
    pairs = [(f"sentence {number}", text) for number, group in enumerate(texts) for text in group]
    return translation.sentence_split(pairs, subwords())


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    made = translation.dataset(sentence_pairs(700, seed=4), subwords(), "a grammar")
    return replace(made, train=made.train.take(slice(0, 300)))


def tiny(**training: float) -> Network:
    return network(32, 16, 32, 16, dropout=0.0, epochs=2, batch_size=64, **training)


def tiny_recipe(**training: float) -> Recipe:
    networks = {"teacher": tiny(**training), "student": tiny(soft_weight=0.5, **training)}
    return replace(RECIPE, variants={"gru": replace(RECIPE.variants["gru"], networks=networks)})


def test_bleu_is_sacrebleus() -> None:
    streams = [[group[n] if n < len(group) else None for group in REFERENCES] for n in range(2)]
    metric = SacreBLEU(lowercase=True)
    expected = metric.corpus_score(HYPOTHESES, streams).score  # type: ignore[arg-type]
    found = recipe.BLEU(answers(HYPOTHESES), references(REFERENCES))
    assert found == pytest.approx(expected)
    smoothed = metric.corpus_score(HYPOTHESES[2:], [[group[0] for group in REFERENCES[2:]]]).score  # no 4-gram matches
    assert recipe.BLEU(answers(HYPOTHESES[2:]), references(REFERENCES[2:])) == pytest.approx(smoothed)
    assert smoothed > 5
    assert 20 < found < 90
    assert recipe.BLEU(answers([group[0] for group in REFERENCES]), references(REFERENCES)) == pytest.approx(100)
    assert recipe.BLEU(answers([""] * 4), references(REFERENCES)) == 0


def test_one_reference_is_stricter(dataset: Dataset) -> None:
    outputs, split = answers(["le chat est endormi .", *(group[0] for group in REFERENCES[1:])]), references(REFERENCES)
    assert recipe.BLEU(outputs, split) == pytest.approx(100)
    assert recipe.one_reference(outputs, split, dataset.train) < 90


def test_sentences_whose_translation_was_seen_are_told_apart() -> None:
    train = translation.pair_split([("a cat", "le chat dort ."), ("b", "autre")], subwords())
    outputs = answers(["le chat dort .", "faux", "un deux trois six", "rien ."])
    split = references(REFERENCES)
    expected = recipe.bleu(recipe.ngram_matches(outputs, split)[1:].sum(axis=0))
    assert recipe.unseen_references(outputs, split, train) == pytest.approx(expected)


def test_the_losses_of_a_uniform_answer_are_known() -> None:
    logits = torch.zeros(3, recipe.VOCABULARY)
    targets = {"tokens": torch.tensor([[5, END, PADDING], [END, PADDING, PADDING]])}
    uniform = np.log(recipe.VOCABULARY)
    assert recipe.cross_entropy({"logits": logits}, targets).item() == pytest.approx(uniform)
    assert recipe.word_divergence({"logits": logits}, {"logits": logits}).item() == pytest.approx(uniform)
    sure = logits.clone()
    sure[torch.arange(3), torch.tensor([5, END, END])] = 100
    assert recipe.word_divergence({"logits": sure}, {"logits": sure}).item() == pytest.approx(0, abs=1e-3)
    assert recipe.cross_entropy({"logits": sure}, targets).item() == pytest.approx(10, abs=0.1)  # a tenth of 100


def test_trimming_changes_no_logits(dataset: Dataset) -> None:
    module = tiny()().eval()
    rows = dataset.train.take(slice(0, 8))
    inputs = {name: torch.from_numpy(array) for name, array in rows.inputs.items()}
    targets = {name: torch.from_numpy(array) for name, array in rows.targets.items()}
    short_inputs, short_targets = recipe.trimmed(inputs, targets)
    assert short_inputs["source"].shape[1] == int(inputs["lengths"].max()) < translation.SOURCE_TOKENS
    assert short_targets["tokens"].shape[1] < translation.TARGET_TOKENS
    torch.testing.assert_close(
        recipe.teacher_forced(module, short_inputs, short_targets), recipe.teacher_forced(module, inputs, targets)
    )


def test_batches_are_of_similar_sizes_and_whole() -> None:
    sizes = np.random.default_rng(0).integers(0, 100, 1000)
    items = np.random.default_rng(1).permutation(1000)
    ordered = _similar(items, sizes, 64, np.random.default_rng(2))
    assert sorted(ordered) == sorted(items[: 15 * 64]), "what is left over is left out, as without sizes"
    spread = [np.ptp(sizes[batch]) for batch in ordered.reshape(-1, 64)]
    assert max(spread) < 20
    lengths = sizes[ordered.reshape(-1, 64)[:, 0]]
    assert np.any(np.diff(lengths) < 0), "the batches themselves are not in order of size"


class Parrot(nn.Module):
    """Translates a sentence into itself; what begins with an odd subword never ends."""

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded = nn.functional.pad(source, (0, translation.TARGET_TOKENS - source.shape[1]))
        endless = source[:, :1] % 2 == 1
        return torch.where(endless & (padded == END), PADDING, padded), lengths, torch.zeros(len(source), 1)


def test_the_student_learns_every_pair_and_what_the_teacher_writes() -> None:
    train = translation.pair_split(
        [("one cat", "un chat"), ("one cat", "une chatte"), ("a dog", "un chien")], subwords()
    )
    train.inputs["source"][:2, 0], train.inputs["source"][2, 0] = 40, 41
    relabelled = recipe.as_the_teacher(Parrot(), train)
    assert len(relabelled) == 4, "once for both pairs of the cat, never for the dog"
    np.testing.assert_array_equal(relabelled.targets["tokens"][:3], train.targets["tokens"])
    np.testing.assert_array_equal(relabelled.inputs["source"][3], train.inputs["source"][0])
    np.testing.assert_array_equal(relabelled.targets["tokens"][3][:24], train.inputs["source"][0])
    assert relabelled.groups.tolist() == [0, 0, 1, 0]


def test_training_learns_and_goes_on_after_an_interruption(dataset: Dataset, tmp_path: Path) -> None:
    settings = Training(epochs=3, batch_size=32, learning_rate=5e-3, average_decay=0.5)
    net = replace(tiny(), training=settings, config=replace(tiny().config, sampling_batches=5))
    validation = dataset.validation.take(slice(0, 4))

    class Interrupted(Exception):
        pass

    def interrupted(outputs: Arrays, split: Split) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        seen.append(1)
        if len(seen) == 2:
            raise Interrupted
        return recipe.ngram_matches(outputs, split)

    seen: list[int] = []
    losses: list[float] = []

    def recorded(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        loss = recipe.cross_entropy(outputs, targets)
        losses.append(loss.item())
        return loss

    cut = replace(RECIPE, metric=replace(RECIPE.metric, statistics=interrupted))
    partial = Partial(tmp_path / "cut.partial", "translate")
    whole = fit(replace(RECIPE, loss=recorded), SPEC, net, dataset.train, validation)
    assert losses[-1] < losses[0] - 2
    assert int(whole.module.trained_batches) > 0  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        fit(cut, SPEC, net, dataset.train, validation, partial=partial)
    torch.manual_seed(777)
    resumed = fit(RECIPE, SPEC, net, dataset.train, validation, partial=partial, resume=True)
    for name, tensor in whole.module.state_dict().items():
        torch.testing.assert_close(resumed.module.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_a_student_is_distilled_from_a_teacher(dataset: Dataset, tmp_path: Path) -> None:
    small = replace(dataset, validation=dataset.validation.take(slice(0, 3)), test=dataset.test.take(slice(0, 4)))
    made = tiny_recipe()
    train_network(made, "gru", "teacher", small, tmp_path)
    sidecar = distill(made, "gru", small, tmp_path)
    assert sidecar.training["distilled"]
    assert set(sidecar.metrics["test"]) == {"BLEU", "BLEU (one reference)", "BLEU (no reference seen)"}
    path = path_of(tmp_path, "translate", "gru", "student")
    student, _ = load_checkpoint(path, made.variants["gru"].networks["student"])
    assert isinstance(student, Translator)
    outputs = predict(student, SPEC, small.test)
    assert outputs["tokens"].shape == (4, translation.TARGET_TOKENS)
    assert outputs["score"].dtype == np.float32


def test_words_alone_can_be_learnt_without_the_teacher_s_sentences(dataset: Dataset, tmp_path: Path) -> None:
    def untouched(teacher: nn.Module, train: Split) -> Split:
        raise AssertionError("a network that is not relabelled learns from the data as it is")

    small = replace(dataset, validation=dataset.validation.take(slice(0, 3)), test=dataset.test.take(slice(0, 4)))
    networks = {"teacher": tiny(), "word_level": replace(tiny(soft_weight=0.5, relabelled=False), distilled=True)}
    made = replace(RECIPE, relabel=untouched, variants={"gru": replace(RECIPE.variants["gru"], networks=networks)})
    teacher = train_network(made, "gru", "teacher", small, tmp_path)
    sidecar = distill(made, "gru", small, tmp_path, network="word_level")
    assert (sidecar.network, sidecar.teacher_sha256) == ("word_level", teacher.sha256)


def test_the_whole_pipeline_takes_a_search(dataset: Dataset, tmp_path: Path) -> None:
    small = replace(dataset, validation=dataset.validation.take(slice(0, 16)), test=dataset.test.take(slice(0, 24)))
    settings = Training(epochs=6, batch_size=32, learning_rate=1e-2, average_decay=0.5)
    teacher = replace(tiny(), training=settings)
    untrained = Tolerances(flips_int8=0.5, parity_int8=0.2)  # so little training leaves all words about as likely
    variant = replace(RECIPE.variants["gru"], networks={"teacher": teacher}, tolerances=untrained)
    made = replace(RECIPE, load=lambda _: small, variants={"gru": variant}, file=tmp_path / "translate.py")
    train_network(made, "gru", "teacher", small, tmp_path / "checkpoints")
    graph, _ = fuse.fuse(onnx_export.export(teacher().eval(), SPEC))
    choices = {
        name: plan.Choice(operator, "int8_table" if operator == "Gather" else "per_row", "asked for")
        for name, operator in operators(graph).items()
    }
    profiles: dict[Profile, plan.Choices] = {"invariant": choices, "throughput": choices}
    plan.write(tmp_path / "translate.plan.json", "gru", plan.Plan("invariant", "asked for", profiles))
    options = Options(
        quantize=True,
        checkpoints=tmp_path / "checkpoints",
        artifacts=tmp_path / "artifacts",
        model_repository=tmp_path / "models",
        rounds=10,
    )
    report = pipeline.run(made, None, options)
    assert report.published is not None
    int8 = report.stage("teacher_onnx_int8")
    assert int8.quantized is not None
    assert int8.batch_invariance is not None
    assert int8.parity is not None
    assert (int8.quantized.mac_fraction, int8.quantized.kept_fp32) == (1, [])
    assert (int8.batch_invariance.max_abs_drift, int8.batch_invariance.decision_flips) == (0, 0)
    assert report.stage("teacher_onnx_fused").parity.decision_flips == 0  # type: ignore[union-attr]
    gates = {gate.name: gate for gate in report.gates}
    assert gates["other decisions of teacher_onnx_int8 than torch's"].value == int8.parity.decision_flips / 24
