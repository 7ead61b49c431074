"""What this machine can do with one thread, measured: bytes it reads a second, and multiply-accumulates.

The yardstick of arithmetic is ONNX Runtime's own product of large matrices, which its kernels reach on small ones at
best. Bandwidth is that of a dot product whose operands stay in a level of cache, or in none. The fastest of many calls
counts, as what else the machine does can only make a call slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.benchmark import session, torch_threads
from optimize.rewriting import CONTRIB

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL = {"L2": 1 << 20, "L3": 32 << 20}  # bytes, where the system does not tell
_ROWS, _WIDTH = 128, 512  # of the yardstick's matrices: large, and done within a slice of a busy machine's time
_LARGEST = 256 << 20  # bytes of a working set that no cache is to hold
_SECONDS = 0.15  # of each measurement


@dataclass(frozen=True)
class Level:
    """A cache as one core sees it, or the memory: what it holds, and how fast it is read."""

    name: str
    size_bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class Machine:
    """levels: from near to far, the memory last. fp32, int8: 1e9 multiply-accumulates a second."""

    levels: tuple[Level, ...]
    fp32_gmacs: float
    int8_gmacs: float

    def level(self, size_bytes: float) -> Level:
        """The nearest level that holds so much."""
        return next((level for level in self.levels if size_bytes <= level.size_bytes), self.levels[-1])

    def moving_s(self, moved_bytes: float, held_bytes: float) -> float:
        """Seconds to move bytes that are part of so many in use."""
        return moved_bytes / self.level(held_bytes).gb_per_s / 1e9

    def multiplying_s(self, macs: float, low: bool) -> float:
        """Seconds of multiply-accumulates, eight bits by eight bits if ``low``."""
        return macs / (self.int8_gmacs if low else self.fp32_gmacs) / 1e9

    def __str__(self) -> str:
        rates = ", ".join(f"{level.name} {level.gb_per_s:.0f} GB/s" for level in self.levels)
        return f"{self.fp32_gmacs:.0f} G fp32 and {self.int8_gmacs:.0f} G int8 products/s; {rates}"


@cache
def measured() -> Machine:
    """Measured once in a process, in about a second."""
    caches = cache_sizes()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    levels = [Level(name, size, _bandwidth(size * 3 // 4)) for name, size in caches.items()]
    levels.append(Level("memory", memory, _bandwidth(min(4 * max(caches.values()), _LARGEST))))
    random = np.random.default_rng(0)
    activations = random.normal(size=(_ROWS, _WIDTH)).astype(np.float32)
    weights = random.normal(size=(_WIDTH, _WIDTH)).astype(np.float32)
    low = random.integers(0, 256, activations.shape, np.uint8), random.integers(-127, 128, weights.shape, np.int8)
    return Machine(tuple(levels), _rate("MatMul", activations, weights), _rate("MatMulIntegerToFloat", *low))


def cache_sizes(folder: Path = _CACHES) -> dict[str, int]:
    """Bytes of the caches for data beyond the first, which holds no model, by name."""
    found = {}
    try:
        for index in sorted(folder.glob("index*")):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction" and int(level) > 1 and size.endswith("K"):
                found[f"L{level}"] = int(size[:-1]) << 10
    except (OSError, ValueError):
        return dict(_USUAL)
    return found or dict(_USUAL)


def _bandwidth(size: int) -> float:
    """1e9 bytes a second, of a working set of so many bytes."""
    half = size // 8
    first, second = torch.ones(half), torch.ones(half)
    one = torch.ones(1)
    with torch_threads(1), torch.inference_mode():
        call = _fastest(lambda: torch.dot(one, one))
        seconds = _fastest(lambda: torch.dot(first, second))
    return 8 * half / max(seconds - call, 1e-9) / 1e9


def _rate(operator: str, activations: NDArray[np.generic], weights: NDArray[np.generic]) -> float:
    """1e9 multiply-accumulates a second of a product in ONNX Runtime."""
    integer = operator != "MatMul"
    constants = {"w": weights, **({"s": np.float32(0.01), "z": np.uint8(128)} if integer else {})}
    inputs = ["x", "w", "s", "s", "z"] if integer else ["x", "w"]
    kind = helper.np_dtype_to_tensor_dtype(activations.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], domain=CONTRIB if integer else "")],
        "product",
        [helper.make_tensor_value_info("x", kind, activations.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (len(activations), weights.shape[1]))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
    opened = session(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    seconds = _fastest(lambda: opened.run(None, {"x": activations}))
    return activations.size * weights.shape[1] / seconds / 1e9


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of as many calls as there is time for, three at least."""
    best, end, calls = float("inf"), time.perf_counter() + _SECONDS, 0
    while calls < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        calls += 1
    return best
