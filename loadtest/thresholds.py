"""Limits on a load test's results, from the command line or the environment; one exceeded fails the run.

    locust -f loadtest/locustfile.py --headless --rate 200 --max-p99-ms 20 --max-failure-rate 0.001

Limits on latency and failures hold for every kind of request by itself, so that a good one cannot hide a bad one;
the limit on throughput holds for all together. Without any limit, a run fails if a request failed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.results import ALL, Row


@dataclass(frozen=True)
class Limit:
    """A command-line option that limits one column of the summary, from above or (``floor``) from below."""

    option: str
    what: str
    unit: str
    value: Callable[[Row], float]
    floor: bool = False

    @property
    def destination(self) -> str:
        return self.option.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets it too."""
        return f"LOADTEST_{self.destination.upper()}"


LIMITS = (
    Limit("--max-p50-ms", "p50 latency", "ms", lambda row: row.p50_ms),
    Limit("--max-p95-ms", "p95 latency", "ms", lambda row: row.p95_ms),
    Limit("--max-p99-ms", "p99 latency", "ms", lambda row: row.p99_ms),
    Limit("--max-failure-rate", "failed and dropped", "of all", lambda row: row.failure_rate),
    Limit("--min-throughput", "answers", "per second", lambda row: row.answered_per_s, floor=True),
    Limit("--max-late-ms", "p99 delay of the generator", "ms", lambda row: row.late_p99_ms),
)


@dataclass(frozen=True)
class Verdict:
    """One limit against one row of the summary."""

    name: str
    what: str
    unit: str
    value: float
    limit: float
    floor: bool

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.floor else self.value <= self.limit  # NaN passes neither

    def __str__(self) -> str:
        relation = "at least" if self.floor else "at most"
        outcome = "ok    " if self.passed else "FAILED"
        return f"{outcome}  {self.name}: {self.what} {self.value:.4g}, {relation} {self.limit:g} {self.unit}"


def add_arguments(parser: Any) -> None:
    """Add the options to locust's parser (a configargparse one, which reads environment variables too)."""
    group = parser.add_argument_group("thresholds", "the exit status is 1 if a limit is broken")
    for limit in LIMITS:
        kind = "least" if limit.floor else "most"
        group.add_argument(
            limit.option,
            type=_number,
            env_var=limit.variable,
            metavar="N",
            help=f"{limit.what}: at {kind} N {limit.unit}",
        )


def judge(rows: list[Row], options: Mapping[str, Any]) -> list[Verdict]:
    """Hold the summary against the limits that were given. options: parsed, by destination."""
    single, total = [row for row in rows if row.name != ALL], rows[-1:]
    return [
        Verdict(row.name, limit.what, limit.unit, limit.value(row), options[limit.destination], limit.floor)
        for limit in LIMITS
        if options.get(limit.destination) is not None
        for row in (total if limit.floor else single)
    ]


def exit_code(rows: list[Row], verdicts: list[Verdict]) -> int:
    """0 for a good run, else 1: a limit broken; or, without limits, a request failed; or nothing was sent at all."""
    if not rows:
        return 1
    if verdicts:
        return int(not all(verdict.passed for verdict in verdicts))
    return int(any(row.failure_rate > 0 for row in rows))


def held(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """As plain data, with the outcome of each."""
    return [asdict(verdict) | {"passed": verdict.passed} for verdict in verdicts]


def to_json(content: dict[str, Any]) -> str:
    """A result as JSON, which knows no NaN and no infinity: null."""
    return json.dumps(_plain(content), indent=2, allow_nan=False, default=str) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number of at least 0")
    return value
