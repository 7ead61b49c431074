"""Where to write the names of points in a crowded plot: near the point, over nothing, with lines that do not cross.

Every label takes the nearest free place in turn. Who comes first matters, so several orders are tried, always the
same ones, and the best result is kept. Coordinates are points on paper, upwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_ORDERS = 24
_RADII = range(12, 160, 6)
# Where a label may stand: the direction from its point, and how much of the label lies left of there.
_DIRECTIONS = (
    *((1.0, 0.0, 0.0), (-1.0, 0.0, 1.0)),
    *((right, up, before) for right, before in ((0.7, 0.0), (-0.7, 1.0)) for up in (0.7, -0.7)),
    *((0.0, up, before) for up in (1.0, -1.0) for before in (0.5, 0.2, 0.8)),
)


class Point(NamedTuple):
    x: float
    y: float


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def touches(self, others: Iterable[Box]) -> bool:
        left, bottom, right, top = self
        return any(left < o.right and o.left < right and bottom < o.top and o.bottom < top for o in others)

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )

    def nearest(self, point: Point) -> Point:
        """The place of this box that is closest to a point."""
        return Point(min(max(point.x, self.left), self.right), min(max(point.y, self.bottom), self.top))


def place(points: Sequence[Point], widths: Sequence[float], height: float, inside: Box, marks: list[Box]) -> list[Box]:
    """One box per point, of its label's width, which touches neither the marks of the plot nor another label.

    In a hopeless crowd a label may cover what is there; it stays ``inside`` if it can.
    """
    orders = random.Random(0)
    best: tuple[tuple[int, float], dict[int, Box]] | None = None
    for _ in range(_ORDERS):
        order = orders.sample(range(len(points)), len(points))
        placed: dict[int, Box] = {}
        taken: list[Box] = []
        faults, distance = 0, 0.0
        for index in order:
            box, fault = _nearest_free(points[index], widths[index], height, inside, marks, taken)
            placed[index] = box
            taken += [box, *_line(points[index], box)]
            faults += fault
            distance += math.dist(points[index], box.nearest(points[index]))
        if best is None or (faults, distance) < best[0]:
            best = (faults, distance), placed
    assert best is not None
    return [best[1][index] for index in range(len(points))]


def _nearest_free(
    point: Point, width: float, height: float, inside: Box, marks: list[Box], taken: list[Box]
) -> tuple[Box, int]:
    """A place and how bad it is: 0 is free, 1 crosses a line or a label, 2 covers something."""
    crossing: Box | None = None
    covering: Box | None = None
    for radius in _RADII:
        for right, up, before in _DIRECTIONS:
            left, bottom = point.x + right * radius - before * width, point.y + up * radius - height / 2
            box = Box(left, bottom, left + width, bottom + height)
            if not box.within(inside):
                continue
            covering = covering or box
            if box.touches(marks) or box.touches(taken):
                continue
            if not any(piece.touches(taken) for piece in _line(point, box)):
                return box, 0
            crossing = crossing or box
    beside = Box(point.x, point.y, point.x + width, point.y + height)
    return (crossing, 1) if crossing else (covering or beside, 2)


def _line(point: Point, box: Box) -> list[Box]:
    """The way from a point to its label as small boxes, one every three points."""
    end = box.nearest(point)
    count = int(math.dist(point, end) / 3)
    ways = [
        Point(point.x + (end.x - point.x) * i / count, point.y + (end.y - point.y) * i / count) for i in range(1, count)
    ]
    return [Box(way.x - 0.5, way.y - 0.5, way.x + 0.5, way.y + 0.5) for way in ways]
