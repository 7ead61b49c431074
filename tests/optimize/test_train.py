"""Which epoch of a training is kept, where some of them went wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from optimize import recipes
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.recipes import Recipe
from optimize.train import cross_validate, fit

SINE = Path(__file__).parents[1] / "recipes" / "sine_gru.py"


def _measured(values: list[float], higher_is_better: bool = False) -> Recipe:
    """The sine's recipe, 3 epochs a training, with these for the validation metric of one epoch after another."""
    recipe, left = recipes.load(file=SINE), iter(values)

    def statistics(outputs: Arrays, split: Split) -> NDArray[np.float64]:
        return np.full((1, 1), next(left))

    variant = recipe.variants["gru"]
    teacher = variant.networks["teacher"]
    short = replace(teacher, training=replace(teacher.training, epochs=3))
    metric = replace(
        recipe.metric, higher_is_better=higher_is_better, statistics=statistics, value=lambda sums: float(sums[0])
    )
    return replace(recipe, metric=metric, variants={"gru": replace(variant, networks={"teacher": short})})


@pytest.mark.parametrize(
    ("values", "higher_is_better", "best"),
    [
        ([np.nan, 2.0, 3.0], False, 2),
        ([np.nan, 2.0, 3.0], True, 3),
        ([3.0, 2.0, np.nan], False, 2),
        ([3.0, np.nan, 2.0], True, 1),
    ],
)
def test_an_epoch_without_a_metric_is_not_the_best(values: list[float], higher_is_better: bool, best: int) -> None:
    recipe = _measured(values, higher_is_better)
    data, variant = recipe.load(None), recipe.variants["gru"]
    result = fit(recipe, variant.spec, variant.networks["teacher"], data.train.take(slice(0, 64)), data.validation)
    assert result.best_epoch == best
    np.testing.assert_array_equal(result.validation, values)


def test_a_training_that_diverged_says_so() -> None:
    recipe = _measured([np.nan] * 3)
    data, variant = recipe.load(None), recipe.variants["gru"]
    with pytest.raises(UserError, match="diverged: the validation MSE is NaN after every one of its 3 epochs; lower"):
        fit(recipe, variant.spec, variant.networks["teacher"], data.train.take(slice(0, 64)), data.validation)


def test_a_fold_is_as_good_as_its_best_epoch() -> None:
    recipe = _measured([np.nan, 2.0, 3.0, 5.0, 4.0, np.nan])
    data, variant = recipe.load(None), recipe.variants["gru"]
    fold = data.train.take(slice(0, 64)), data.validation
    folded = replace(recipe, folds=lambda path, count: iter([fold] * count))
    assert cross_validate(folded, variant.spec, variant.networks["teacher"], None, 2) == [2.0, 4.0]
