"""Whether a figure that should stay the same does: medians of its first and its last tenth, after a warm-up.

Medians, because one page of memory or one slow request proves nothing, and a leak shows in all that come later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP_SHARE = 0.1  # of the values, left out


@dataclass(frozen=True)
class Trend:
    """Medians of the first and the last tenth."""

    first: float
    last: float

    @property
    def ratio(self) -> float:
        return self.last / self.first

    @property
    def growth_percent(self) -> float:
        return 100 * (self.ratio - 1)

    @classmethod
    def of(cls, values: Sequence[float], warm_up: int | None = None) -> Trend:
        """warm_up: how many values to leave out; a tenth of them if None."""
        settled = values[int(len(values) * WARM_UP_SHARE) if warm_up is None else warm_up :]
        tenth = max(len(settled) // 10, 1)
        return cls(median(settled[:tenth]), median(settled[-tenth:]))
