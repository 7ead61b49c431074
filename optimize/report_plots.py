"""The plots of a report: latency and size of every stage as bars, and what the speed costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimize import report_profile, report_scatter
from optimize.report import Report, Stage
from optimize.report_svg import INK, MUTED, PAINT, WIDTH, style, svg
from optimize.report_tables import chain_first, number, ratio, series

_ROW, _AXIS = 40.0, 22.0  # heights in points, of one stage and of the axis below them


@dataclass(frozen=True)
class Plot:
    """One figure. svg: an <svg> element that also says in words what it shows."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Quantity:
    """What a bar shows. gain: the word for having less of it."""

    name: str
    unit: str
    gain: str
    of: Callable[[Stage], float]
    whiskers: bool = False

    def text(self, stage: Stage) -> str:
        return f"{number(self.of(stage))} {self.unit}"


LATENCY = Quantity("Latency", "ms", "faster", lambda stage: stage.latency_ms.p50, whiskers=True)
SIZE = Quantity("Size", "MB", "smaller", lambda stage: stage.size_bytes / 1e6)


def plots(report: Report) -> list[Plot]:
    """Latency, size, and accuracy against latency; what cannot be drawn, or compares nothing, is left out."""
    stages = chain_first(report.stages)
    published = report.published.stage if report.published else ""
    if not stages:
        return []
    with style():
        found = [
            Plot(
                "Latency per stage",
                "Bar: p50 of a single request. Shade: what the step saved. Whisker: p95 (tick) and p99 (end).",
                _bars(stages, LATENCY, published),
            ),
            Plot(
                "Size per stage",
                "Bar: the weights of a torch model, the file of an ONNX model. Shade: what the step saved.",
                _bars(stages, SIZE, published),
            ),
        ]
        if len(drawable := report_scatter.drawable(stages)) > 1:
            found.append(
                Plot(
                    "Accuracy against latency",
                    "Up and left is better. Error bar: 95 % interval of the paired difference to the teacher. "
                    "Dashed: the Pareto front, whose stages no other beats in both.",
                    report_scatter.draw(drawable, published),
                )
            )
        if report.profiles:
            found.append(Plot(report_profile.TITLE, report_profile.CAPTION, report_profile.draw(report.profiles)))
    return found


def _bars(stages: list[Stage], quantity: Quantity, published: str) -> str:
    """One bar per stage under its name; the shade behind it reaches back to the stage before it in the chain."""
    height = _ROW * len(stages) + _AXIS
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((0.01, _AXIS / height, 0.97, 1 - _AXIS / height))
    longest = max(map(quantity.of, stages)) or 1.0
    slowest = max(stage.latency_ms.p99 for stage in stages) if quantity.whiskers else 0.0
    axes.set_xlim(0, 1.03 * max(longest, min(slowest, 1.6 * longest)))
    axes.set_ylim(len(stages) - 0.3, -0.8)
    words = []
    for place, stage in enumerate(stages):
        colour, chain, value = PAINT[series(stage)][0], stage.role == "chain", quantity.of(stage)
        if chain and place and quantity.of(stages[place - 1]) > value:
            axes.barh(place, quantity.of(stages[place - 1]), 0.34, color=colour, alpha=0.16, linewidth=0)
        axes.barh(place, value, 0.34, color=colour, alpha=1 if chain else 0.55, linewidth=0)
        if quantity.whiskers:
            _whisker(axes, place, stage)
        gained = f"{ratio(quantity.of(stages[0]), value)} {quantity.gain}, " if chain and place else ""
        label = {"va": "bottom", "color": INK if chain else MUTED, "weight": _weight(stage, published)}
        axes.text(0, place - 0.27, stage.name, **label)  # type: ignore[arg-type]
        at_the_right = axes.get_yaxis_transform()
        axes.text(1, place - 0.27, gained + quantity.text(stage), ha="right", transform=at_the_right, **label)  # type: ignore[arg-type]
        words.append(f"{stage.name} {quantity.text(stage)}")
    chain_length = sum(stage.role == "chain" for stage in stages)
    if 0 < chain_length < len(stages):
        axes.axhline(chain_length - 0.74, color=MUTED, linewidth=0.8, dashes=(3, 3))
    axes.spines[["left", "right"]].set_visible(False)
    axes.set_yticks([])
    return svg(figure, quantity.name.lower(), f"{quantity.name} per stage: {'; '.join(words)}.")


def _whisker(axes: Axes, place: int, stage: Stage) -> None:
    """From p50 to p99 with a tick at p95; an arrow where it leaves the plot."""
    latency, end = stage.latency_ms, axes.get_xlim()[1]
    axes.plot([latency.p50, min(latency.p99, end)], [place, place], color=INK, linewidth=1.1)
    for at, half in ((latency.p95, 0.12), (latency.p99, 0.07)):
        if at <= end:
            axes.plot([at, at], [place - half, place + half], color=INK, linewidth=1.1)
    if latency.p99 > end:
        axes.plot(end, place, ">", markersize=6, color=INK, clip_on=False)


def _weight(stage: Stage, published: str) -> str:
    return "bold" if stage.name == published else "normal"
