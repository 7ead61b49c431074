"""Matplotlib figures as inline SVG whose colours are the page's, so that they follow its light and dark themes.

Figures are drawn with the light colours of ``PAINT``; each of them then becomes the CSS variable of that name. Text
stays text. The same figure always becomes the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

# Name of the CSS variable: colour on a light page, colour on a dark one.
PAINT = {
    "ink": ("#1b2330", "#e8ebf0"),
    "muted": ("#5c6675", "#9aa5b4"),
    "line": ("#d9dee5", "#343d4a"),
    "torch": ("#c8591b", "#f2935c"),
    "fp32": ("#2e6cb8", "#78b0f5"),
    "fp16": ("#7a4fc0", "#b79bf2"),
    "int8": ("#0c8766", "#3ecb9f"),
    "other": ("#8a6d1f", "#d3b45c"),
}
INK, MUTED, LINE = (PAINT[name][0] for name in ("ink", "muted", "line"))
WIDTH, TEXT = 400.0, 12.0  # points: a phone shows a figure at nearly this size


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for everything drawn inside."""
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "text.parse_math": False,
        "font.size": TEXT,
        "text.color": INK,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    with rc_context(settings), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has fonts of its own
        yield


def svg(figure: Figure, name: str, words: str) -> str:
    """An <svg> element that a screen reader reads as ``words``, with ids that no figure of another name has."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = prefixed(drawn, name)
    for variable, (colour, _) in PAINT.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1)


def prefixed(drawn: str, name: str) -> str:
    """The same with its ids, and what refers to them, behind a name: several of a kind on one page need one each."""
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", drawn)


def alone(drawn: str) -> str:
    """What ``svg`` made, as a file of its own, which brings the colours that a page would have."""
    light, dark = ("".join(f"--{name}:{pair[theme]};" for name, pair in PAINT.items()) for theme in (0, 1))
    themes = f":root{{{light}}} @media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    return drawn.replace(">", f"><style>{themes}</style>", 1)
