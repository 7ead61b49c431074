"""A customer's clicks as numbers: what happened, and how many hours before the moment of asking.

    clicks = Clicks.before(asked, times, names, EVENT_TYPES)
    clicks.events, clicks.ages      # [9, 15, 21], [320.5, 320.4, 1.25]: oldest first

The rules, for training files and for single requests alike: events may come in any order; one that is repeated to the
letter (same time, same type) counts once, as logs deliver some twice; of more than 128 the latest 128 are read; a type
that is not among the model's is read as UNKNOWN; an event after the moment of asking is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from optimize.data.reviews import CATEGORIES
from optimize.errors import UserError

EVENTS = 128  # the most that are read
NO_EVENT, UNKNOWN_EVENT = 0, 1
ACTIONS, VISITS = ("view", "cart", "purchase", "return"), ("login", "search", "newsletter", "support")
EVENT_TYPES = ("", "unknown", *VISITS, *(f"{action}_{category}" for action in ACTIONS for category in CATEGORIES))


@dataclass(frozen=True)
class Clicks:
    """events: (events,) int64, places in a list of types. ages: (events,) float32 hours, falling. unknown: type names
    that the list lacks. repeated, left_out: how many events were repetitions, and too old to be read."""

    events: NDArray[np.int64]
    ages: NDArray[np.float32]
    unknown: tuple[str, ...] = ()
    repeated: int = 0
    left_out: int = 0

    @classmethod
    def before(
        cls, asked: datetime, times: Sequence[datetime], names: Sequence[str], types: Sequence[str], most: int = EVENTS
    ) -> Clicks:
        """Times are aware. Raises FutureEvent for the first event after ``asked``."""
        for row, time in enumerate(times):
            if time > asked:
                raise FutureEvent(row, time, asked)
        rows = sorted(zip(times, names, strict=True), key=lambda row: row[0])
        kept = list(dict.fromkeys(rows))
        repeated, left_out = len(rows) - len(kept), max(len(kept) - most, 0)
        kept = kept[left_out:]
        places = {name: place for place, name in enumerate(types) if place > UNKNOWN_EVENT}
        return cls(
            np.array([places.get(name, UNKNOWN_EVENT) for _, name in kept], np.int64),
            np.array([(asked - time).total_seconds() / 3600 for time, _ in kept], np.float32),
            tuple(sorted({name for _, name in kept} - places.keys())),
            repeated,
            left_out,
        )


class FutureEvent(UserError):
    """An event after the moment of asking. row: its place in what was given, from 0."""

    def __init__(self, row: int, time: datetime, asked: datetime) -> None:
        self.row = row
        super().__init__(
            f"{time:%Y-%m-%dT%H:%M:%S%z} lies after the moment of asking, {asked:%Y-%m-%dT%H:%M:%S%z}: what is to come "
            "cannot be known; drop the event or ask later"
        )


def moment(text: str) -> datetime | None:
    """An ISO 8601 time, UTC unless it has an offset; None for what is none."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
