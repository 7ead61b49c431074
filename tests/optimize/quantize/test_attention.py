"""com.microsoft.Attention with its projection in eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from optimize.quantize.attention import METHODS
from tests.optimize.quantize.small_graphs import (
    CONTRIB,
    Array,
    answer,
    company,
    drift,
    graph,
    normal,
    operators,
    reason,
    relative_error,
    rewritten,
)

BY_NAME = {method.name: method for method in METHODS}
WIDTH, HEADS, TIME = 36, 3, 7
X = normal(5, TIME, WIDTH)


def attention(
    bias: bool = True, mask: Array | None = None, attention_bias: Array | None = None, **attributes: Any
) -> ModelProto:
    constants = {"w": normal(WIDTH, 3 * WIDTH) / 6, "b": normal(3 * WIDTH, seed=1)}
    inputs = ["x", "w", "b" if bias else ""]
    if mask is not None:
        constants["mask"] = mask
        inputs.append("mask")
    if attention_bias is not None:
        constants["attention_bias"] = attention_bias
        inputs += [""] * (5 - len(inputs)) + ["attention_bias"]
    node = helper.make_node("Attention", inputs, ["y"], "attention", domain=CONTRIB, num_heads=HEADS, **attributes)
    return graph([node], {name: value for name, value in constants.items() if name in inputs}, X)


PADDING = np.ones((5, TIME), np.int32)
PADDING[:, 4:] = 0


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize(
    "model",
    [
        attention(),
        attention(mask=PADDING),
        attention(scale=0.3),
        attention(attention_bias=normal(1, 1, TIME, TIME, seed=2)),
    ],
    ids=["plain", "padded", "scaled", "biased"],
)
def test_the_answer_stays_within_eight_bits(name: str, model: ModelProto) -> None:
    quantized = rewritten(model, BY_NAME[name], feeds=[X])
    assert "Attention" not in operators(quantized)
    assert 1e-4 < relative_error(answer(quantized, X), answer(model, X)) < 0.03


def test_the_operators_written_are_the_ones_documented() -> None:
    model = attention()
    assert operators(rewritten(model, BY_NAME["dynamic"])) == {"DynamicQuantizeLinear": 1, "QAttention": 1}
    assert operators(rewritten(model, BY_NAME["static"], feeds=[X])) == {"QuantizeLinear": 1, "QAttention": 1}
    per_row = operators(rewritten(model, BY_NAME["per_row"]))
    assert (per_row["MatMulIntegerToFloat"], per_row["Split"], per_row["MultiHeadAttention"]) == (1, 1, 1)


def test_invariant_methods_answer_alone_as_in_company() -> None:
    x = company(17, TIME, WIDTH)
    found = {name: drift(rewritten(attention(), method, feeds=[X]), x) for name, method in BY_NAME.items()}
    assert {name: value == 0 for name, value in found.items()} == {
        name: method.invariant for name, method in BY_NAME.items()
    }


def test_a_causal_attention_goes_to_qattention_only() -> None:
    model = attention(unidirectional=1)
    quantized = rewritten(model, BY_NAME["static"], feeds=[X])
    assert relative_error(answer(quantized, X), answer(model, X)) < 0.03
    assert "causal" in reason(model, BY_NAME["per_row"])


def test_what_the_quantised_operators_lack_is_refused() -> None:
    varied = attention(qkv_hidden_sizes=[WIDTH, WIDTH, WIDTH])
    assert "widths of their own" in reason(varied, BY_NAME["static"])
    assert "no bias" in reason(attention(bias=False), BY_NAME["dynamic"])
    lengths = attention(mask=np.full(5, TIME, np.int32))
    assert "(batch, time)" in reason(lengths, BY_NAME["per_row"])
    both = attention(mask=np.full(5, TIME, np.int32), attention_bias=normal(1, 1, TIME, TIME))
    assert "(batch, time)" in reason(both, BY_NAME["static"])
    assert reason(lengths, BY_NAME["static"]) == ""
    computed = graph(
        [
            helper.make_node("Mul", ["w", "w"], ["v"]),
            helper.make_node("Attention", ["x", "v", "b"], ["y"], "attention", domain=CONTRIB, num_heads=HEADS),
        ],
        {"w": normal(WIDTH, 3 * WIDTH), "b": normal(3 * WIDTH)},
        X,
    )
    assert "no constant" in reason(computed, BY_NAME["dynamic"])
