"""A training that was interrupted and went on gives the same weights as one that was not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from optimize import recipes
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.recipes import Recipe
from optimize.resume import Partial
from optimize.train import fit

SINE = Path(__file__).parents[1] / "recipes" / "sine_gru.py"


class Interrupted(Exception):
    pass


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    recipe = recipes.load(file=SINE)
    variant = recipe.variants[recipe.default_variant]
    network = replace(variant.networks["teacher"], training=replace(variant.networks["teacher"].training, epochs=4))
    dataset = recipe.load(None)
    items = dataset.train.take(slice(0, 128))

    def fresh(epoch: int) -> Split:
        return Split(
            {"past": items.inputs["past"].astype(np.float32) + np.float32(0.01 * epoch)}, items.targets, items.groups
        )

    def train(recipe: Recipe, partial: Partial, resume: bool = False) -> dict[str, torch.Tensor]:
        result = fit(
            recipe, variant.spec, network, items, dataset.validation, fresh=fresh, partial=partial, resume=resume
        )
        return {**result.module.state_dict(), "validation": torch.tensor(result.validation)}

    expected = train(recipe, Partial(tmp_path / "whole.partial", "sine"))
    seen: list[int] = []

    def statistics(outputs: Arrays, split: Split) -> NDArray[np.float64]:
        seen.append(len(seen))
        if len(seen) == 3:
            raise Interrupted
        return recipe.metric.statistics(outputs, split)

    partial = Partial(tmp_path / "cut.partial", "sine")
    with pytest.raises(Interrupted):
        train(replace(recipe, metric=replace(recipe.metric, statistics=statistics)), partial)
    torch.manual_seed(12345)  # a new process
    found = train(recipe, partial, resume=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "student.partial", "student, 3 epochs")
    with pytest.raises(UserError, match="nothing was interrupted"):
        partial.restore({})
    partial.save({}, {"validation": [1.0]})
    assert partial.restore({})["validation"] == [1.0]
    with pytest.raises(UserError, match="belongs to another training"):
        replace(partial, purpose="student, 4 epochs").restore({})
    partial.path.write_bytes(b"no file of torch's")
    with pytest.raises(UserError, match="cannot be read"):
        partial.restore({})
    partial.remove()
    assert not partial.path.exists()
