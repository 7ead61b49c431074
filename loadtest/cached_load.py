"""What one load on a cached model came to: its latencies, and what the server's counters say of its requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.pacing import percentile
from loadtest.prompts import Sighting


@dataclass
class Load:
    """One of the two loads, as far as it has run. server: what the server counted for it, see ``counted``."""

    name: str
    taken: list[tuple[Sighting, float]] = field(default_factory=list)  # ms
    seconds: float = 0.0
    server: Counter[str] = field(default_factory=Counter)

    def count(self, sighting: Sighting) -> int:
        return sum(kind is sighting for kind, _ in self.taken)

    @property
    def uncounted(self) -> int:
        """Requests that Triton calls neither hit nor miss: the model ran, but the same answer was kept meanwhile."""
        return len(self.taken) - self.server["hits"] - self.server["misses"]

    @property
    def finding(self) -> str:
        """The server's counters against what was to be expected of the requests sent."""
        hits, expected, requests = self.server["hits"], self.count(Sighting.SENT_BEFORE), len(self.taken)
        best = requests - self.count(Sighting.NEW)
        if self.uncounted < 0:
            return f"the server counted {requests - self.uncounted} requests for {requests} sent: others ask it too"
        if hits > best:
            return (
                f"{hits} hits, but only {best} requests had been sent before: the cache holds answers of an earlier "
                "run; give another --seed, or start the server anew"
            )
        if hits < expected:
            return (
                f"{hits} hits, at least {expected - hits} fewer than were answered before: the cache is too small to "
                "keep the prompts with all that comes between; start the server with a larger --cache-mb"
            )
        if hits < best:
            return f"{hits} hits; {best - hits} more missed because the first of their kind was not answered yet"
        if not best:
            return "0 hits, by construction: no two requests are alike, and live audio never is"
        return f"{hits} hits, all that were possible: every miss was a first sighting"

    @property
    def results(self) -> dict[str, Any]:
        requests, hits, misses = len(self.taken), self.server["hits"], self.server["misses"]
        kinds = {"all": tuple(Sighting), **{kind.name.lower(): (kind,) for kind in Sighting}}
        return {
            "requests": requests,
            "different_requests": self.count(Sighting.NEW),
            "server_hits": hits,
            "server_misses": misses,
            "server_uncounted": self.uncounted,
            "hit_rate": hits / max(requests, hits + misses),
            "best_hit_rate": 1 - self.count(Sighting.NEW) / requests,
            "expected_hits": self.count(Sighting.SENT_BEFORE),
            "server_mean_hit_ms": self.server["hit_ns"] / hits / 1e6 if hits else None,
            "server_mean_miss_ms": self.server["miss_ns"] / misses / 1e6 if misses else None,
            "requests_per_s": requests / self.seconds,
            "latency": {name: _latency([ms for kind, ms in self.taken if kind in kinds[name]]) for name in kinds},
            "finding": self.finding,
        }


def counted(entries: Sequence[Mapping[str, Any]], model: str) -> Counter[str]:
    """Cache hits and misses of all versions of ``model``, and what they took, from Triton's statistics.

    hit_ns: to look up and copy answers; miss_ns: to look up in vain and to keep the answers. Its JSON has 64-bit
    numbers as strings.
    """
    total: Counter[str] = Counter()
    for entry in entries:
        if entry["name"] == model:
            for kind, plural in (("hit", "hits"), ("miss", "misses")):
                found = entry.get("inference_stats", {}).get(f"cache_{kind}", {})
                total[plural] += int(found.get("count", 0))
                total[f"{kind}_ns"] += int(found.get("ns", 0))
    return total


def _latency(values_ms: list[float]) -> dict[str, float | int | None]:
    ordered = sorted(values_ms)
    return {"count": len(ordered)} | {
        f"p{percent}_ms": percentile(ordered, percent) if ordered else None for percent in (50, 95, 99)
    }
