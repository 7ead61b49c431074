"""Where the time goes, in a report: the sentence, the table, the plot, and JSON and back."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from optimize.profiler.profile import Part, Profile
from optimize.report import from_json, to_json
from optimize.report_page import html, markdown
from optimize.report_plots import plots
from optimize.report_svg import PAINT
from optimize.report_tables import time_table
from tests.optimize.test_report_page import HOSTILE, REPORT, Page

PARTS = [
    Part("a", "DynamicQuantizeLSTM", "lstm", ms=0.6, nodes=2, macs=5e7, limit_ms=0.3, arithmetic_ms=0.3, low=True),
    *(Part(f"p{index}", f"Kind{index}", "top", ms=0.02, limit_ms=0.001, moved_bytes=4000) for index in range(9)),
]
PROFILE = Profile(
    "student_onnx_int8", "onnxruntime", "int8", 1, 50, 0.8, 0.8, 1.1, 1.5, 0.02, 900_000, PARTS, "75 % is in < LSTM"
)
TOLD = replace(REPORT, profiles=[PROFILE, replace(PROFILE, stage="student_onnx_fp32", precision="fp32")])


def test_the_report_has_sentence_table_and_plot() -> None:
    page = Page(html(TOLD))
    assert page.words.count("75 % is in < LSTM") == 2
    assert page.words.count("Where the time goes") == 2  # plot and table
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert "student_onnx_int8: 75 % is in &lt; LSTM." in markdown(TOLD)
    assert "Where the time goes" not in html(REPORT)


def test_the_table_has_the_longest_the_others_and_what_is_in_none() -> None:
    table = time_table([PROFILE], "operator", most=3)
    rows = [dict(zip(table.headings, row.cells, strict=True)) for row in table.rows]
    assert [row["operator"] for row in rows] == ["DynamicQuantizeLSTM", "Kind0", "Kind1", "others", "in none"]
    assert rows[0] | {"ms": "0.600", "share": "75.0 %", "of the limit": "50 %", "bound by": "arithmetic"} == rows[0]
    assert (rows[3]["nodes"], rows[3]["bound by"]) == ("7", "moving")
    assert (rows[4]["ms"], rows[4]["share"], rows[4]["of the limit"]) == ("0.0200", "2.5 %", "")
    assert [row.cells[1] for row in time_table([PROFILE], "layer").rows] == ["lstm", "top", "in none"]


def test_a_limit_above_the_time_is_not_told_as_a_share() -> None:
    odd = replace(PROFILE, parts=[replace(PARTS[0], limit_ms=0.7)])
    assert time_table([odd], "operator").rows[0].cells[-2] == "> 100 %"


def test_the_plot_tells_in_words_and_has_no_colours_of_its_own() -> None:
    drawn = plots(TOLD)[-1].svg
    assert "student_onnx_int8, 0.800 ms, limit 0.309 ms: DynamicQuantizeLSTM 75 %, others 22 %" in drawn
    assert re.findall(r"#[0-9a-f]{6}", drawn) == []
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(PAINT)


@pytest.mark.parametrize(
    "profile", [replace(PROFILE, parts=[], ms=0.0, outside_ms=0.0), replace(PROFILE, stage=HOSTILE)]
)
def test_odd_profiles_are_drawn_too(profile: Profile) -> None:
    assert "script" not in Page(html(replace(REPORT, profiles=[profile]))).tags


def test_json_and_back() -> None:
    assert from_json(to_json(TOLD)) == TOLD
    older = json.loads(to_json(REPORT))
    del older["profiles"]
    assert from_json(json.dumps(older)) == REPORT
