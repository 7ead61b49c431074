"""What is usual among many runs, and what a profile's own work takes off it.

What else the machine does can only make a run slower, and it hits now this operator and now that. So of every time, of
whole runs and of operators, the fastest quarter counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from scipy.optimize import brentq

_MOST_US = 5.0

Key = TypeVar("Key", bound=Hashable)


def usual(values: Sequence[float], requests: int) -> float:
    """The mean of the fastest quarter of the runs of each of so many requests, which came in turn."""
    quarters = [sorted(values[request::requests]) for request in range(requests)]
    kept = [runs[: max(len(runs) // 4, 1)] for runs in quarters]
    return sum(sum(runs) / len(runs) for runs in kept) / requests


def deducted(us: Mapping[Key, float], calls: Mapping[Key, float], most_us: float) -> tuple[dict[Key, float], float]:
    """The times with as much off every call as leaves ``most_us`` at most of all of them, and how much that is.

    An entry of a profile costs a few microseconds; what would be more is another noise, and shortens all times alike.
    """

    def left(each: float) -> dict[Key, float]:
        return {key: max(time - each * calls[key], 0.0) for key, time in us.items()}

    each = 0.0
    if sum(left(_MOST_US).values()) > most_us:
        each = _MOST_US
    elif sum(left(0.0).values()) > most_us:
        each = float(brentq(lambda each: sum(left(each).values()) - most_us, 0.0, _MOST_US))
    found = left(each)
    scale = min(most_us / sum(found.values()), 1.0) if any(found.values()) else 1.0
    return {key: scale * time for key, time in found.items()}, each
