"""ONNX Runtime session settings from a model's configuration, under the official backend's names.

    optimization { graph { level: 1 } }
    parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
    instance_group [ { kind: KIND_GPU } ]

See https://github.com/triton-inference-server/onnxruntime_backend, "Model Config Options".
"""

from __future__ import annotations

from typing import Any

import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_EXECUTION_MODES = (onnxruntime.ExecutionMode.ORT_SEQUENTIAL, onnxruntime.ExecutionMode.ORT_PARALLEL)
_ALLOCATE_INITIALIZERS = "session.use_device_allocator_for_initializers"
_SHRINK_ARENA = "memory.enable_memory_arena_shrinkage"
_OPENING_CACHE = "opening_cache_mb"
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}

# CUDA options that the official backend still takes as parameters, with the words for its numbers.
_CUDA_PARAMETERS: dict[str, dict[str, str]] = {
    "gpu_mem_limit": {},
    "do_copy_in_default_stream": {},
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
}


class SettingsError(ValueError):
    """A setting that ONNX Runtime cannot be given; the message names it."""


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    """Threads, graph optimisation, execution mode and memory settings."""
    options = onnxruntime.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS.get(level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    mode = _whole(config, "execution_mode")
    if mode not in (0, 1):
        raise SettingsError(f"parameter 'execution_mode' is {mode}; expected 0 (sequential) or 1 (parallel)")
    options.execution_mode = _EXECUTION_MODES[mode]
    options.intra_op_num_threads = max(0, _whole(config, "intra_op_thread_count"))
    options.inter_op_num_threads = max(0, _whole(config, "inter_op_thread_count"))
    # Idle threads that spin take the cores from the server's own threads and from the other instances.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = _boolean(config, "enable_mem_arena", default=True)
    options.enable_mem_pattern = _boolean(config, "enable_mem_pattern", default=True)
    initializers = _parameter(config, _ALLOCATE_INITIALIZERS)
    if initializers is not None:
        options.add_session_config_entry(_ALLOCATE_INITIALIZERS, initializers)
    return options


def run_options(config: dict[str, Any]) -> onnxruntime.RunOptions | None:
    """Settings of every single run; None for the usual ones."""
    shrinkage = _parameter(config, _SHRINK_ARENA)
    if shrinkage is None:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_SHRINK_ARENA, shrinkage)
    return options


def opening_cache_bytes(config: dict[str, Any]) -> int:
    """How much the openings of streams may take (``openings.py``), which is a setting of this backend alone."""
    megabytes = _whole(config, _OPENING_CACHE)
    if megabytes < 0:
        raise SettingsError(f"parameter '{_OPENING_CACHE}' is {megabytes}; expected 0 (none) or a number of MiB")
    return megabytes << 20


def open_session(path: str, config: dict[str, Any], kind: str, device_id: int) -> onnxruntime.InferenceSession:
    """The model at ``path``, on the device that its instance group names.

    kind: "CPU" or "GPU". ONNX Runtime falls back from CUDA to the CPU without an error; here that is one.
    """
    options = session_options(config)
    if kind != "GPU":
        _check_accelerators(config, "cpu_execution_accelerator", known=())
        return onnxruntime.InferenceSession(path, options, providers=[CPU])
    _check_accelerators(config, "gpu_execution_accelerator", known=("cuda",))
    onnxruntime.preload_dlls()  # the CUDA libraries of the nvidia-* wheels
    providers = [(CUDA, {"device_id": str(device_id), **_cuda_options(config)}), CPU]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    used = session.get_providers()
    if used[0] != CUDA:
        raise SettingsError(
            f"the instance group says KIND_GPU, but ONNX Runtime could not use CUDA on device {device_id} and fell "
            f"back to {used[0]}; install the CUDA libraries (pip install -e .[gpu]) or say KIND_CPU"
        )
    return session


def _cuda_options(config: dict[str, Any]) -> dict[str, str]:
    options = {}
    for name, words in _CUDA_PARAMETERS.items():
        value = _parameter(config, name)
        if value is not None:
            options[name] = words.get(value, value)
    for accelerator in _accelerators(config, "gpu_execution_accelerator"):
        options |= accelerator.get("parameters", {})
    return options


def _check_accelerators(config: dict[str, Any], kind: str, known: tuple[str, ...]) -> None:
    for accelerator in _accelerators(config, kind):
        if accelerator["name"] not in known:
            raise SettingsError(f"{kind} '{accelerator['name']}' is not available in this backend")


def _accelerators(config: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    accelerators: list[dict[str, Any]] = config.get("optimization", {}).get("execution_accelerators", {}).get(kind, [])
    return accelerators


def _parameter(config: dict[str, Any], name: str) -> str | None:
    value: str | None = config.get("parameters", {}).get(name, {}).get("string_value")
    return value


def _whole(config: dict[str, Any], name: str) -> int:
    value = _parameter(config, name)
    try:
        return int(value or 0)
    except ValueError:
        raise SettingsError(f"parameter '{name}' is '{value}'; expected a whole number") from None


def _boolean(config: dict[str, Any], name: str, default: bool) -> bool:
    value = _parameter(config, name)
    if value is None:
        return default
    if value.lower() not in _BOOLEANS:
        raise SettingsError(f"parameter '{name}' is '{value}'; expected 0 or 1")
    return _BOOLEANS[value.lower()]
