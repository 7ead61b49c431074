"""What is done to each operator of a model, and why: measured once, committed, followed ever after.

A plan lists every operator that has trained weights, for both profiles, and which profile is the model's own. Following
a committed plan makes reruns idempotent; it is measured again only on request (``tune``), because a measurement never
comes out the same twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimize.checkpoint import replace_file
from optimize.errors import UserError
from optimize.quantize.method import FP32, PROFILES, Profile


@dataclass(frozen=True)
class Choice:
    """The method of one operator (an ONNX node), "fp32" for left alone, and the reason in words."""

    operator: str
    method: str
    reason: str

    @property
    def quantised(self) -> bool:
        return self.method != FP32


Choices = dict[str, Choice]
"""By the name of the node."""


@dataclass(frozen=True)
class Plan:
    """profile: what to publish unless told otherwise, and the reason for it; choices: of either profile."""

    profile: Profile
    reason: str
    choices: dict[Profile, Choices]


def read(path: Path, variant: str) -> Plan | None:
    """The committed plan of a variant, or None when there is none yet."""
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text()).get(variant)
        return None if saved is None else _plan(saved)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"quantisation plan '{path}' cannot be read ({error!r}); delete it or use --retune") from None


def write(path: Path, variant: str, plan: Plan) -> None:
    """Keep a plan beside the recipe; other variants' plans stay."""
    plans = json.loads(path.read_text()) if path.exists() else {}
    plans[variant] = asdict(plan)
    try:
        replace_file(path, (json.dumps(plans, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"quantisation plan '{path}' cannot be written: {error.strerror}") from None


def check(plan: Plan, operators: Mapping[str, str], path: Path) -> None:
    """Raise UserError when a plan was made for another graph: it must list just the operators that have weights."""
    for choices in plan.choices.values():
        planned = {node: choice.operator for node, choice in choices.items()}
        if planned != dict(operators):
            odd = sorted(set(planned.items()) ^ set(operators.items()))
            raise UserError(f"quantisation plan '{path}' is for another graph (differs in {odd[:3]}); use --retune")


def _plan(values: dict[str, Any]) -> Plan:
    choices = {profile: values["choices"][profile] for profile in PROFILES}
    return Plan(
        PROFILES[PROFILES.index(values["profile"])],
        values["reason"],
        {profile: {node: Choice(**kept) for node, kept in nodes.items()} for profile, nodes in choices.items()},
    )
