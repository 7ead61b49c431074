"""Graph rewrites that change no answer: one file each, run in the order of ``PASSES``."""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto

from optimize.fuse.fold import fold
from optimize.fuse.rnn_state import drop_zero_states

PASSES: list[tuple[str, Callable[[ModelProto], tuple[ModelProto, int]]]] = [
    ("constants folded, no-ops removed", fold),
    ("zero RNN states dropped", drop_zero_states),
    ("left-overs folded", fold),
]


def fuse(model: ModelProto) -> tuple[ModelProto, dict[str, int]]:
    """Run every pass; returns the new model and how many nodes each removed or rewrote."""
    counts: dict[str, int] = {}
    for name, rewrite in PASSES:
        model, count = rewrite(model)
        counts[name] = count
    return model, counts
