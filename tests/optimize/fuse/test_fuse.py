"""All passes together, on networks as they are exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from optimize import fuse, onnx_export, recipes
from optimize.fuse.names import WEIGHTED
from optimize.onnx_interface import all_nodes
from optimize.recipes import Recipe
from optimize.target_runtime import CONTRIB_OPERATORS
from tests.optimize.fuse.graphs import assert_same_answers, graph, operators
from tests.optimize.fuse.networks import NETWORKS, export

RNN = "Transpose*2 Squeeze*2 MatMul Add"
LAYER = "Attention MatMul*3 Add*3 Sum*2 LayerNormalization*2"
NODES = {  # as exported, fused, operators that are left
    "encoder": (168, 12, f"{LAYER} Gelu"),
    "encoder_relu": (161, 12, f"{LAYER} Relu"),
    "encoder_padded": (206, 14, f"{LAYER} Gelu Not Cast"),
    "conformer_absolute": (
        107,
        37,
        "LayerNormalization*5 MatMul*7 Add*7 QuickGelu*3 Sum*4 Unsqueeze Not Cast Attention Transpose*2 Split Sigmoid "
        "Mul Where Conv",
    ),
    "conformer_rotary": (
        163,
        73,
        "Unsqueeze*3 LayerNormalization*6 MatMul*12 Add*12 QuickGelu*3 Sum*4 Reshape*4 Transpose*7 Split*3 Neg*2 "
        "Concat*2 Shape Gather Slice*2 Mul*5 Div Where*2 Softmax Sigmoid Conv",
    ),
    "conformer_relative": (
        175,
        80,
        "LayerNormalization*5 MatMul*13 Add*14 QuickGelu*3 Sum*4 Reshape*7 Transpose*7 Shape Gather*2 Sub*2 "
        "Unsqueeze*8 Slice*3 Pad Mul*2 Concat*2 Where*2 Softmax Split Sigmoid Conv",
    ),
    "lstm": (35, 8, f"LSTM*2 {RNN}"),
    "gru": (27, 8, f"GRU*2 {RNN}"),
}
COUNTS = {
    "encoder_padded": {
        "constants folded, no-ops removed": 117,
        "shapes made constant": 19,
        "activations fused": 1,
        "reshapes and transposes merged": 15,
        "reshapes and transposes moved past rows": 3,
        "packed projections taken apart": 3,
        "attentions fused": 1,
        "residual sums kept apart from norms": 2,
    },
    "conformer_relative": {
        "constants folded, no-ops removed": 88,
        "shapes made constant": 4,
        "activations fused": 3,
        "pointwise convolutions made products": 2,
        "reshapes and transposes merged": 4,
        "constant factors folded": 3,
        "tables multiplied once": 1,
        "residual sums kept apart from norms": 4,
    },
    "lstm": {"constants folded, no-ops removed": 20, "zero RNN states dropped": 4},
}


@dataclass(frozen=True)
class Case:
    name: str
    exported: ModelProto
    fused: ModelProto
    counts: dict[str, int]


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> Case:
    exported = export(request.param)
    return Case(request.param, exported, *fuse.fuse(exported))


def test_what_is_left(case: Case) -> None:
    before, after, left = NODES[case.name]
    assert (len(case.exported.graph.node), len(case.fused.graph.node)) == (before, after)
    assert operators(case.fused) == {
        operator: int(times or 1) for operator, _, times in (each.partition("*") for each in left.split())
    }
    if case.name in COUNTS:
        assert {words: count for words, count in case.counts.items() if count} == COUNTS[case.name]


def test_answers_and_interface(case: Case) -> None:
    assert_same_answers(case.exported, case.fused)
    assert case.fused.graph.input == case.exported.graph.input
    assert case.fused.graph.output == case.exported.graph.output
    onnx.checker.check_model(case.fused, full_check=True)


def test_what_the_target_runtime_has(case: Case) -> None:
    assert {node.op_type for node in all_nodes(case.fused) if node.domain == "com.microsoft"} <= CONTRIB_OPERATORS
    assert case.fused.ir_version == case.exported.ir_version
    assert {entry.domain for entry in case.fused.opset_import} == {node.domain for node in all_nodes(case.fused)} | {""}


def test_fusing_again_does_nothing(case: Case) -> None:
    again, counts = fuse.fuse(case.fused)
    assert not any(counts.values())
    assert operators(again) == operators(case.fused)


def test_weighted_nodes_have_names(case: Case) -> None:
    names = [node.name for node in all_nodes(case.fused) if node.op_type in WEIGHTED]
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("recipe", "variant", "nodes", "names"),
    [
        (
            recipes.load("load_forecast"),
            "lstm",
            28,
            ["/lstm/LSTM", "/lstm/LSTM_1", "/memory/Gemm", "/hour/MatMul", "/mix/MatMul", "/output/MatMul"],
        ),
        (
            recipes.load(file=Path(__file__).parents[2] / "recipes" / "sine_gru.py"),
            "gru",
            None,
            ["/gru/GRU", "/output/Gemm"],
        ),
    ],
)
def test_names_that_committed_plans_hold(recipe: Recipe, variant: str, nodes: int | None, names: list[str]) -> None:
    chosen = recipe.variants[variant]
    exported = onnx_export.export(chosen.networks[chosen.published](), chosen.spec)
    fused, _ = fuse.fuse(exported)
    onnx_export.check(fused, chosen.spec)
    assert nodes in (None, len(fused.graph.node))
    assert [node.name for node in fused.graph.node if node.op_type in WEIGHTED] == names


def test_bodies_are_fused_too() -> None:
    """x after n rounds of SiLU, in a Loop."""
    body = (
        "n = Constant <value_int=3> () go = Constant <value = bool {1}> () "
        "y = Loop (n, go, x) <body = round (int64 i, bool c, float[batch, 4] s) => (bool d, float[batch, 4] u) "
        "{ d = Identity(c) a = Transpose <perm=[1,0]> (s) b = Transpose <perm=[1,0]> (a) "
        "g = Sigmoid(b) u = Mul(b, g) }>"
    )
    model = graph("(float[batch, 4] x) => (float[batch, 4] y)", body)
    fused, counts = fuse.fuse(model)
    assert counts["activations fused"] == 1
    assert [node.op_type for node in all_nodes(fused) if node.op_type not in ("Loop", "Identity")] == ["QuickGelu"]
    assert_same_answers(model, fused, 1e-6)


def test_an_older_opset_is_left_as_it_is() -> None:
    """Softmax meant something else below 13."""
    body = "y = Softmax(x)"
    model = graph("(float[batch, 2, 4, 4] x) => (float[batch, 2, 4, 4] y)", body, 12)
    fused, counts = fuse.fuse(model)
    assert fused == model
    assert not any(counts.values())
