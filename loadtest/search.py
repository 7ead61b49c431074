"""The largest load that a server sustains: doubling, then bisection with short trials, then a long run to confirm.

    found = largest(trial, confirm, ceiling=4096)
    found.level, found.bound       # 187, Bound.SERVER

A trial can be disturbed, so a level counts as too much only after it failed ``attempts`` times. A short one can also
be too kind (queues grow slowly, machines warm up), so what the trials found is confirmed at full length, and given
up in small steps until a confirmation holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

STEP_DOWN = 0.05  # of the level, after a confirmation that failed


class Finding(StrEnum):
    """What a run at one level showed."""

    SUSTAINED = "sustained"
    NOT_SUSTAINED = "not sustained"
    GENERATOR = "the generator is the limit, not the server"


class Bound(StrEnum):
    """Why no more was found."""

    SERVER = "server"
    GENERATOR = "generator"
    CEILING = "ceiling"


_BOUNDS = {Finding.NOT_SUSTAINED: Bound.SERVER, Finding.GENERATOR: Bound.GENERATOR}


@dataclass(frozen=True)
class Found:
    """level: the most that was sustained and confirmed, 0 if nothing was. bound: what stood in the way of more."""

    level: int
    bound: Bound


def largest(
    trial: Callable[[int], Finding],
    confirm: Callable[[int], Finding],
    *,
    ceiling: int,
    first: int = 1,
    precision: float = 0.0,
    attempts: int = 2,
) -> Found:
    """Search 1 to ``ceiling``. first: the level to double from. precision: a gap to the next failed level that is
    close enough, as a fraction of the level; 0 searches to the last one.

    A level at which the generator was the limit is not sustained, and says nothing against the server either.
    """

    def tried(level: int) -> Finding:
        findings = (trial(level) for _ in range(attempts))
        finding = next(findings)
        while finding is not Finding.SUSTAINED:
            again = next(findings, None)
            if again is None:
                break
            finding = again
        return finding

    good, bound = _search(tried, min(first, ceiling), ceiling, precision)
    level = good
    while level > 0:
        finding = confirm(level)
        if finding is Finding.GENERATOR:  # the generator's trouble may pass
            finding = confirm(level)
        if finding is Finding.SUSTAINED:
            return Found(level, bound)
        bound = _BOUNDS[finding]
        level -= max(1, int(level * STEP_DOWN))
    return Found(0, bound)


def _search(tried: Callable[[int], Finding], level: int, ceiling: int, precision: float) -> tuple[int, Bound]:
    """The largest level that was sustained, and why no larger one was."""
    while True:
        good, bad, bound = _double(tried, level, ceiling)
        if bad is None:
            return good, bound
        doubted = bad
        while bad - good > max(1, int(precision * good)):
            middle = (good + bad) // 2
            finding = tried(middle)
            if finding is Finding.SUSTAINED:
                good = middle
            else:
                bad, bound = middle, _BOUNDS[finding]
        # Everything below it was sustained: either it is the edge, or it was disturbed twice.
        if good == 0 or bad < doubted or tried(bad) is not Finding.SUSTAINED:
            return good, bound
        if bad == ceiling:
            return bad, Bound.CEILING
        level = min(2 * bad, ceiling)


def _double(tried: Callable[[int], Finding], level: int, ceiling: int) -> tuple[int, int | None, Bound]:
    """The last good level, the first bad one (none up to the ceiling), and why it was bad."""
    good = 0
    while True:
        finding = tried(level)
        if finding is not Finding.SUSTAINED:
            return good, level, _BOUNDS[finding]
        if level == ceiling:
            return level, None, Bound.CEILING
        good, level = level, min(2 * level, ceiling)
