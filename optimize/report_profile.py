"""Where the time of a stage goes, as a plot: every kind of operator beside what the machine would need for it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from optimize.profiler.profile import Part, Profile, others
from optimize.report_svg import INK, MUTED, PAINT, TEXT, WIDTH, svg
from optimize.report_tables import TIME_TITLE, number, series

TITLE = TIME_TITLE
CAPTION = (
    "The time of each stage by kind of operator. Solid: what this machine would need at its measured bandwidth and "
    "arithmetic rate. Pale: the rest. Grey: in no operator."
)
_ROW, _LETTER, _LEAST = 62.0, 0.62, 0.03  # height of a stage; width of a letter in heights; share that is drawn


def draw(profiles: Sequence[Profile]) -> str:
    """One bar for each profile, cut by kind of operator, as SVG."""
    height = _ROW * len(profiles)
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((0.01, 0, 0.98, 1))
    axes.set(xlim=(0, 1), ylim=(len(profiles) - 0.5, -0.5))
    axes.set_axis_off()
    words = []
    for place, profile in enumerate(profiles):
        colour = PAINT[series(profile)][0]
        axes.text(0, place - 0.2, profile.label, va="bottom", weight="bold")
        limit = f"{number(profile.ms)} ms, limit {number(profile.limit_ms)} ms"
        axes.text(1, place - 0.2, limit, va="bottom", ha="right", color=MUTED)
        left, told = 0.0, []
        for part in _longest(profile):
            share = profile.share(part.ms)
            axes.barh(place, share, 0.26, left, color=colour, alpha=0.25, linewidth=0)
            axes.barh(place, share * min(part.efficiency, 1), 0.26, left, color=colour, linewidth=0)
            axes.plot([left + share] * 2, [place - 0.13, place + 0.13], color=INK, linewidth=0.8)
            if text := _fitting(part.operator, f" {100 * share:.0f} %", int(share * WIDTH / (_LETTER * TEXT))):
                axes.text(left + share / 2, place + 0.17, text, va="top", ha="center")
            told.append(f"{part.operator} {100 * share:.0f} %")
            left += share
        axes.barh(place, profile.share(max(profile.outside_ms, 0.0)), 0.26, left, color=MUTED, alpha=0.4, linewidth=0)
        words.append(f"{profile.label}, {limit}: {', '.join(told)}")
    return svg(figure, "time", f"{TITLE}: {'; '.join(words)}.")


def _fitting(name: str, share: str, letters: int) -> str:
    """As much of a label as has room, at least a beginning of the name; else nothing."""
    for text in (name + share, name):
        if len(text) <= letters:
            return text
    return f"{name[: letters - 1]}…" if letters > 6 else ""


def _longest(profile: Profile) -> list[Part]:
    """The kinds of operator that can be seen, and the others as one."""
    kinds = profile.by_operator()
    shown = [part for part in kinds if profile.share(part.ms) >= _LEAST]
    return [*shown, *others(kinds[len(shown) :])]
