"""The report as Markdown and as a page: complete, honest about failures, safe against its own contents."""

from __future__ import annotations

from optimize.benchmark import Latency
from optimize.report import (
    BatchDrift,
    GateResult,
    MetricValue,
    Parity,
    Published,
    Quantized,
    Report,
    Stage,
)


def stage(name: str, megabytes: float, p50: float, mae: float, onnx: bool = True, role: str = "chain") -> Stage:
    """A stage as a run measures it; precision and runtime follow from its name."""
    int8 = name.endswith("int8")
    loss = mae / 140.2 - 1
    spread = 0.0 if name.startswith("teacher") else 0.006
    return Stage(
        name=name,
        role=role,
        runtime="onnxruntime" if "_onnx_" in name else "torch",
        precision="int8" if int8 else "fp32",
        parameters=int(megabytes * 1e6 / (1 if int8 else 4)),
        size_bytes=int(megabytes * 1e6),
        latency_ms=Latency(p50, 1.08 * p50, 1.31 * p50, 200),
        throughput_per_s=2100 / p50,
        throughput_batch=16,
        server_latency_ms=None,
        metric=MetricValue("MAE (MW)", mae, (mae - 6.1, mae + 6.4), False, loss, (loss - spread, loss + spread)),
        parity=Parity(0.61 if int8 else 0.0004, 7e-4 if int8 else 4.2e-7, "student_torch_fp32")
        if "_onnx_" in name
        else None,
        quantized=Quantized(0.9972, 0.9991, {"DynamicQuantizeLSTM": 2}, ["/head/Gemm"]) if int8 else None,
        batch_invariance=BatchDrift(0.83 if int8 else 1.2e-4, 0, 4344, 2.1e-4 if int8 else 1e-9)
        if "_onnx_" in name
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
        GateResult("parity of student_onnx_fp32", True, 4.2e-7, 1e-4, "report it"),
        GateResult("parity of student_onnx_int8", True, 7e-4, 0.05, "keep more operators in fp32 in the plan"),
        GateResult("metric loss to teacher", True, 0.00499, 0.01, "use a larger student"),
        GateResult("metric change in company", True, 2.1e-4, 0.001, "keep more operators in fp32"),
        GateResult("planned weights in int8", True, 1.0, 0.95, "use --retune"),
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
