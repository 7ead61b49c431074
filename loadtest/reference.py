"""The published model in this process: what a served stream's answers are held against.

    local = LocalStream(Path("model_repository/speech/1/model.onnx"))
    local.answer({"pcm": chunk, "lengths": lengths})["tokens"]

It carries the state itself, from zeros: every input ``state_<what>`` gets what ``next_state_<what>`` was before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clients.signature import Array
from optimize.errors import UserError

STATE, NEXT_STATE = "state_", "next_state_"
_DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}


class LocalStream:
    """One stream, on one thread."""

    def __init__(self, file: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"--onnx needs onnxruntime: {error}; pip install -e '.[serve]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no common base
            raise UserError(f"'{file}' cannot be loaded by ONNX Runtime: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._states: dict[str, Array] = {
            entry.name: np.zeros([1, *entry.shape[1:]], _dtype(entry.type))
            for entry in self._session.get_inputs()
            if entry.name.startswith(STATE)
        }
        missing = [name for name in self._states if _next(name) not in self._outputs]
        if not self._states or missing:
            raise UserError(f"'{file}' is no streaming model: expected inputs state_* and as many outputs next_state_*")

    def answer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for the next chunk."""
        values = self._session.run(None, {**inputs, **self._states})
        found: dict[str, Array] = dict(zip(self._outputs, values, strict=True))
        self._states = {name: found[_next(name)] for name in self._states}
        return found


def _next(name: str) -> str:
    return NEXT_STATE + name.removeprefix(STATE)


def _dtype(said: str) -> str:
    kind = said.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(kind, kind)
