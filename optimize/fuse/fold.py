"""Fold what does not depend on the request, and remove what does nothing.

ONNX Runtime's own basic optimisations do it: they keep to standard operators, so the result runs wherever the input
did. Folding at build time instead of at load time makes the file say what will run, and lets later passes match it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto


def fold(model: ModelProto) -> tuple[ModelProto, int]:
    """Returns the folded model and by how many nodes it is smaller."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(path)
    folded.ir_version = model.ir_version
    used = {node.domain for node in folded.graph.node} | {""}
    kept = [opset for opset in folded.opset_import if opset.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded, len(model.graph.node) - len(folded.graph.node)
