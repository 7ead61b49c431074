"""A torch module to a graph, by the TorchScript exporter.

It is used on purpose: it writes the weights of LSTM and GRU as plain initializers, without which nothing downstream
can quantise them, while the newer exporter leaves them behind Slice and Concat nodes.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn


def traced(
    module: nn.Module,
    example: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    opset_version: int,
) -> ModelProto:
    """The graph of ``module`` for inputs like the example's; axes: the dynamic ones of each input and output."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecation and of batch-dependent RNN states
        torch.onnx.export(
            module.eval(),
            tuple(example),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(named) for name, named in axes.items()},
            opset_version=opset_version,
            dynamo=False,
        )
        return onnx.load(path)
