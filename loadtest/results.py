"""From outcomes to a table: how many, how fast, how many failed, and how late the generator itself was.

Locust's own statistics round latencies to whole milliseconds and know neither due times nor drops, hence these. A
worker process sends what it recorded to the master as plain lists (``drain`` and ``merge``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from loadtest.pacing import Dropped, Missed, Outcome, percentile

ALL = "all"


@dataclass
class Samples:
    """What was recorded for one kind of request. Latencies are those of answered requests, in ms.

    missed: of them, how many were answered too late, or are still unanswered and have the latency reached so far.
    """

    latency_ms: list[float] = field(default_factory=list)
    service_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    failed: int = 0
    missed: int = 0
    dropped: int = 0
    first_due_s: float = math.inf
    last_due_s: float = -math.inf
    last_answer_s: float = -math.inf

    def add(self, outcome: Outcome) -> None:
        self.first_due_s = min(self.first_due_s, outcome.due_s)
        self.last_due_s = max(self.last_due_s, outcome.due_s)
        if isinstance(outcome.error, Dropped):
            self.dropped += 1
            return
        self.late_ms.append(outcome.late_ms)
        if outcome.error is not None and not isinstance(outcome.error, Missed):
            self.failed += 1
        else:
            self.missed += isinstance(outcome.error, Missed)
            self.latency_ms.append(outcome.latency_ms)
            self.service_ms.append(outcome.service_ms)
            self.last_answer_s = max(self.last_answer_s, outcome.finished_s)

    def extend(self, other: Samples) -> None:
        for name in ("latency_ms", "service_ms", "late_ms"):
            getattr(self, name).extend(getattr(other, name))
        self.failed += other.failed
        self.missed += other.missed
        self.dropped += other.dropped
        self.first_due_s = min(self.first_due_s, other.first_due_s)
        self.last_due_s = max(self.last_due_s, other.last_due_s)
        self.last_answer_s = max(self.last_answer_s, other.last_answer_s)


@dataclass(frozen=True)
class Row:
    """One line of the summary. Latencies in ms, of answered requests.

    failed: real-time chunks answered too late count too, and in the latencies as well. offered_per_s: arrivals.
    answered_per_s: answers, over the time until the last one came: a backlog that is worked off after the last arrival
    does not count as keeping pace.
    """

    name: str
    requests: int
    failed: int
    dropped: int
    offered_per_s: float
    answered_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    service_p50_ms: float
    late_p99_ms: float

    @property
    def failure_rate(self) -> float:
        """Failed and dropped, as a fraction of all arrivals."""
        return (self.failed + self.dropped) / self.requests if self.requests else math.nan


class Recorder:
    """Collects the outcomes of a run by kind of request."""

    def __init__(self) -> None:
        self._samples: dict[str, Samples] = {}

    def add(self, name: str, outcome: Outcome) -> None:
        self._samples.setdefault(name, Samples()).add(outcome)

    def drain(self) -> dict[str, dict[str, Any]]:
        """Everything recorded since the last call, as plain data; it is forgotten here."""
        samples, self._samples = self._samples, {}
        return {name: vars(recorded) for name, recorded in samples.items()}

    def merge(self, drained: dict[str, dict[str, Any]]) -> None:
        """Add what another recorder drained."""
        for name, recorded in drained.items():
            self._samples.setdefault(name, Samples()).extend(Samples(**recorded))

    def rows(self) -> list[Row]:
        """A row for each kind of request, then, if there are several, one for all."""
        rows = [_row(name, recorded) for name, recorded in sorted(self._samples.items())]
        if len(rows) > 1:
            together = Samples()
            for recorded in self._samples.values():
                together.extend(recorded)
            rows.append(_row(ALL, together))
        return rows


def table(rows: list[Row]) -> str:
    """The summary as text."""
    width = max(len(row.name) for row in rows)
    head = ("requests", "failed", "dropped", "offered/s", "answered/s", "p50", "p95", "p99", "max", "service", "late")
    lines = [
        " " * width + "".join(f"{title:>11}" for title in head),
        *(
            f"{row.name:<{width}}{row.requests:11}{row.failed:11}{row.dropped:11}{row.offered_per_s:11.1f}"
            f"{row.answered_per_s:11.1f}{row.p50_ms:11.2f}{row.p95_ms:11.2f}{row.p99_ms:11.2f}{row.max_ms:11.2f}"
            f"{row.service_p50_ms:11.2f}{row.late_p99_ms:11.2f}"
            for row in rows
        ),
        "ms; p50 to max: from when a request was due; service: p50 from when it was sent; late: p99 of the generator's "
        "own delay",
    ]
    return "\n".join(lines)


def _row(name: str, samples: Samples) -> Row:
    requests = len(samples.latency_ms) + samples.failed + samples.dropped
    # n arrivals span n - 1 gaps; one more makes n arrivals in n gaps' time
    span_s = (samples.last_due_s - samples.first_due_s) * requests / max(requests - 1, 1)
    busy_s = max(span_s, samples.last_answer_s - samples.first_due_s)
    latency, service, late = sorted(samples.latency_ms), sorted(samples.service_ms), sorted(samples.late_ms)
    return Row(
        name=name,
        requests=requests,
        failed=samples.failed + samples.missed,
        dropped=samples.dropped,
        offered_per_s=requests / span_s if span_s else math.nan,
        answered_per_s=len(latency) / busy_s if busy_s else math.nan,
        p50_ms=percentile(latency, 50),
        p95_ms=percentile(latency, 95),
        p99_ms=percentile(latency, 99),
        max_ms=percentile(latency, 100),
        service_p50_ms=percentile(service, 50),
        late_p99_ms=percentile(late, 99),
    )
