"""What operators have to do, counted by hand; and whose time is whose, in loops too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from optimize.data.dataset import Arrays
from optimize.profiler.machine import Level, Machine
from optimize.profiler.onnx_profile import Entries, entries_of, optimised, own_times, profile_onnx
from optimize.profiler.profile import Profile
from optimize.profiler.roofline import operators
from tests.optimize.quantize.graphs import bytes_, floats, model, node
from tests.tiny_models import slow

ROWS, K, N, M = 3, 8, 32, 16
# 1 GB/s and 1 G products/s: a byte and a product take a nanosecond each, an int8 product half of one.
MACHINE = Machine((Level("L2", 1 << 20, 1.0), Level("memory", 1 << 40, 0.1)), 1.0, 2.0)


def two_products(batch: str | int = "batch") -> ModelProto:
    """x (batch, 8) by V (8, 32) and W (32, 16)."""
    nodes = [node("MatMul", "x V", "h"), node("Tanh", "h", "t"), node("MatMul", "t W", "y")]
    for made, name in zip(nodes, ("/first/MatMul", "/between/Tanh", "/second/MatMul"), strict=True):
        made.name = name
    return model(nodes, {"x": (batch, K)}, {"y": (batch, M)}, {"V": floats(K, N), "W": floats(N, M)})


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    onnx.save(two_products(), tmp_path / "m.onnx")
    feeds: list[Arrays] = [{"x": floats(ROWS, K)}, {"x": floats(ROWS, K) + 1}]
    return profile_onnx("two", tmp_path / "m.onnx", "fp32", feeds, MACHINE, 20)


def test_two_products_have_the_work_that_they_have(profile: Profile) -> None:
    first, between, second = (
        next(part for part in profile.parts if part.layer == layer) for layer in ("first", "between", "second")
    )
    assert (first.macs, between.macs, second.macs) == (ROWS * K * N, 0, ROWS * N * M)
    assert (first.weight_bytes, second.weight_bytes) == (4 * K * N, 4 * N * M)
    assert first.moved_bytes == 4 * (K * N + ROWS * K + ROWS * N)
    assert between.moved_bytes == 4 * 2 * ROWS * N
    assert first.limit_ms == pytest.approx(1e-6 * max(first.macs, first.moved_bytes))
    assert (first.arithmetic, between.arithmetic) == (first.moved_bytes < first.macs * 2, False)
    assert profile.weight_bytes == 4 * (K * N + N * M)
    assert [part.calls for part in profile.parts] == [1, 1, 1]


def test_the_parts_add_up_to_the_run(profile: Profile) -> None:
    assert sum(part.ms for part in profile.parts) + profile.outside_ms == pytest.approx(profile.ms)
    assert all(part.ms >= 0 for part in profile.parts)
    assert (profile.batch, profile.runs, profile.runtime) == (ROWS, 20, "onnxruntime")
    kinds = {part.operator: part for part in profile.by_operator()}
    assert (kinds["MatMul"].nodes, kinds["MatMul"].macs) == (2, ROWS * N * (K + M))
    assert sum(part.ms for part in profile.by_layer()) == pytest.approx(sum(part.ms for part in profile.parts))


def test_products_in_int8_are_counted_as_such() -> None:
    constants: Mapping[str, Any] = {"W": bytes_(K, N), "s": np.float32(1), "z": np.uint8(128)}
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("MatMulIntegerToFloat", "q W s s z", "y", "com.microsoft"),
    ]
    made = model(nodes, {"x": ("batch", K)}, {"y": ("batch", N)}, constants)
    product = next(one for one in operators(made, [{"x": floats(ROWS, K)}]) if one.macs)
    assert (product.low, product.macs) == (True, ROWS * K * N)
    assert product.weight_bytes == K * N + 4 + 1  # the scale, which both have, and the zero point too


def test_a_loop_has_its_body_once_for_every_trip(tmp_path: Path) -> None:
    onnx.save(slow().graph, tmp_path / "slow.onnx")
    found = profile_onnx("slow", tmp_path / "slow.onnx", "fp32", [{"steps": np.array([[7]])}], MACHINE, 20)
    product = next(part for part in found.parts if part.operator == "MatMul")
    assert (product.calls, product.macs) == (7, 7 * 64**3)
    loop = next(part for part in found.parts if part.operator == "Loop")
    assert (loop.calls, loop.macs, loop.moved_bytes) == (1, 0, 0)
    assert product.moved_bytes >= 7 * 64 * 64 * 4  # its weights are read again on every trip


def event(number: int, begin: int, end: int) -> dict[str, Any]:
    sizes = {"activation_size": "4", "output_size": "8"}
    return {"cat": "Node", "name": f"{number}_kernel_time", "ts": begin, "dur": end - begin, "args": sizes}


def test_time_in_a_loop_is_its_bodys_and_what_lies_between_trips_its_own(tmp_path: Path) -> None:
    """A Loop of two nodes and three trips: 2 µs between entries, which is the profile's, and 12 between trips."""
    work = operators(optimised(_saved(tmp_path)), [{"steps": np.array([[3]])}])
    numbers = [number for number, one in enumerate(work) if one.inside]
    loop = next(number for number, one in enumerate(work) if one.node.op_type == "Loop")
    first, second = numbers
    trips = [[event(first, at, at + 6), event(second, at + 8, at + 18)] for at in (100, 130, 160)]
    events = [*(one for trip in trips for one in trip), event(loop, 90, 200), {"name": "model_run"}]
    (run,) = entries_of(events, [one.inside for one in work])
    assert run.us == {first: 18, second: 30, loop: 110}
    assert (run.gaps, list(run.turns.values())) == ([2, 2, 2], [[12, 12]])
    assert (run.activations[first].read, run.activations[first].written) == (12, 24)
    assert own_times([run], work, 1) == {first: 18, second: 30, loop: 3 * (12 - 2)}


def test_entries_of_every_run_are_apart() -> None:
    end = {"name": "model_run"}
    runs = entries_of([event(0, 0, 5), end, event(0, 10, 12), event(0, 12, 14), end], [(), ()])
    assert [run.us for run in runs] == [{0: 5}, {0: 4}]
    assert all(isinstance(run, Entries) and not run.turns for run in runs)


def _saved(folder: Path) -> Path:
    onnx.save(slow().graph, folder / "slow.onnx")
    return folder / "slow.onnx"
