"""What a real browser makes of a page: headless Chromium, without network, at any width and on paper."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest

PHONE, DESK = 390, 1280  # pixels wide
_PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
needs_browser = pytest.mark.skipif(_PROGRAM is None, reason="no Chromium; apt-get install chromium")

# The page is in a frame of the width asked for: the window itself has a least width.
_LOOK = """
<iframe id="page" style="border:0" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument, ids = [...page.querySelectorAll("[id]")].map(e => e.id);
  const clipped = e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible";
  const found = JSON.stringify({{
    sideways: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    height: page.documentElement.scrollHeight,
    figures: [...page.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().height > 40).length,
    rows: page.querySelectorAll("tbody tr").length,
    loaded: page.defaultView.performance.getEntriesByType("resource").length,
    repeated_ids: [...new Set(ids.filter((id, place) => ids.indexOf(id) !== place))],
    overflowing: [...page.querySelectorAll("p, h1, h2, h3, li, .card, figure")].filter(clipped).length,
  }});
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = found;
}});
</script>
"""


@dataclass(frozen=True)
class Seen:
    """sideways: pixels to scroll to its right. height: of the whole page. loaded: how many things it fetched.
    overflowing: elements whose contents stick out."""

    sideways: int
    height: int
    figures: int
    rows: int
    loaded: int
    repeated_ids: list[str]
    overflowing: int


def look(page: str, width: int, place: Path) -> Seen:
    """Open a page. place: a folder for its file."""
    file = place / f"look-{width}.html"
    file.write_text(
        "<!DOCTYPE html><meta charset=utf-8>" + _LOOK.format(width=width, page=escape(page)), encoding="utf-8"
    )
    dumped = _run("--dump-dom", "--virtual-time-budget=5000", file.as_uri())
    found = dumped.partition('<pre id="found">')[2].partition("</pre>")[0]
    assert found, f"the page did not open: {dumped[:300]}"
    return Seen(**json.loads(found))


def printed(page: str, place: Path) -> bytes:
    """The page as PDF."""
    (place / "print.html").write_text(page, encoding="utf-8")
    _run("--no-pdf-header-footer", f"--print-to-pdf={place / 'print.pdf'}", (place / "print.html").as_uri())
    return (place / "print.pdf").read_bytes()


def _run(*arguments: str) -> str:
    assert _PROGRAM is not None
    done = subprocess.run([_PROGRAM, *_FLAGS, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
