"""A benchmark for people: Markdown, and one HTML page that loads nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.bench.results import CALLERS, PROTOCOLS, Bench, Benched, ModelBench, summary, tables
from optimize.report_labels import Box, Point, place
from optimize.report_page import environment, markdown_table, page
from optimize.report_plots import Plot, plots
from optimize.report_svg import INK, MUTED, PAINT, WIDTH, prefixed, style, svg
from optimize.report_tables import SERIES, number, series

TITLE = "Every model, every stage"
_PARTS = {"compute": "int8", "queue": "torch", "copies": "fp16", "transport": "fp32"}  # of a request: its colour
_ROW, _AXIS, _KEY = 40.0, 34.0, 26.0  # heights in points


def markdown(bench: Bench) -> str:
    lines = [f"# {TITLE}", "", environment(bench.environment), ""]
    lines += markdown_table(summary(bench))
    for model in bench.models:
        for table in tables(model):
            lines += markdown_table(replace(table, title=f"{model.title}: {table.title}"))
    return "\n".join(lines)


def html(bench: Bench) -> str:
    models = [
        {
            "title": model.title,
            "data": model.report.data,
            "key": {name: SERIES[name] for name in dict.fromkeys(series(it.stage) for it in model.stages)},
            "plots": _plots(model),
            "tables": tables(model),
        }
        for model in bench.models
    ]
    return page(
        "bench.html.jinja",
        Path(__file__).parent,
        title=TITLE,
        environment=environment(bench.environment),
        summary=summary(bench),
        models=models,
    )


def _plots(model: ModelBench) -> list[Plot]:
    """Those of the report, with this run's latencies, and what Triton adds. Ids are the model's own."""
    fresh = [replace(it.stage, latency_ms=it.in_process_ms[1]) for it in model.stages]
    found = plots(replace(model.report, stages=fresh, profiles=[]))
    served = [it for it in model.stages if it.served]
    if served:
        with style():
            found += [
                Plot(
                    "Latency against load",
                    f"By gRPC, at {', '.join(map(str, CALLERS))} callers. Line: p50. Dashed: p99.",
                    _against_load(model, served),
                ),
                Plot(
                    "Where a request's time goes",
                    "One caller by gRPC, mean. Compute: the worker, with the model in it. Transport: what the client "
                    "saw beyond what Triton counts.",
                    _split(served),
                ),
            ]
    return [replace(plot, svg=prefixed(plot.svg, f"{model.report.model}-{model.report.variant}")) for plot in found]


def _against_load(model: ModelBench, served: list[Benched]) -> str:
    figure = Figure(figsize=(WIDTH / 72, 300 / 72), dpi=72)
    axes = figure.add_axes((0.13, 0.14, 0.84, 0.84))
    words = []
    for it in served:
        assert it.served is not None
        loads = [it.served.load[PROTOCOLS[0]][callers] for callers in CALLERS]
        rates = [load.requests_per_s for load in loads]
        colour, alpha = PAINT[series(it.stage)][0], 1 if it.stage.role == "chain" else 0.5
        axes.plot(rates, [load.latency_ms.p50 for load in loads], "o-", color=colour, alpha=alpha, markersize=4)
        axes.plot(rates, [load.latency_ms.p99 for load in loads], color=colour, alpha=alpha, dashes=(3, 3), linewidth=1)
        points = ", ".join(
            f"{rate:,.0f} at {number(load.latency_ms.p50)} ms" for rate, load in zip(rates, loads, strict=True)
        )
        words.append(f"{it.name}: {points}")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(f"{model.unit} a second")
    axes.set_ylabel("latency, ms")
    _name_lines(axes, served)
    return svg(figure, "load", f"Latency against load, by gRPC: {'; '.join(words)}.")


def _name_lines(axes: Axes, served: list[Benched]) -> None:
    """Each line's name near its end, where there is room."""
    ends = []
    for it in served:
        assert it.served is not None
        load = it.served.load[PROTOCOLS[0]][CALLERS[-1]]
        x, y = axes.transData.transform((load.requests_per_s, load.latency_ms.p50))
        ends.append(Point(float(x), float(y)))
    marks = [Box(end.x - 4, end.y - 4, end.x + 4, end.y + 4) for end in ends]
    boxes = place(ends, [5.6 * len(it.name) for it in served], 13, Box(*axes.bbox.extents), marks)
    for it, box in zip(served, boxes, strict=True):
        middle = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        colour = PAINT[series(it.stage)][0]
        axes.text(*middle, it.name, ha="center", va="center", fontsize=9, color=colour, transform=None)


def _split(served: list[Benched]) -> str:
    height = _KEY + _ROW * len(served) + _AXIS
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((0.01, _AXIS / height, 0.97, 1 - (_AXIS + _KEY) / height))
    words = []
    for row, it in enumerate(served):
        assert it.served is not None
        parts = {part: getattr(it.served.time_ms, part) for part in _PARTS}
        left = 0.0
        for part, width in parts.items():
            axes.barh(row, width, 0.34, left=left, color=PAINT[_PARTS[part]][0], linewidth=0)
            left += width
        axes.text(0, row - 0.27, it.name, va="bottom", color=INK)
        axes.text(
            1,
            row - 0.27,
            f"{number(left)} ms",
            ha="right",
            va="bottom",
            color=INK,
            transform=axes.get_yaxis_transform(),
        )
        words.append(f"{it.name} " + ", ".join(f"{part} {number(width)} ms" for part, width in parts.items()))
    axes.set_ylim(len(served) - 0.3, -0.8)
    axes.spines[["left", "right"]].set_visible(False)
    axes.set_yticks([])
    axes.set_xlabel("milliseconds")
    _key(figure, height)
    return svg(figure, "time", f"Where a request's time goes: {'; '.join(words)}.")


def _key(figure: Figure, height: float) -> None:
    """The parts' colours above the bars."""
    for column, (part, paint) in enumerate(_PARTS.items()):
        x, y = 0.02 + 0.24 * column, 1 - 0.5 * _KEY / height
        figure.text(x, y, "■", color=PAINT[paint][0], va="center")
        figure.text(x + 0.035, y, part, color=MUTED, va="center")
