"""Names that Triton and ``ModelSpec`` allow for tensors of any name: ``h0.in`` becomes ``state_h0_in``."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from optimize.errors import UserError
from optimize.specs import LENGTHS, NEXT_STATE_PREFIX, STATE_PREFIX


def identifier(name: str) -> str:
    """Lower-case letters, digits and '_', beginning with a letter: ``h0.in`` is ``h0_in``."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"x_{plain}".rstrip("_")


def input_names(names: Iterable[str], states: Container[str], lengths: str | None) -> dict[str, str]:
    """Served names by the graph's own. Raises UserError for an input that is named as a state and is none."""
    taken, served = {LENGTHS} if lengths else set[str](), dict[str, str]()
    for name in names:
        plain = identifier(name)
        if name in states:
            served[name] = _unique(
                STATE_PREFIX + plain.removeprefix(NEXT_STATE_PREFIX).removeprefix(STATE_PREFIX), taken
            )
        elif name == lengths:
            served[name] = LENGTHS
        elif plain.startswith((STATE_PREFIX, NEXT_STATE_PREFIX)):
            raise UserError(f"input '{name}' looks like a state; pair it with its next value: --states {name}:OUT ...")
        else:
            served[name] = _unique(plain, taken)
    return served


def output_name(name: str, taken: set[str]) -> str:
    """The served name of an output that is no state; it is taken then."""
    plain = identifier(name)
    return _unique(f"output_{plain}" if plain.startswith((STATE_PREFIX, NEXT_STATE_PREFIX)) else plain, taken)


def _unique(name: str, taken: set[str]) -> str:
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found
