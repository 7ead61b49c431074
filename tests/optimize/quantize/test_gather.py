"""Embedding tables in eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from optimize.quantize.gather import METHODS
from tests.optimize.quantize.small_graphs import Array, answer, drift, graph, normal, operators, reason, rewritten

(INT8_TABLE,) = METHODS
ENTRIES, FEATURES = 50, 33


def embedding(table: Array, tokens: Array, axis: int | None = None) -> ModelProto:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    node = helper.make_node("Gather", ["table", "x"], ["y"], name="embedding", **attributes)
    return graph([node], {"table": table}, tokens, rank_out=tokens.ndim + 1)


def tokens(*shape: int) -> Array:
    return np.random.default_rng(0).integers(-ENTRIES, ENTRIES, shape)  # negative ones count from the end


def test_every_entry_loses_at_most_half_of_its_own_step() -> None:
    table = normal(ENTRIES, FEATURES)
    table[3], table[4] = 0, table[4] * 1e-4
    chosen = tokens(4, 40)
    quantized = rewritten(embedding(table, chosen), INT8_TABLE)
    assert operators(quantized) == {"Gather": 2, "Cast": 1, "Mul": 1}
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(answer(quantized, chosen) - table[chosen]) <= steps[chosen] * 0.5001).all()
    assert drift(quantized, chosen) == 0


def test_entries_that_eight_bits_hold_are_exact() -> None:
    table = np.random.default_rng(0).integers(-127, 128, (ENTRIES, FEATURES)).astype(np.float32)
    table[:, 0] = 127
    chosen = np.arange(ENTRIES)
    np.testing.assert_array_equal(answer(rewritten(embedding(table, chosen, axis=0), INT8_TABLE), chosen), table)


def test_the_file_is_a_quarter() -> None:
    model = embedding(normal(1000, 256), tokens(2, 3))
    assert rewritten(model, INT8_TABLE).ByteSize() < 0.27 * model.ByteSize()


def test_lookups_that_are_no_embedding_are_refused() -> None:
    table = normal(ENTRIES, FEATURES)
    assert "axis 1" in reason(embedding(table, tokens(2, 3), axis=1), INT8_TABLE)
    assert "shape (2, 50, 33)" in reason(embedding(normal(2, ENTRIES, FEATURES), tokens(3, 2)), INT8_TABLE)
    indexing = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["size"]),
        helper.make_node("Cast", ["size"], ["y"], to=TensorProto.FLOAT),
    ]
    model = graph(indexing, {"zero": np.array([0])}, normal(2, 3), rank_out=1)
    assert "no constant" in reason(model, INT8_TABLE)
