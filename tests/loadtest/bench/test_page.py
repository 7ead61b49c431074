"""The benchmark's tables, its JSON, and its page in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtest.bench.page import html, markdown
from loadtest.bench.results import from_json, summary, tables, to_json
from tests.browser import DESK, PHONE, look, needs_browser, printed
from tests.loadtest.bench import figures

BENCH = figures.bench()


def test_json_keeps_everything() -> None:
    assert from_json(to_json(BENCH)) == BENCH


def test_the_summary_compares_what_is_published_with_its_teacher() -> None:
    (row, _) = summary(BENCH).rows
    cells = dict(zip(summary(BENCH).headings, row.cells, strict=True))
    assert cells["model"] == "load_forecast · small"
    assert cells["faster"] == "10.0×"
    assert cells["above in process"] == "0.50"
    assert cells["/s, 16 callers"] == "6,667"


def test_streams_have_no_http_and_what_was_not_served_no_row() -> None:
    requests, streams = (tables(model)[2] for model in BENCH.models)
    assert [row.cells[0] for row in requests.rows] == ["student_onnx_int8, gRPC", "student_onnx_int8, HTTP"]
    assert [row.cells[0] for row in streams.rows] == ["student_onnx_fp32, gRPC", "student_onnx_int8, gRPC"]
    assert "chunks a second" in streams.note
    assert all(
        len(row.cells) == len(table.headings) for model in BENCH.models for table in tables(model) for row in table.rows
    )


def test_markdown_has_every_table() -> None:
    titles = re.findall(r"^## (.*)$", markdown(BENCH), re.MULTILINE)
    assert titles[0] == "What is published"
    assert len(titles) == 1 + sum(len(tables(model)) for model in BENCH.models)


@needs_browser
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_browser_shows_all_of_it_and_loads_nothing(width: int, tmp_path: Path) -> None:
    seen = look(html(BENCH), width, tmp_path)
    assert seen.sideways == 0
    assert seen.figures == 5 * len(BENCH.models)
    assert seen.rows == 2 + sum(len(table.rows) for model in BENCH.models for table in tables(model))
    assert seen.loaded == 0
    assert seen.repeated_ids == []
    assert seen.overflowing == 0


@needs_browser
def test_it_prints(tmp_path: Path) -> None:
    pages = printed(html(BENCH), tmp_path)
    assert pages.startswith(b"%PDF")
    assert 2 <= pages.count(b"/Type /Page\n") + pages.count(b"/Type /Page ") + pages.count(b"/Type /Page/") <= 12
