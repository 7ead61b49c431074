"""The official backend's parameter names and their meaning for ONNX Runtime."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from session_settings import SettingsError, open_session, run_options, session_options

from tests import tiny_models

Level = onnxruntime.GraphOptimizationLevel


def has_cuda() -> bool:
    """Whether the driver sees a device; asked of the driver itself, which needs no CUDA toolkit."""
    count = ctypes.c_int(0)
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuInit(0)
        driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value > 0


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {name: {"string_value": value} for name, value in values.items()}}


def test_threads_and_memory() -> None:
    options = session_options(
        parameters(intra_op_thread_count="3", inter_op_thread_count="2", execution_mode="1", enable_mem_arena="0")
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert options.enable_mem_pattern


def test_nothing_said_is_the_runtime_s_default() -> None:
    options = session_options({})
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (0, 0)
    assert options.graph_optimization_level == Level.ORT_ENABLE_ALL
    assert run_options({}) is None


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (-1, Level.ORT_ENABLE_BASIC),
        (0, Level.ORT_ENABLE_ALL),
        (1, Level.ORT_ENABLE_EXTENDED),
        (2, Level.ORT_DISABLE_ALL),
    ],
)
def test_graph_level(level: int, expected: Any) -> None:
    assert session_options({"optimization": {"graph": {"level": level}}}).graph_optimization_level == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("intra_op_thread_count", "two", "'intra_op_thread_count' is 'two'; expected a whole number"),
        ("execution_mode", "2", r"'execution_mode' is 2; expected 0 \(sequential\) or 1 \(parallel\)"),
        ("enable_mem_pattern", "maybe", "'enable_mem_pattern' is 'maybe'; expected 0 or 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        session_options(parameters(**{name: value}))


def test_an_accelerator_that_is_not_here_is_refused(tmp_path: Path) -> None:
    path = str(tiny_models.double().write(tmp_path) / "1" / "model.onnx")
    config = {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}}
    with pytest.raises(SettingsError, match="cpu_execution_accelerator 'openvino' is not available in this backend"):
        open_session(path, config, "CPU", 0)


@pytest.mark.skipif(has_cuda(), reason="this machine has a CUDA device")
def test_a_gpu_instance_never_runs_on_the_cpu_unnoticed(tmp_path: Path) -> None:
    path = str(tiny_models.double().write(tmp_path) / "1" / "model.onnx")
    with pytest.raises(SettingsError, match="KIND_GPU, but ONNX Runtime could not use CUDA on device 0"):
        open_session(path, {}, "GPU", 0)


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")
def test_a_gpu_instance_runs_on_the_gpu(tmp_path: Path) -> None:
    path = str(tiny_models.double().write(tmp_path) / "1" / "model.onnx")
    assert open_session(path, {}, "GPU", 0).get_providers()[0] == "CUDAExecutionProvider"
