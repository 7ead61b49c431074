"""What is done to each operator of a model, and why: measured once, committed, followed ever after.

A plan lists every operator that has trained weights. Following a committed plan makes reruns idempotent; it is
measured again only on request, because a measurement never comes out the same twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from optimize.checkpoint import replace_file
from optimize.errors import UserError

Precision = Literal["int8", "fp32"]


@dataclass(frozen=True)
class Choice:
    """The precision of one operator (an ONNX node) and the reason in words."""

    operator: str
    precision: Precision
    reason: str


Plan = dict[str, Choice]


def read(path: Path, variant: str) -> Plan | None:
    """The committed plan of a variant, or None when there is none yet."""
    if not path.exists():
        return None
    try:
        plans = json.loads(path.read_text())
        return {node: Choice(**choice) for node, choice in plans[variant].items()} if variant in plans else None
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"quantisation plan '{path}' cannot be read ({error}); delete it or use --retune") from None


def write(path: Path, variant: str, plan: Plan) -> None:
    """Keep a plan beside the recipe; other variants' plans stay."""
    plans = json.loads(path.read_text()) if path.exists() else {}
    plans[variant] = {node: asdict(choice) for node, choice in plan.items()}
    try:
        replace_file(path, (json.dumps(plans, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"quantisation plan '{path}' cannot be written: {error.strerror}") from None


def check(plan: Plan, operators: Mapping[str, str], path: Path) -> None:
    """Raise UserError when a plan was made for another graph: it must list just the operators that have weights."""
    planned = {node: choice.operator for node, choice in plan.items()}
    if planned != dict(operators):
        odd = sorted(set(planned.items()) ^ set(operators.items()))
        raise UserError(f"quantisation plan '{path}' is for another graph (differs in {odd[:3]}); use --retune")


def weighted_operators(model: ModelProto) -> dict[str, str]:
    """Nodes that multiply by trained weights: name to operator, in graph order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: node.op_type
        for node in model.graph.node
        if node.op_type in ("LSTM", "GRU", "RNN", "MatMul", "Gemm", "Conv") and constants & set(node.input[1:2])
    }
