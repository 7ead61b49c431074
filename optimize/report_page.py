"""A report for people: ``markdown`` for a terminal or a repository, ``html`` for a browser, a phone or a printer.

The page is one file that loads nothing: styles and plots are inside, and there is no script.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from optimize.report import Report, Stage
from optimize.report_plots import plots
from optimize.report_svg import PAINT
from optimize.report_tables import SERIES, Table, comparisons, interval, loss, number, ratio, series, tables


@dataclass(frozen=True)
class Headline:
    """One of the few numbers that a hurried reader takes away; ``detail`` says what it is computed from."""

    value: str
    label: str
    detail: str


def markdown(report: Report) -> str:
    """The report as Markdown: headline, status, data, environment, then every table, then the notes."""
    lines = [f"# {_text(title(report))}", ""]
    if found := headlines(report):
        lines += [f"{_text(subject(report))}:", ""]
        lines += [
            " · ".join(f"**{_text(line.value)}** {_text(line.label)} ({_text(line.detail)})" for line in found),
            "",
        ]
    lines += [f"**{_text(status(report))}**", ""]
    lines += [f"- Data: {_text(report.data)}", f"- Environment: {_text(environment(report.environment))}", ""]
    for table in (comparisons(report), *tables(report)):
        lines += markdown_table(table)
    if report.notes:
        lines += ["## Notes", "", *(f"- {_text(note)}" for note in report.notes), ""]
    return "\n".join(lines)


def html(report: Report) -> str:
    """The report as one self-contained page, in the reader's light or dark theme."""
    present = {series(stage) for stage in report.stages}
    return page(
        "report.html.jinja",
        report=report,
        title=title(report),
        subject=subject(report),
        headlines=headlines(report),
        status=status(report),
        failed=[gate for gate in report.gates if not gate.passed],
        environment=environment(report.environment),
        key={name: label for name, label in SERIES.items() if name in present},
        plots=plots(report),
        comparisons=comparisons(report),
        tables=tables(report),
    )


def page(template: str, folder: Path = Path(__file__).parent, **values: object) -> str:
    """A template in ``folder`` that extends ``page.html.jinja``, where styles are. values: ``title`` and its own."""
    templates = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(template).render(paint=PAINT, **values)


def title(report: Report) -> str:
    return f"{report.model} · {report.variant}"


def headlines(report: Report) -> list[Headline]:
    """Faster, smaller, and what it costs; the plain numbers when the chain has a single stage."""
    if (found := ends(report)) is None:
        return []
    first, last = found
    before, after = first.metric.value, last.metric.value
    if first is last:
        return [
            Headline(f"{number(last.latency_ms.p50)} ms", "p50 latency", "of a single request"),
            Headline(f"{number(last.size_bytes / 1e6)} MB", "model size", f"{last.parameters:,} parameters"),
            Headline(number(after, 4), last.metric.name, f"{interval(last.metric)}, 95 % interval"),
        ]
    latencies = f"p50 {number(first.latency_ms.p50)} → {number(last.latency_ms.p50)} ms"
    sizes = f"{number(first.size_bytes / 1e6)} → {number(last.size_bytes / 1e6)} MB"
    better = "higher is better" if last.metric.higher_is_better else "lower is better"
    share = (after - before) / 100 if last.metric.points else after / before - 1 if before else math.nan
    change = loss(share, last.metric.points)
    return [
        Headline(ratio(first.latency_ms.p50, last.latency_ms.p50), "faster", latencies),
        Headline(ratio(first.size_bytes, last.size_bytes), "smaller", sizes),
        Headline(change, last.metric.name, f"{number(before, 4)} → {number(after, 4)}, {better}"),
    ]


def subject(report: Report) -> str:
    """What the headlines compare."""
    if (found := ends(report)) is None:
        return ""
    first, last = found
    return last.name if first is last else f"{last.name} against {first.name}"


def ends(report: Report) -> tuple[Stage, Stage] | None:
    """Where the chain begins, and the stage that was published (or else the chain's last); None without a chain."""
    chain = [stage for stage in report.stages if stage.role == "chain"]
    published = [stage for stage in chain if report.published and stage.name == report.published.stage]
    return (chain[0], (published or chain)[-1]) if chain else None


def status(report: Report) -> str:
    """One sentence: what was published, or why nothing was."""
    if report.published:
        found = report.published
        return f"Published {found.stage} as version {found.version}: {found.path} (sha256 {found.sha256[:12]})"
    failed = [gate.name for gate in report.gates if not gate.passed]
    if failed:
        return f"Not published: {len(failed)} of {len(report.gates)} gates failed ({', '.join(failed)})"
    return "Not published"


def environment(known: Mapping[str, Any]) -> str:
    """One line: the machine and the versions that the numbers belong to, of ``benchmark.environment``."""
    threads = known.get("threads")
    parts = [
        str(known.get("cpu", "unknown CPU")),
        f"{known['cores']} cores" if "cores" in known else "",
        " ".join(known.get("isa", [])),
        f"{threads} thread{'' if threads == 1 else 's'} per model" if threads else "",
        f"device {known['device']}" if "device" in known else "",
        ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items()),
    ]
    return " · ".join(part for part in parts if part)


def markdown_table(table: Table) -> list[str]:
    """A table as lines under its title; none for one without rows."""
    if not table.rows:
        return []
    lines = [f"## {table.title}", "", *([_text(table.note), ""] if table.note else [])]
    lines.append(_row(map(_text, table.headings)))
    lines.append(_row("---:" if numeric else "---" for numeric in table.numeric))
    for row in table.rows:
        cells = [_text(cell) for cell in row.cells]
        if row.mark in ("published", "failed"):
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(_row(cells))
    return [*lines, ""]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(words: str) -> str:
    """Words that Markdown shall show as they are, on one line."""
    for special in ("\\", "`", "*", "|", "["):
        words = words.replace(special, f"\\{special}")
    return " ".join(words.replace("&", "&amp;").replace("<", "&lt;").split())
