"""A model behind BentoML with adaptive batching.

    python -m bentoml serve loadtest.peers.bentoml_service:service

in the peers' environment. Requests are JSON, rows of all inputs side by side: BentoML's batched calls take one array,
and its main server no binary ones. BentoML wants the service when the module is imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from numpy.typing import NDArray

from loadtest.peers.wire import Array, Settings

MAX_BATCH, MAX_LATENCY_MS = 64, 2000
SETTINGS = Settings.read()


class Peer:
    """One worker."""

    def __init__(self) -> None:
        self._run = SETTINGS.runner()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS)  # type: ignore[untyped-decorator]
    def infer(self, rows: Annotated[np.ndarray, DType("float64")]) -> np.ndarray:  # type: ignore[type-arg]
        """(items, all inputs' values) to (items, all outputs' values)."""
        return _beside(self._run(_apart(rows)))


service = bentoml.service(workers=SETTINGS.workers)(Peer)


def _apart(rows: NDArray[np.float64]) -> list[Array]:
    sizes = [math.prod(shape) for _, _, shape in SETTINGS.inputs]
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    return [
        part.reshape(-1, *shape).astype(dtype) for part, (_, dtype, shape) in zip(parts, SETTINGS.inputs, strict=True)
    ]


def _beside(outputs: Sequence[Array]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(output, float).reshape(len(output), -1) for output in outputs], axis=1)
