"""Whether the best that a search found is really better than the present settings.

The best of many noisy figures is partly luck. So the two are measured anew, in turns, on the same machine in the same
minutes. The challenger wins if it gives more in **every** round, and at least 5 % more in the middle one. Of two that
are equal the challenger wins five rounds in a row in 1 of 32 cases, before the margin makes it rarer; a round that it
does not win ends the duel.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 5
MARGIN = 0.05


@dataclass(frozen=True)
class Duel:
    """Levels by round."""

    present: tuple[int, ...]
    challenger: tuple[int, ...]

    @property
    def gain(self) -> float:
        """Of the middle round, as a share of the present level; infinite where that is 0."""
        return statistics.median(_gain(*pair) for pair in zip(self.present, self.challenger, strict=True))

    def won(self, rounds: int) -> bool:
        """Whether the challenger won all of so many rounds, by the margin."""
        ahead = all(theirs > ours for ours, theirs in zip(self.present, self.challenger, strict=True))
        return len(self.present) == rounds and ahead and self.gain >= MARGIN


def fight(present: Callable[[], int], challenger: Callable[[], int], rounds: int = ROUNDS) -> Duel:
    """Take turns, the order changing with each round, until the challenger has lost one or won them all."""
    ours: list[int] = []
    theirs: list[int] = []
    for number in range(rounds):
        sides = [(ours, present), (theirs, challenger)]
        for levels, measure in sides if number % 2 == 0 else reversed(sides):
            levels.append(measure())
        if theirs[-1] <= ours[-1]:
            break
    return Duel(tuple(ours), tuple(theirs))


def _gain(present: int, challenger: int) -> float:
    if present:
        return challenger / present - 1
    return float("inf") if challenger else 0.0
