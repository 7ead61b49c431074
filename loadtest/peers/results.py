"""The figures of a comparison, the claims that they bear out or refute, and the tables that show both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.peers.in_process import InProcess
from loadtest.peers.served import CALLERS, Served
from loadtest.peers.servers import BENTO, ORT, OURS, TORCH
from optimize.report_page import markdown_table
from optimize.report_tables import Mark, Row, Table, number

MOST = max(CALLERS)
LEAST = {TORCH: 3.0, ORT: 1.0, BENTO: 1.0}  # times the requests per second of the best of a family


@dataclass(frozen=True)
class Results:
    """Of one model. published: the stage that is served. failures: why a peer is missing, by its name."""

    model: str
    variant: str
    data: str
    metric: str
    published: str
    environment: dict[str, Any]
    in_process: list[InProcess]
    served: list[Served]
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What was set out to be shown: at least ``limit``."""

    what: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value >= self.limit


def claims(results: Results) -> list[Claim]:
    """Ratios of ours to the best peer; what could not be measured makes none."""
    found = []
    if any(entry.family == OURS for entry in results.served):
        for family, limit in LEAST.items():
            if any(entry.family == family for entry in results.served):
                ratio = _best(results.served, OURS) / _best(results.served, family)
                found.append(Claim(f"served, {MOST} callers: requests per second against {family}", ratio, limit))
    peers = [entry for entry in results.in_process if not entry.ours and entry.precision == "int8"]
    ours = [entry for entry in results.in_process if entry.ours and entry.precision == "int8"]
    if peers and ours:
        rival, fastest = _fastest(peers), _fastest(ours)
        ratio = rival.latency_ms.p50 / fastest.latency_ms.p50
        found.append(Claim(f"in process, int8: {fastest.name} against {rival.name}, p50", ratio, 1.0))
    alike = [entry for entry in ours if entry.drift == 0]
    if peers and alike:
        rivals = [entry for entry in results.in_process if not entry.ours and entry.drift == 0] or peers
        rival, fastest = _fastest(rivals), _fastest(alike)
        what = "that answers alike in any company" if rival.drift == 0 else "though none answers alike in any company"
        ratio = rival.latency_ms.p50 / fastest.latency_ms.p50
        found.append(Claim(f"in process, batch-invariant: {fastest.name} against {rival.name}, {what}", ratio, 1.0))
    return found


def where_peers_win(results: Results) -> list[str]:
    """Every peer that is faster than what we publish, with what its answers cost in company and accuracy."""
    published = next((entry for entry in results.in_process if entry.name == results.published), None)
    words = []
    for entry in results.in_process:
        if published and not entry.ours and entry.latency_ms.p50 < published.latency_ms.p50:
            words.append(
                f"In process {entry.name} is {published.latency_ms.p50 / entry.latency_ms.p50:.2f} times as fast as "
                f"{published.name}; drift in company {number(entry.drift)} against {number(published.drift)}, "
                f"{results.metric} {number(entry.metric, 4)} against {number(published.metric, 4)}."
            )
    for callers in CALLERS if any(entry.family == OURS for entry in results.served) else ():
        best = _best(results.served, OURS, callers)
        for other in results.served:
            if other.family != OURS and (rate := other.load[callers].requests_per_s) > best:
                times = f"{rate / best:.2f} times as many requests per second as our best"
                words.append(f"With {callers} caller{'s' * (callers > 1)} {other.name} answers {times}.")
    return words


def tables(results: Results) -> list[Table]:
    """Claims, in process, served: without rows where nothing was measured."""
    return [_claims(results), _in_process(results), _served(results)]


def markdown(all_results: Sequence[Results]) -> str:
    """A page for every model measured."""
    lines = ["# Peers", ""]
    for results in all_results:
        made = results.environment
        versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        peers = ", ".join(f"{name} {number}" for name, number in made["peers"].items())
        lines += [f"## {results.model}, {results.variant}", ""]
        lines += [f"{made['cpu']}, {made['cores']} cores ({', '.join(made['isa'])}). Data: {results.data}", ""]
        lines += [f"Versions: {versions}. Of the peers' environment: {peers}.", ""]
        for table in tables(results):
            heading, *rest = markdown_table(table) or [""]
            lines += [f"#{heading}" if heading else "", *rest]
        lines += _list("Where a peer wins", where_peers_win(results) or ["Nowhere."])
        lines += _list("Not compared", [f"{name}: {reason}" for name, reason in results.failures.items()])
    return "\n".join(lines).rstrip() + "\n"


def _claims(results: Results) -> Table:
    rows = [
        Row([claim.what, f"{claim.value:.2f}", f"{claim.limit:.1f}", "yes" if claim.holds else "no"],
            "" if claim.holds else "failed")
        for claim in claims(results)
    ]  # fmt: skip
    headings = ["ours against", "times", "at least", "holds"]
    return Table("Against the best peer", headings, [False, True, True, False], rows)


def _in_process(results: Results) -> Table:
    headings = ["form", "p50 ms", "p95", "p99", "calls", "8 at once", "MB", results.metric, "drift in company"]
    rows = []
    for entry in results.in_process:
        latency = entry.latency_ms
        cells = [*(f"{value:.3f}" for value in (latency.p50, latency.p95, latency.p99)), str(latency.count)]
        cells += [f"{entry.batch8_p50_ms:.3f}", f"{entry.size_bytes / 1e6:.2f}", number(entry.metric, 4)]
        mark: Mark = "published" if entry.name == results.published else ""
        rows.append(Row([entry.name, *cells, number(entry.drift)], mark))
    note = "One thread, all interleaved in one process. Drift: the largest difference between an item's answers alone "
    note += "and beside others."
    return Table("In process", headings, [False, *[True] * (len(headings) - 1)], rows, note)


def _served(results: Results) -> Table:
    headings = ["server", *(f"{callers} caller{'s' * (callers > 1)} /s" for callers in CALLERS)]
    headings += [f"of {MOST}: by round", "p50 ms", "p95", "p99", "requests", results.metric, "from torch"]
    rows = []
    for entry in results.served:
        most = entry.load[MOST]
        cells = [f"{entry.load[callers].requests_per_s:,.0f}" for callers in CALLERS]
        cells += [f"{most.slowest:,.0f} to {most.fastest:,.0f}"]
        cells += [f"{value:.2f}" for value in (most.latency_ms.p50, most.latency_ms.p95, most.latency_ms.p99)]
        cells += [f"{most.latency_ms.count:,}", number(entry.metric, 4), number(entry.difference)]
        rows.append(Row([entry.name, *cells], "published" if entry.family == OURS else ""))
    note = f"Closed loop, servers in turn, the load generator on the same cores; latencies with {MOST} callers. From "
    note += "torch: the largest difference of an answer from the network's in torch."
    return Table("Served", headings, [False, *[True] * (len(headings) - 1)], rows, note)


def _best(served: list[Served], family: str, callers: int = MOST) -> float:
    return max(entry.load[callers].requests_per_s for entry in served if entry.family == family)


def _fastest(entries: list[InProcess]) -> InProcess:
    return min(entries, key=lambda entry: entry.latency_ms.p50)


def _list(title: str, words: list[str]) -> list[str]:
    return [f"### {title}", "", *(f"- {line}" for line in words), ""] if words else []
