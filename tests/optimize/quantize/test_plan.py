"""Plans: to the file and back, and never followed on another graph."""

from pathlib import Path

import pytest

from optimize.errors import UserError
from optimize.quantize import plan
from optimize.quantize.plan import Choice, Plan

INVARIANT = {"lstm": Choice("LSTM", "static", "measured"), "head": Choice("Gemm", "fp32", "measured slower")}
PLAN = Plan("invariant", "cheap enough", {"invariant": INVARIANT, "throughput": {**INVARIANT}})


def test_to_the_file_and_back_beside_other_variants(tmp_path: Path) -> None:
    path = tmp_path / "recipe.plan.json"
    assert plan.read(path, "a") is None
    plan.write(path, "a", PLAN)
    plan.write(path, "b", Plan("throughput", "", {"invariant": {}, "throughput": INVARIANT}))
    assert plan.read(path, "a") == PLAN
    assert plan.read(path, "c") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"profile": "fastest"}}', '{"a": {"lstm": {"precision": "int8"}}}'])
def test_a_file_of_another_shape_is_one_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.plan\.json' cannot be read .* use --retune"):
        plan.read(path, "a")


def test_a_plan_for_another_graph_is_refused(tmp_path: Path) -> None:
    plan.check(PLAN, {"lstm": "LSTM", "head": "Gemm"}, tmp_path)
    for operators in (
        {"lstm": "LSTM"},
        {"lstm": "GRU", "head": "Gemm"},
        {"lstm": "LSTM", "head": "Gemm", "new": "Conv"},
    ):
        with pytest.raises(UserError, match="for another graph"):
            plan.check(PLAN, operators, tmp_path)
