from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from optimize import distill, recipes, repository, train
from optimize.data.dataset import Dataset, Split
from optimize.errors import UserError
from optimize.recipes import Recipe
from optimize.specs import ServingSpec

ROOT = Path(__file__).parents[2]


def test_committed_configs_are_current() -> None:
    built_in = [recipes.load(name) for name in recipes.BUILT_IN]
    models = [
        (variant.spec, variant.serving)
        for recipe in built_in
        for _, variant in (recipe.variant(name) for name in recipe.variants)
    ]
    stale = repository.stale_configs(ROOT / "model_repository", models)
    assert [line for line in stale if "belongs to no recipe" not in line] == []  # what a user published is theirs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("import nothing_of_this_name", "does not import: ModuleNotFoundError"),
        ("RECIPE = 5", "defines no RECIPE"),
    ],
)
def test_a_bad_recipe_file_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        recipes.load(file=path)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="built in are load_forecast"):
        recipes.load("load_forcast")
    with pytest.raises(UserError, match="has no variant 'gru'; it has lstm"):
        recipes.load("load_forecast").variant("gru")


def test_a_saved_serving_spec_is_used(tmp_path: Path) -> None:
    recipe: Recipe = replace(recipes.load("load_forecast"), file=tmp_path / "load_forecast.py")
    tuned = ServingSpec(instances=2, preferred_batch=(4, 8), queue_delay_us=500)
    path = recipe.save_serving("lstm", tuned)
    assert recipe.variant("lstm")[1].serving == tuned
    path.write_text('{"lstm": {"instancez": 2}}')
    with pytest.raises(UserError, match="unknown instancez"):
        recipe.variant("lstm")


def test_a_network_may_be_that_of_another_variant() -> None:
    recipe = recipes.load("speech")
    for name in ("lstm", "gru"):
        assert recipe.origin(name, "teacher") == ("chunk_320", "teacher")
        assert recipe.origin(name, "student") == (name, "student")
    assert recipe.origin("chunk_160", "student") == ("chunk_320", "student")
    assert recipes.load("translate").origin("gru", "greedy_teacher") == ("gru", "teacher")
    with pytest.raises(
        UserError, match=r"teacher of variant 'gru' is the teacher of variant 'chunk_320'; .*undistilled"
    ):
        train.main(["--model", "speech", "--variant", "gru", "--network", "teacher"])


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("greedy_teacher", "is the teacher of variant 'gru'"),
        ("small_word_level", "what learns from the teacher is trained by"),
    ],
)
def test_a_network_that_is_another_s_or_is_taught_is_not_trained_alone(network: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        train.main(["--model", "translate", "--network", network])


@pytest.mark.parametrize("network", ["all", "teacher", "undistilled"])
def test_a_variant_that_borrows_its_networks_is_not_trained(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(*arguments: object, **options: object) -> None:
        raise AssertionError("the origin's checkpoint would be overwritten")

    monkeypatch.setattr(train, "train_network", untouched)
    with pytest.raises(UserError, match=r"of variant 'chunk_320'; train it with --variant chunk_320 --network \w+$"):
        train.main(["--model", "speech", "--variant", "chunk_160", "--network", network])


def test_a_student_that_is_borrowed_is_distilled_where_it_belongs(tmp_path: Path) -> None:
    recipe = recipes.load("speech")
    items = Split({}, {}, np.arange(1))
    dataset = Dataset(items, items, items, "none", "none")
    for variant, origin in (("chunk_160", "chunk_320"), ("lstm_offline", "lstm")):
        words = f"the student of variant '{variant}' is .*distil it there with .*--variant {origin} --network student$"
        with pytest.raises(UserError, match=words):
            distill.distill(recipe, variant, dataset, tmp_path)


def test_what_is_not_taught_is_not_distilled(tmp_path: Path) -> None:
    items = Split({}, {}, np.arange(1))
    dataset = Dataset(items, items, items, "none", "none")
    with pytest.raises(UserError, match="has no small_undistilled to distil into; choose from student, small_d"):
        distill.distill(recipes.load("translate"), "gru", dataset, tmp_path, network="small_undistilled")


def test_a_network_of_no_variant_is_refused() -> None:
    recipe = recipes.load("speech")
    borrowed = replace(recipe.variants["gru"].networks["teacher"], weights_of="load_forecast")
    networks = recipe.variants["gru"].networks | {"teacher": borrowed}
    variants = recipe.variants | {"gru": replace(recipe.variants["gru"], networks=networks)}
    with pytest.raises(UserError, match="network 'teacher': no variant 'load_forecast' with a network 'teacher'"):
        replace(recipe, variants=variants)


def test_answers_can_be_late_where_the_recipe_says_how() -> None:
    recipe = recipes.load("speech")
    assert recipe.delay is not None
    answers = {"log_probs": torch.arange(5.0).reshape(1, 5, 1), "output_lengths": torch.tensor([[5]])}
    assert recipe.delay(answers, 2)["log_probs"].flatten().tolist() == [0, 0, 0, 1, 2]
    assert recipe.delay(answers, 9)["log_probs"].flatten().tolist() == [0] * 5
    with pytest.raises(UserError, match="network 'student': soft_delay needs the recipe's delay"):
        replace(recipe, delay=None)


def test_a_search_needs_a_decision() -> None:
    with pytest.raises(UserError, match="recipe 'translate' searches; it needs a decision"):
        replace(recipes.load("translate"), decision=None)
