"""What the peers' servers are told, and how they read a request: its tensors' bytes, one after the other."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VARIABLE = "PEER_SETTINGS"
Array = NDArray[Any]
Run = Callable[[list[Array]], Sequence[Array]]


@dataclass(frozen=True)
class Settings:
    """runtime: "torch" for a saved module or "onnxruntime" for a graph in ``file``. inputs: name, dtype and shape
    without the batch. outputs: names. threadpool: where a request runs. workers: processes."""

    runtime: str
    file: str
    inputs: list[tuple[str, str, list[int]]]
    outputs: list[str]
    workers: int = 1
    threadpool: bool = False

    @classmethod
    def read(cls) -> Settings:
        return cls(**json.loads(os.environ[VARIABLE]))

    def variables(self) -> dict[str, str]:
        """For the environment of the server that shall read them."""
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def item_bytes(self) -> int:
        return sum(np.dtype(dtype).itemsize * math.prod(shape) for _, dtype, shape in self.inputs)

    def arrays(self, body: bytes) -> list[Array]:
        """The inputs of a request of any number of items: all of the first tensor, then all of the second, ..."""
        items, found, offset, writable = len(body) // self.item_bytes, [], 0, bytearray(body)
        for _, dtype, shape in self.inputs:
            count = items * math.prod(shape)
            found.append(np.frombuffer(writable, dtype, count, offset).reshape(items, *shape))
            offset += found[-1].nbytes
        return found

    def runner(self) -> Run:
        """The model, one thread."""
        return _torch(self) if self.runtime == "torch" else _onnxruntime(self)


def _torch(settings: Settings) -> Run:
    import torch

    torch.set_num_threads(1)
    module = torch.load(settings.file, weights_only=False).eval()

    def run(inputs: list[Array]) -> Sequence[Array]:
        with torch.inference_mode():
            outputs = module(*map(torch.from_numpy, inputs))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


def _onnxruntime(settings: Settings) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(settings.file, options, providers=["CPUExecutionProvider"])
    names = [name for name, _, _ in settings.inputs]

    def run(inputs: list[Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(settings.outputs, dict(zip(names, inputs, strict=True)))
        return outputs

    return run
