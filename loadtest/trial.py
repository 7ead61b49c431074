"""One run at one level of load, and what it shows.

    sustained                p99 within the limit, nothing failed, and of real-time streams no chunk missed
    not sustained            anything else
    the generator is ...     the generator sent too late itself, so the server never met that load; or the level was
                             not sustained while a generator process was as busy as a process can be

Latency counts from when a chunk or request was due. What is due in the warm-up is sent and not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.load import Part
from loadtest.pacing import Dropped, Missed, Outcome, percentile
from loadtest.search import Finding
from loadtest.server_statistics import ServerWork

MAX_LATE_SHARE = 0.1  # of the chunk's duration: how late the generator's p99 may be
MAX_LATE_SHARE_OF_LIMIT = 0.25  # the same for requests, of the limit on their p99
MAX_CPU_SHARE = 0.9  # of one core: a Python process cannot use more for long


@dataclass(frozen=True)
class Goal:
    """What counts as sustained. period_s: a chunk's duration, None for requests without a stream."""

    p99_limit_ms: float
    period_s: float | None = None

    @property
    def late_limit_ms(self) -> float:
        """How late the generator's own p99 may be."""
        if self.period_s is None:
            return MAX_LATE_SHARE_OF_LIMIT * self.p99_limit_ms
        return MAX_LATE_SHARE * self.period_s * 1e3


@dataclass(frozen=True)
class Trial:
    """level: streams, or requests per second. seconds: measured, after the warm-up. confirms: whether it was a full
    run at a level found before.

    requests: chunks or requests that were due, of which missed came too late, failed got an error, and dropped were
    not sent. real_time_factor: seconds of computing for a second of audio, an utterance's ragged last chunk counted as
    a whole one, which understates it by about half a chunk an utterance (1.6 % for 320 ms in 10 s); None without
    audio. compute_share: of the time, how much the model was busy. batch_sizes: runs of the model by how many requests
    they answered. late_p99_ms, generator_cores: of the generator, the latter of its busiest process. server_cores:
    processor use of the server; None if it cannot be seen from here.
    """

    level: int
    confirms: bool
    seconds: float
    finding: Finding
    requests: int
    missed: int
    failed: int
    dropped: int
    first_failure: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float
    late_limit_ms: float
    generator_cores: float
    real_time_factor: float | None
    compute_share: float
    mean_batch: float
    batch_sizes: dict[int, int]
    server_cores: float | None


def judge(level: int, confirms: bool, goal: Goal, parts: Sequence[Part], measured_from_s: float, seconds: float,
          work: ServerWork, server_cores: float | None = None) -> Trial:  # fmt: skip
    """The trial from what the generator's processes saw and the server counted."""
    outcomes = [outcome for part in parts for outcome in part.outcomes if outcome.due_s >= measured_from_s]
    answered = [outcome for outcome in outcomes if outcome.error is None or isinstance(outcome.error, Missed)]
    latency_ms = sorted(outcome.latency_ms for outcome in answered)
    late_p99_ms = percentile(sorted(o.late_ms for o in outcomes if not isinstance(o.error, Dropped)), 99)
    missed = sum(isinstance(outcome.error, Missed) for outcome in outcomes)
    dropped = sum(isinstance(outcome.error, Dropped) for outcome in outcomes)
    cores = max((part.cpu_s / part.wall_s for part in parts if part.wall_s), default=0.0)
    audio_s = work.requests * goal.period_s if goal.period_s else 0.0
    return Trial(
        level=level,
        confirms=confirms,
        seconds=seconds,
        finding=_finding(goal, outcomes, percentile(latency_ms, 99), late_p99_ms, cores),
        requests=len(outcomes),
        missed=missed,
        failed=len(outcomes) - len(answered) - dropped,
        dropped=dropped,
        first_failure=next((str(o.error) for o in outcomes if o.error and not isinstance(o.error, Missed)), ""),
        p50_ms=percentile(latency_ms, 50),
        p95_ms=percentile(latency_ms, 95),
        p99_ms=percentile(latency_ms, 99),
        max_ms=percentile(latency_ms, 100),
        late_p99_ms=late_p99_ms,
        late_limit_ms=goal.late_limit_ms,
        generator_cores=cores,
        real_time_factor=work.compute_s / audio_s if audio_s else None,
        compute_share=work.compute_s / seconds,
        mean_batch=work.mean_batch,
        batch_sizes=work.runs,
        server_cores=server_cores,
    )


def _finding(goal: Goal, outcomes: list[Outcome], p99_ms: float, late_p99_ms: float, cores: float) -> Finding:
    good = all(outcome.error is None for outcome in outcomes) and p99_ms <= goal.p99_limit_ms  # NaN is not
    if late_p99_ms > goal.late_limit_ms or (not good and cores > MAX_CPU_SHARE):
        return Finding.GENERATOR
    return Finding.SUSTAINED if good else Finding.NOT_SUSTAINED
