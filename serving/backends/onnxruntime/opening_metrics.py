"""How often the cache of openings knew the answer, among Triton's own metrics.

    onnxruntime_opening_chunks_total{model="speech",version="1",known="yes"} 4711

Telling Triton costs a message to the server and back, so it is done at most once a second and while requests come:
what happened since is told with the next one.
"""

from __future__ import annotations

import time
from typing import Any

from openings import Openings

_NAME = "onnxruntime_opening_chunks_total"
_EVERY_S = 1.0


class OpeningMetrics:
    """The counters of one instance; instances of one model add up. pb_utils: triton_python_backend_utils."""

    def __init__(self, pb_utils: Any, openings: Openings, model: str, version: str) -> None:
        self._openings = openings
        self._due = 0.0
        self._told = {"yes": 0, "no": 0}
        self._family = pb_utils.MetricFamily(
            name=_NAME,
            description="Chunks of streams that still follow a known opening, by whether the answer was known",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._counters = {
            known: self._family.Metric(labels={"model": model, "version": version, "known": known})
            for known in self._told
        }

    def tell(self) -> None:
        """Publish what is new, if it is time."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _EVERY_S
        for known, total in (("yes", self._openings.hits), ("no", self._openings.misses)):
            if total > self._told[known]:
                self._counters[known].increment(total - self._told[known])
                self._told[known] = total

    def close(self) -> None:
        """Give the counters back, and only then their family: a worker that still has some when it ends crashes."""
        self._counters.clear()
        del self._family
