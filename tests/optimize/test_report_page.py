"""The report as Markdown and as a page: complete, honest about failures, safe against its own contents."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from math import nan

import pytest

from optimize.benchmark import Latency
from optimize.report import BatchDrift, GateResult, MetricValue, Parity, Published, Quantized, Report, Stage
from optimize.report import with_server_latency as with_server
from optimize.report_labels import Box, Point, place
from optimize.report_page import headlines, html, markdown, status
from optimize.report_plots import plots
from optimize.report_scatter import pareto_front
from optimize.report_svg import PAINT
from optimize.report_tables import number, percent, series, tables


def stage(name: str, megabytes: float, p50: float, mae: float, role: str = "chain") -> Stage:
    """A stage as a run measures it; precision and runtime follow from its name."""
    onnx, int8 = "_onnx_" in name, name.endswith("int8")
    loss, spread = mae / 140.2 - 1, 0.0 if name.startswith("teacher") else 0.006
    return Stage(
        name=name,
        role=role,
        runtime="onnxruntime" if onnx else "torch",
        precision="int8" if int8 else "fp32",
        parameters=int(megabytes * 1e6 / (1 if int8 else 4)),
        size_bytes=int(megabytes * 1e6),
        latency_ms=Latency(p50, 1.08 * p50, 1.31 * p50, 200),
        throughput_per_s=2100 / p50,
        throughput_batch=16,
        batch_p50_ms={"8": 5.5 * p50},
        server_latency_ms=None,
        metric=MetricValue("MAE (MW)", mae, (mae - 6.1, mae + 6.4), False, loss, (loss - spread, loss + spread)),
        also={"MASE": mae / 368},
        parity=Parity(0.61, 7e-4, 1e-4, 1e-3, (-1e-3, 2e-3), "student_torch_fp32") if onnx else None,
        quantized=Quantized(0.9972, 0.9991, {"DynamicQuantizeLSTM": 2}, ["/head/Gemm"]) if int8 else None,
        batch_invariance=BatchDrift(0.83, 0, 4344, 2.1e-4, {"shuffled": 0.83, "padded with zeros": 0.4})
        if onnx
        else None,
    )


STAGES = [
    stage("teacher_torch_fp32", 8.6, 8.8, 140.2),
    stage("student_torch_fp32", 3.3, 4.5, 140.6),
    stage("undistilled_torch_fp32", 3.3, 4.5, 143.4, role="beside"),
    stage("small_64_torch_fp32", 0.09, 1.05, 146.9, role="beside"),
    stage("student_onnx_fp32", 3.31, 2.1, 140.6),
    stage("student_onnx_fused", 3.3, 1.9, 140.6),
    stage("student_onnx_int8", 0.9, 0.68, 140.9),
]
REPORT = Report(
    model="load_forecast",
    variant="lstm",
    default=True,
    data="Victoria, hourly demand 2012 to 2014 (vic_elec_hourly.csv.gz); tested on July to December 2014",
    environment={
        "cpu": "Intel(R) Xeon(R) Processor",
        "cores": 2,
        "isa": ["avx2", "avx512f", "avx512_vnni"],
        "threads": 1,
        "device": "cpu",
        "versions": {"python": "3.11.2", "torch": "2.13.0", "onnxruntime-gpu": "1.31.1", "numpy": "1.26.4"},
    },
    stages=STAGES,
    gates=[
        GateResult("parity of student_onnx_fp32", True, 4.2e-7, 1e-4, False, "report it"),
        GateResult("parity of student_onnx_int8", True, 7e-4, 0.05, False, "keep more operators in fp32 in the plan"),
        GateResult("metric loss to teacher", True, 0.00499, 0.01, False, "use a larger student"),
        GateResult("metric change in company", True, 2.1e-4, 0.001, False, "keep more operators in fp32"),
        GateResult("planned weights in int8", True, 1.0, 0.95, True, "use --retune"),
    ],
    published=Published("model_repository/load_forecast/3", 3, "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "student_onnx_int8"),
    baselines={"same hour yesterday": 402.7, "same hour last week": 318.9},
    comparisons={
        "faster than the torch teacher": 12.94,
        "faster than the same network in torch": 6.62,
        "faster than the same network in ONNX fp32": 3.09,
        "faster than the smallest torch network within 1 % of the teacher (student_torch_fp32)": 6.62,
        "smaller than the torch teacher": 9.56,
        "items per second against the torch teacher": 11.2,
    },
    fusion={"constants folded, no-ops removed": 31, "zero RNN states dropped": 4, "left-overs folded": 0},
    plan={
        "/encoder/LSTM": {
            "operator": "LSTM",
            "precision": "int8",
            "reason": "2.8 times faster",
        },
        "/head/Gemm": {"operator": "Gemm", "precision": "fp32", "reason": "not faster in int8 at batch 1"},
    },
    notes=["undistilled: the student's twin, trained on hard targets alone"],
)
FAILED = replace(
    REPORT,
    gates=[replace(gate, passed=False, value=0.021) if "loss" in gate.name else gate for gate in REPORT.gates],
    published=None,
)
BARE = Report("m", "v", True, "nothing", {}, [replace(STAGES[-1], parity=None, quantized=None)], [], None)
EMPTY = replace(BARE, stages=[])
NO_NUMBERS = replace(
    REPORT,
    stages=[replace(found, metric=MetricValue("BLEU", nan, (nan, nan), True, nan, (nan, nan))) for found in STAGES],
)
MANY = replace(REPORT, stages=[replace(found, name=f"{found.name}_{i}") for found in STAGES for i in range(4)])
HOSTILE = """<script>alert("x")</script> & '$x^2$' | `a` *b* --> ]]> 漢字"""


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a test asks for."""

    void = frozenset({"meta", "br", "hr", "link", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


def test_markdown_has_every_part() -> None:
    text = markdown(REPORT)
    parts = [found.name for found in REPORT.stages] + [gate.name for gate in REPORT.gates]
    parts += [*REPORT.comparisons, *REPORT.baselines, *REPORT.fusion, *REPORT.plan, *REPORT.notes, REPORT.data]
    assert [part for part in parts if part not in text] == []
    assert "student_onnx_int8 against teacher_torch_fp32" in text
    assert "**12.9×** faster (p50 8.80 → 0.680 ms)" in text
    assert "140.9 (134.8 to 147.3)" in text
    assert "Published student_onnx_int8 as version 3" in text
    assert "avx512_vnni" in text
    assert "≤ 0.01 |" in text
    assert "≥ 0.95 |" in text


def test_markdown_tables_are_rectangular() -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", markdown(replace(REPORT, model=HOSTILE, notes=[HOSTILE])), re.MULTILINE)
    assert len(blocks) == 1 + len(tables(REPORT))
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_chain_comes_first_and_the_published_stage_stands_out() -> None:
    rows = tables(REPORT)[0].rows
    assert [row.mark for row in rows] == ["", "", "", "", "published", "beside", "beside"]
    assert rows[-1].cells[0] == "small_64_torch_fp32"


def test_failed_gates_stand_out() -> None:
    text, page = markdown(FAILED), html(FAILED)
    assert "| **metric loss to teacher** | **FAILED** | **0.0210** | **≤ 0.01** | **use a larger student** |" in text
    assert status(FAILED) == "Not published: 1 of 5 gates failed (metric loss to teacher)"
    assert page.count('<tr class="failed">') == 1
    assert 'class="status bad"' in page
    assert 'class="failed"' not in html(REPORT)
    assert 'class="status"' in html(REPORT)
    assert 'class="status idle"' in html(BARE)


def test_latency_through_triton_is_a_column_once_it_is_known() -> None:
    heading = "p50 by Triton, ms"
    assert heading not in markdown(REPORT)
    assert heading in markdown(with_server(REPORT, {"student_onnx_int8": Latency(1.07, 1.3, 1.6, 500)}))


def test_headlines_are_of_the_published_stage() -> None:
    assert [line.value for line in headlines(REPORT)] == ["12.9×", "9.56×", "+0.50 %"]
    fused = replace(REPORT, published=Published("p", 1, "0", "student_onnx_fused"))
    assert [line.value for line in headlines(fused)] == ["4.63×", "2.61×", "+0.29 %"]
    assert [line.value for line in headlines(BARE)] == ["0.680 ms", "0.900 MB", "140.9"]
    assert headlines(EMPTY) == []


@pytest.mark.parametrize("report", [REPORT, FAILED, BARE, EMPTY, NO_NUMBERS, MANY])
def test_the_page_is_sound_and_loads_nothing(report: Report) -> None:
    text = html(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
        assert all(value.startswith("#") for value in page.all(name))
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", text))
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.all("xlink:href")} <= set(ids)
    assert page.tags.count("svg") == page.all("role").count("img")
    assert set(page.all("scope")) <= {"col", "row"}
    assert len(page.all("scope")) == page.tags.count("th")
    assert markdown(report).startswith(f"# {report.model}")


def test_hostile_text_is_shown_and_not_run() -> None:
    stages = [replace(found, name=f"{HOSTILE}{i}") for i, found in enumerate(STAGES)]
    report = replace(
        REPORT,
        model=HOSTILE,
        data=HOSTILE,
        stages=stages,
        gates=[GateResult(HOSTILE, False, nan, 1.0, False, HOSTILE)],
        notes=[HOSTILE],
        plan={HOSTILE: {"operator": HOSTILE, "precision": HOSTILE, "reason": HOSTILE}},
        environment={"cpu": HOSTILE},
    )
    page = Page(html(report))
    assert "script" not in page.tags
    assert page.words.count(f"{HOSTILE}6") >= 5
    assert any(f"{HOSTILE}6" in label for label in page.all("aria-label"))
    assert "<script" not in markdown(report)


def test_the_same_report_is_the_same_page() -> None:
    assert html(REPORT) == html(REPORT)


def test_plots_have_no_colours_of_their_own() -> None:
    drawn = "".join(plot.svg for plot in plots(REPORT))
    assert re.findall(r"#[0-9a-f]{6}", drawn) == []
    assert {f"--{series(found)}" for found in STAGES} <= set(re.findall(r"var\((--\w+)\)", drawn))
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(PAINT)


def test_plots_without_numbers_are_left_out() -> None:
    assert [plot.title for plot in plots(NO_NUMBERS)] == ["Latency per stage", "Size per stage"]
    assert [plot.title for plot in plots(BARE)] == ["Latency per stage", "Size per stage"]
    assert plots(EMPTY) == []


def test_pareto_front_has_what_nothing_beats() -> None:
    front = [found.name for found in pareto_front(STAGES)]
    assert front == ["student_onnx_int8", "student_onnx_fused", "teacher_torch_fp32"]


def test_labels_find_free_places() -> None:
    points = [Point(60.0 + 9 * i, 100.0 + 7 * (i % 3)) for i in range(6)]
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    inside = Box(0, 0, 300, 250)
    boxes = place(points, [80.0] * 6, 12.0, inside, marks)
    assert boxes == place(points, [80.0] * 6, 12.0, inside, marks)
    for index, box in enumerate(boxes):
        assert box.within(inside)
        assert not box.touches(marks + boxes[:index])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.68, "0.680"), (8.8, "8.80"), (140.2, "140"), (999.7, "1,000"), (12400, "12,400"), (2.1e-6, "2.1e-6"), (0, "0")],
)
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_percentages_keep_their_sign() -> None:
    assert percent(-0.0312, signed=True) == "−3.12 %"
    assert percent(0.005, signed=True) == "+0.50 %"
    assert percent(nan) == "n/a"


def test_latency_of_batches_has_a_column_each() -> None:
    assert "| p50 of 8, ms |" in markdown(REPORT)
    assert f" {number(5.5 * 8.8)} |" in markdown(REPORT)


def test_losses_of_a_percentage_are_counted_in_points() -> None:
    """From 1.5 to 1.8 % of wrong words is 0.30 points, not 20 %; the right axis of the plot says 1.8."""
    wer = MetricValue("WER (%)", 1.8, (1.0, 2.5), False, 0.003, (-0.001, 0.007), points=True)
    teacher = replace(STAGES[0], metric=replace(wer, value=1.5, loss_to_teacher=0.0, loss_to_teacher_ci95=(0.0, 0.0)))
    report = replace(REPORT, stages=[teacher, *(replace(stage, metric=wer) for stage in STAGES[1:])])
    assert headlines(report)[2].value == "+0.30 points"
    assert "+0.30 points (−0.10 to +0.70)" in markdown(report)
    assert any("loss to teacher, points" in plot.svg for plot in plots(report))
