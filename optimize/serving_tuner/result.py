"""What a search found: the front of load against p99, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from loadtest.search import Bound
from optimize.report_svg import MUTED, PAINT, TEXT, WIDTH, alone, style, svg
from optimize.serving_tuner.duel import Duel
from optimize.serving_tuner.proving_ground import Run
from optimize.serving_tuner.search import Measured
from optimize.serving_tuner.space import Candidate
from optimize.specs import ServingSpec

_HEIGHT = 260.0


@dataclass(frozen=True)
class Point:
    """A candidate under one level of load."""

    candidate: Candidate
    run: Run


@dataclass(frozen=True)
class Result:
    """unit: of the levels. winner: the best of the profile that is published; None while the search goes on, or if it
    is the present one. written: the settings that were saved, and where. export: the command that publishes them."""

    model: str
    unit: str
    p99_limit_ms: float
    cores: int
    measured: tuple[Measured, ...]
    present: Candidate
    winner: Candidate | None = None
    duel: Duel | None = None
    serving: ServingSpec | None = None
    written: str | None = None
    export: str | None = None

    @property
    def front(self) -> list[Point]:
        """The sustained runs that no other beats in both load and p99, the least load first."""
        points = [Point(known.candidate, run) for known in self.measured for run in known.reading.runs if run.sustained]
        best: list[Point] = []
        for point in sorted(points, key=lambda point: (-point.run.level, point.run.p99_ms)):
            if not best or point.run.p99_ms < best[-1].run.p99_ms:
                best.append(point)
        return best[::-1]


def line(known: Measured) -> str:
    """A candidate and what it gave, for who waits."""
    reading = known.reading
    if known.refused:
        return f"  refused  {known.candidate}"
    least = "at least " if reading.bound == Bound.GENERATOR else ""
    p99 = f", p99 {reading.p99_ms:7.2f} ms" if math.isfinite(reading.p99_ms) else ""
    return f"{least}{reading.level:5}{p99}  {known.candidate}"


def verdict(result: Result) -> list[str]:
    """What came of it, in words."""
    lines = [f"present: {result.present}"]
    if result.winner is None or result.duel is None:
        lines.append("nothing better was found, and nothing was written")
    else:
        rounds = zip(result.duel.present, result.duel.challenger, strict=True)
        lines.append(f"best:    {result.winner}")
        lines.append(f"{result.unit}, in turns: {', '.join(f'{ours} -> {theirs}' for ours, theirs in rounds)}")
        better = f"better by {result.duel.gain:.0%}" if math.isfinite(result.duel.gain) else "the present one gave none"
        lines.append(
            f"{better}: written to {result.written}; to publish it: {result.export}"
            if result.written
            else "that is within the noise: nothing was written"
        )
    tops = {known.candidate.profile: 0 for known in result.measured}
    for known in result.measured:
        tops[known.candidate.profile] = max(tops[known.candidate.profile], known.reading.level)
    own = result.present.profile
    lines += [
        f"profile {profile} gave up to {level}, {own} {tops[own]}: to have it, export and tune with --profile {profile}"
        for profile, level in tops.items()
        if level > tops[own]
    ]
    if any(known.reading.bound == Bound.GENERATOR for known in result.measured):
        lines.append("the load generator was the limit of some; run fewer other programs, or give more --processes")
    return lines


def table(result: Result) -> Table:
    """The front: the more load, the later the answers."""
    made = Table(
        result.unit, "p50 ms", "p99 ms", "mean batch", "profile", "instances x threads", "batch", "wait us",
        title=f"{result.model}: Pareto front, p99 within {result.p99_limit_ms:g} ms",
    )  # fmt: skip
    for point in result.front:
        run = point.run
        numbers = (str(run.level), f"{run.p50_ms:.2f}", f"{run.p99_ms:.2f}", f"{run.mean_batch:.1f}")
        made.add_row(*numbers, *point.candidate.parameters.values())
    return made


def write(result: Result, folder: Path) -> list[Path]:
    """tuning.json, and tuning.svg if there is anything to draw; returns their paths."""
    content = asdict(result) | {"front": [asdict(point) for point in result.front]}
    path = folder / "tuning.json"
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
    if not result.front:
        return [path]
    (folder / "tuning.svg").write_text(alone(draw(result)))
    return [path, folder / "tuning.svg"]


def draw(result: Result) -> str:
    """p99 over load as SVG: every sustained run a point, by profile; the front a line, the limit a dashed one."""
    with style():
        figure = Figure(figsize=(WIDTH / 72, _HEIGHT / 72), dpi=72)
        axes = figure.add_axes((0.13, 0.16, 0.84, 0.8))
        colours = dict(zip(_profiles(result.measured), (PAINT["int8"][0], PAINT["fp32"][0]) * 2, strict=False))
        for known in result.measured:
            runs, profile = [run for run in known.reading.runs if run.sustained], known.candidate.profile
            places = [run.level for run in runs], [run.p99_ms for run in runs]
            axes.plot(*places, "o", color=colours[profile], markersize=4, alpha=0.5, label=profile)
        front = [point.run for point in result.front]
        axes.step([run.level for run in front], [run.p99_ms for run in front], where="pre", color=MUTED)
        axes.axhline(result.p99_limit_ms, color=MUTED, linewidth=1, dashes=(4, 3))
        axes.set_xlabel(result.unit)
        axes.set_ylabel("p99 ms")
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        axes.legend(named.values(), named.keys(), frameon=False, fontsize=TEXT - 2, loc="upper left")
        words = "; ".join(f"{run.level} {result.unit} at {run.p99_ms:.3g} ms" for run in front)
        return svg(figure, "tuning", f"p99 against load. Pareto front: {words}.")


def _profiles(measured: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(known.candidate.profile for known in measured))


def _plain(value: object) -> object:
    """With None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value
