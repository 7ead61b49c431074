"""A benchmark with made-up figures: one model with requests, and one with streams."""

from __future__ import annotations

from dataclasses import replace

from loadtest.bench.results import CALLERS, THREADS, Bench, Benched, ModelBench, Served, ServerTime
from loadtest.closed_loop import Load
from optimize.benchmark import Latency
from optimize.report import MetricValue, Published, Report, Stage

NAMES = ("teacher_torch_fp32", "student_torch_fp32", "student_onnx_fp32", "student_onnx_int8")


def stage(name: str, p50: float) -> Stage:
    metric = MetricValue("MAE (MW)", 140.0 + p50, (139.0, 150.0), False, p50 / 1000, (-0.01, 0.02))
    runtime, precision = ("torch" if "_torch_" in name else "onnxruntime"), ("int8" if "int8" in name else "fp32")
    size = int(1e6 * p50)
    return Stage(name, "chain", runtime, precision, 250_000, size, latency(p50), 1000 / p50, 16, None, metric, {},
                 None, None, None)  # fmt: skip


def latency(p50: float) -> Latency:
    return Latency(p50, 1.2 * p50, 1.5 * p50, 300)


def served(p50: float, protocols: tuple[str, ...]) -> Served:
    load = {
        protocol: {
            callers: Load(1000 / p50 * callers**0.5, 900 / p50, 1100 / p50, latency(p50 * callers**0.6))
            for callers in CALLERS
        }
        for protocol in protocols
    }
    return Served(latency(p50), latency(p50 + 0.5), ServerTime(0.05, p50 + 0.2, 0.06, 0.24), 70_000_000, load)


def model(name: str, protocols: tuple[str, ...]) -> ModelBench:
    p50s = dict(zip(NAMES, (6.0, 2.4, 1.5, 0.6), strict=True))
    stages = [stage(each, p50) for each, p50 in p50s.items()]
    found = Report(name, "small", True, "made up", {}, stages, [], Published("models/1", 1, "ab" * 32, NAMES[-1]))
    benched = [
        Benched(
            each,
            {threads: latency(p50s[each.name] / threads) for threads in THREADS},
            served(p50s[each.name], protocols) if each.runtime == "onnxruntime" else None,
        )
        for each in stages
    ]
    return ModelBench(found, benched, "requests" if "HTTP" in protocols else "chunks")


def bench() -> Bench:
    models = [model("load_forecast", ("gRPC", "HTTP")), model("speech", ("gRPC",))]
    unserved = replace(models[0].stages[2], served=None)
    return Bench({"cpu": "a CPU", "cores": 2}, [replace(models[0], stages=[*models[0].stages[:2], unserved,
                 models[0].stages[3]]), models[1]], {"seconds": 1.0})  # fmt: skip
