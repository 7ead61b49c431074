"""Accuracy against latency: every stage a named point, its uncertainty, and the front that nothing beats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from optimize.report import Stage
from optimize.report_labels import Box, Point, place
from optimize.report_svg import INK, MUTED, PAINT, TEXT, WIDTH, svg
from optimize.report_tables import loss, number, series

_MARKER = {"torch": "o", "fp32": "s", "fp16": "^", "int8": "D", "other": "v"}
_HEIGHT, _LABEL = 350.0, TEXT - 2


def drawable(stages: Sequence[Stage]) -> list[Stage]:
    """Those that have a place in the plot: a latency above zero and a loss that is a number."""
    return [stage for stage in stages if all(map(math.isfinite, _loss(stage))) and stage.latency_ms.p50 > 0]


def pareto_front(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that no other beats in both latency and metric, fastest first."""
    front: list[Stage] = []
    for stage in sorted(stages, key=lambda stage: (stage.latency_ms.p50, _loss(stage)[0])):
        if not front or _loss(stage)[0] < _loss(front[-1])[0]:
            front.append(stage)
    return front


def draw(stages: Sequence[Stage], published: str) -> str:
    """Loss to the teacher over p50 as SVG; the right axis has the metric itself, which is a function of the loss."""
    figure = Figure(figsize=(WIDTH / 72, _HEIGHT / 72), dpi=72)
    axes = figure.add_axes((0.11, 0.12, 0.75, 0.865))
    _scales(axes, stages)
    front = pareto_front(stages)
    steps = [stage.latency_ms.p50 for stage in front], [_loss(stage)[0] for stage in front]
    axes.step(*steps, where="post", color=MUTED, linewidth=1, dashes=(4, 3))
    for stage in stages:
        (lost, low, high), p50, kind = _loss(stage), stage.latency_ms.p50, series(stage)
        colour, alpha = PAINT[kind][0], 1 if stage.role == "chain" else 0.6
        axes.plot([p50, p50], [low, high], color=colour, linewidth=1.2, alpha=alpha)
        axes.plot(p50, lost, _MARKER[kind], color=colour, markersize=7, alpha=alpha)
        if stage.name == published:
            axes.plot(p50, lost, "o", markersize=15, markerfacecolor="none", markeredgecolor=colour)
    _label(axes, stages, published)
    words = "; ".join(
        f"{stage.name} {number(stage.latency_ms.p50)} ms, {stage.metric.name} {number(stage.metric.value, 4)}, "
        f"loss {loss(stage.metric.loss_to_teacher, stage.metric.points)}"
        for stage in stages
    )
    names = ", ".join(stage.name for stage in front)
    return svg(figure, "accuracy", f"Accuracy against latency: {words}. Pareto front: {names}.")


def _scales(axes: Axes, stages: Sequence[Stage]) -> None:
    """Room for labels around every point; up is better; milliseconds without exponents."""
    p50s, losses = [stage.latency_ms.p50 for stage in stages], [loss for stage in stages for loss in _loss(stage)]
    margin = max((max(p50s) / min(p50s)) ** 0.12, 1.3)
    room = max(0.12 * (max(losses) - min(losses)), 0.05)  # twice above, where the good ones crowd
    left, right = min(p50s) / margin, max(p50s) * margin
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(max(losses) + room, min(losses) - 2 * room)
    digits = (1, 2, 5) if right / left > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [digit * 10.0**power for power in range(-4, 6) for digit in digits]
    ticks = [tick for tick in ticks if left <= tick <= right]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("p50 latency, ms")
    axes.set_ylabel(f"loss to teacher, {'points' if stages[0].metric.points else '%'}")
    _metric_axis(axes, min(stages, key=lambda stage: abs(_loss(stage)[0])))


def _metric_axis(axes: Axes, stage: Stage) -> None:
    """The metric's own unit on the right, by way of the teacher's value, which any stage's loss gives away."""
    worse = -1.0 if stage.metric.higher_is_better else 1.0
    if stage.metric.points:
        teacher = stage.metric.value - worse * _loss(stage)[0]
    else:
        teacher = stage.metric.value / (1 + worse * _loss(stage)[0] / 100)
        worse *= teacher / 100

    def metric(lost: ArrayLike) -> ArrayLike:
        return teacher + worse * np.asarray(lost, float)

    def lost(metric: ArrayLike) -> ArrayLike:
        return (np.asarray(metric, float) - teacher) / worse

    axes.secondary_yaxis("right", functions=(metric, lost)).set_ylabel(stage.metric.name)


def _label(axes: Axes, stages: Sequence[Stage], published: str) -> None:
    """Each point's name in a free place near it, with a line to it where that is not beside it."""
    marks, points = [], []
    for stage in stages:
        (x, y), (_, low), (_, high) = axes.transData.transform([(stage.latency_ms.p50, y) for y in _loss(stage)])
        points.append(Point(float(x), float(y)))
        marks += [Box(x - 7, y - 7, x + 7, y + 7), Box(x - 2, min(low, high), x + 2, max(low, high))]
    widths = [0.6 * _LABEL * len(stage.name) for stage in stages]  # about; the browser has fonts of its own
    boxes = place(points, widths, _LABEL + 4, Box(*axes.bbox.extents), marks)
    for stage, point, box in zip(stages, points, boxes, strict=True):
        end = box.nearest(point)
        if math.dist(point, end) > 14:
            axes.plot([point.x, end.x], [point.y, end.y], color=MUTED, linewidth=0.6, transform=None)
        axes.text(
            (box.left + box.right) / 2,
            (box.bottom + box.top) / 2,
            stage.name,
            ha="center",
            va="center",
            fontsize=_LABEL,
            weight="bold" if stage.name == published else "normal",
            color=INK if stage.role == "chain" else MUTED,
            transform=None,
        )


def _loss(stage: Stage) -> tuple[float, float, float]:
    """Loss to the teacher and its 95 % interval, in percent."""
    low, high = stage.metric.loss_to_teacher_ci95
    return 100 * stage.metric.loss_to_teacher, 100 * low, 100 * high
