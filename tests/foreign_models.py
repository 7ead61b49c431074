"""Models with states as others export them: states of any name, the batch and the time on any axis."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn


class TimeMajorLstm(nn.Module):
    """Two layers; x (time, batch, 5), states (layers, batch, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, width, 2), nn.Linear(width, 3)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (hidden, cell) = self.rnn(x, (hidden, cell))
        return self.head(y), cell, hidden  # in another order than they come in


class Gru(nn.Module):
    """x (batch, 6, time), a state (1, batch, 16); answers per step, and (batch,) with the last step's level."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 16, batch_first=True)

    def forward(self, x: Tensor, hidden: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, hidden = self.rnn(x.transpose(1, 2), hidden)
        return y * gain[:, None, None], y[:, -1].mean(dim=1), hidden


class Detector(nn.Module):
    """As voice detectors are: one chunk of 64 samples to one number, a sampling rate, a tail of the last samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cell, self.head = nn.Conv1d(1, 16, 16, stride=8), nn.LSTM(16, 16), nn.Linear(16, 1)

    def forward(self, samples: Tensor, state: Tensor, tail: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heard = torch.cat([tail, samples * (rate.float() / 16000)], dim=1)
        frames = self.conv(heard[:, None]).relu().permute(2, 0, 1)
        y, (hidden, cell) = self.cell(frames, (state[:1], state[1:]))
        return torch.sigmoid(self.head(y[-1])), torch.cat([hidden, cell]), heard[:, -8:]


def lstm(path: Path, batch: str | None = "N", width: int = 16) -> Path:
    """batch: the name of its dynamic axis; None: frozen at 1."""
    rows = 1 if batch is None else 2
    inputs = (torch.zeros(8, rows, 5), torch.zeros(2, rows, width), torch.zeros(2, rows, width))
    names = ["X", "h0.in", "C_prev"], ["Logits/out", "C_next", "h0.out"]
    axes = {name: {1: batch} for name in (*names[0], *names[1])} if batch else {}
    axes |= {name: {0: "T", **axes.get(name, {})} for name in ("X", "Logits/out")}
    return _export(TimeMajorLstm(width), inputs, path, *names, axes)


def gru(path: Path) -> Path:
    inputs = (torch.zeros(2, 6, 8), torch.zeros(1, 2, 16), torch.ones(2))
    names = ["features", "state", "gain"], ["y", "level", "state_out"]
    axes = {
        "features": {0: "batch", 2: "time"}, "state": {1: "batch"}, "gain": {0: "batch"},
        "y": {0: "batch", 1: "time"}, "level": {0: "batch"}, "state_out": {1: "batch"},
    }  # fmt: skip
    return _export(Gru(), inputs, path, *names, axes)


def detector(path: Path) -> Path:
    inputs = (torch.zeros(2, 64), torch.zeros(2, 2, 16), torch.zeros(2, 8), torch.tensor(16000))
    names = ["input", "state", "context", "sr"], ["output", "stateN", "contextN"]
    axes = {"input": {0: "b"}, "state": {1: "b"}, "context": {0: "b"}, "stateN": {1: "b"}}
    return _export(Detector(), inputs, path, *names, axes)


def totals(path: Path, rows: int | str = "batch", **extra: Any) -> Path:
    """next = s (batch,) + the meant samples of x (batch, 4); y is that, too. Its inner names are the served ones.

    extra: ``nodes`` in place of the last sum, ``type`` of the next state.
    """
    nodes = [
        helper.make_node("Unsqueeze", ["Len", "one"], ["lengths"]),
        helper.make_node("Less", ["places", "lengths"], ["state_s"]),
        helper.make_node("Cast", ["state_s"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["X", "y"], ["x"]),
        helper.make_node("ReduceSum", ["x", "one"], ["sum"], keepdims=0),
        *extra.get("nodes", [helper.make_node("Add", ["sum", "State_S"], ["S"])]),
        helper.make_node("Identity", ["S"], ["state_total"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "totals",
        [
            info("X", TensorProto.FLOAT, [rows, 4]),
            info("Len", TensorProto.INT64, [rows]),
            info("State_S", TensorProto.FLOAT, [rows]),
        ],
        [info("state_total", TensorProto.FLOAT, [rows]), info("S", extra.get("type", TensorProto.FLOAT), [rows])],
        [
            numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in (("one", [1]), ("places", [0, 1, 2, 3]), ("flat", [1]))
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: list[str],
    output_names: list[str],
    axes: dict[str, dict[int, str]],
) -> Path:
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(
            parameter, std=1.2 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1, generator=random
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and batch-dependent RNN states
        torch.onnx.export(
            module.eval(),
            inputs,
            path,
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return path
