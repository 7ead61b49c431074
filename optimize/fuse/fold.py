"""Fold what does not depend on the request, and remove what does nothing.

    f(constants) = constant,    Identity(x) = Dropout(x) = x,    BatchNormalization(Conv(x)) = Conv'(x),    ...

ONNX Runtime's own basic optimisations do it, in bodies too: constants, common subexpressions, no-ops, a batch norm or
a factor after a convolution. They keep to standard operators, so the result runs wherever the input did. Folding at
build time instead of at load time makes the file say what will run, and lets later passes match it. Only its pushing
of transposes is left out: it can leave more nodes than there were, and ``rearrange`` merges them instead. Afterwards
constants are initializers, never nodes, and what nothing uses is gone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto

from optimize.onnx_interface import all_nodes
from optimize.rewriting import read, written

_LEFT_OUT = ["TransposeOptimizer"]


def fold(model: ModelProto) -> tuple[ModelProto, int]:
    """Returns the folded model and by how many nodes it is smaller, those of bodies counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=_LEFT_OUT
        )
        folded = onnx.load(path)
    folded.ir_version = model.ir_version
    folded = written(read(folded))
    return folded, len(list(all_nodes(model))) - len(list(all_nodes(folded)))
