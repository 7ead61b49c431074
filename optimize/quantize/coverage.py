"""How much of a model really runs in low precision: of its weight bytes, and of its multiply-accumulates.

Both are read off the graph that will be served, not off what a tool says it did. Weights are the constants that an
operator multiplies by; scales, zero points and biases are none. Multiply-accumulates are counted at batch 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from optimize.quantize.plan import Plan

# Position of the weights among an operator's inputs.
_FLOAT_WEIGHTS = {"MatMul": (1,), "Gemm": (1,), "Conv": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
_INT8_WEIGHTS = {
    "DynamicQuantizeLSTM": (1, 2),
    "DynamicQuantizeMatMul": (1,),
    "MatMulInteger": (1,),
    "MatMulIntegerToFloat": (1,),
    "ConvInteger": (1,),
}
_GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Coverage:
    """Shares in [0, 1] in low precision; operators: how many of each type have weights; kept: the fp32 ones by name."""

    weight_bytes_fraction: float
    mac_fraction: float
    operators: dict[str, int] = field(default_factory=dict)
    kept_fp32: list[str] = field(default_factory=list)


def coverage(model: ModelProto) -> Coverage:
    """Measure a graph; shares are 0 for a model without weights. Bytes count as the fp32 bytes they stand for."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    shapes = _shapes_at_batch_one(model)
    weights = {True: 0, False: 0}
    macs = {True: 0, False: 0}
    operators: Counter[str] = Counter()
    kept: list[str] = []
    for node in model.graph.node:
        low = node.op_type in _INT8_WEIGHTS
        positions = _INT8_WEIGHTS.get(node.op_type) or _FLOAT_WEIGHTS.get(node.op_type, ())
        arrays = [constants[node.input[i]] for i in positions if i < len(node.input) and node.input[i] in constants]
        if not arrays:
            continue
        operators[node.op_type] += 1
        weights[low] += sum(array.size for array in arrays)
        macs[low] += _macs(node, arrays, shapes)
        if not low:
            kept.append(node.name)
    return Coverage(_share(weights), _share(macs), dict(operators), kept)


def planned_share(before: ModelProto, after: ModelProto, plan: Plan) -> tuple[float, list[str]]:
    """Of the weights that a plan wants in int8, the share that is, and the planned operators that are not."""
    wanted = [node.name for node in before.graph.node if node.name in plan and plan[node.name].precision == "int8"]
    constants = {tensor.name: prod(tensor.dims) for tensor in before.graph.initializer}
    sizes = {
        node.name: sum(constants.get(node.input[i], 0) for i in _FLOAT_WEIGHTS[node.op_type])
        for node in before.graph.node
        if node.name in wanted
    }
    kept = coverage(after).kept_fp32
    missed = [name for name in wanted if name in kept or f"{name}_MatMul" in kept]
    total = sum(sizes.values())
    return (1 - sum(sizes[name] for name in missed) / total if total else 0.0), missed


def _macs(node: NodeProto, weights: list[np.ndarray], shapes: dict[str, list[int]]) -> int:  # type: ignore[type-arg]
    size = sum(array.size for array in weights)
    if node.op_type in _GATES:
        return shapes[node.input[0]][0] * size  # (time, batch, features)
    if node.op_type in ("Conv", "ConvInteger"):
        return prod(shapes[node.output[0]][2:]) * size  # every weight meets every output position
    if node.op_type == "Gemm":
        return shapes[node.output[0]][0] * size
    return prod(shapes[node.input[0]][:-1]) * size


def _shapes_at_batch_one(model: ModelProto) -> dict[str, list[int]]:
    """Shapes of every value when each dynamic axis has size 1."""
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*fixed.graph.input, *fixed.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = 1
    del fixed.graph.value_info[:]
    _replace_contrib_rnn(fixed.graph)
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    return {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }


def _replace_contrib_rnn(graph: GraphProto) -> None:
    """ONNX has no shape rule for DynamicQuantizeLSTM: stand an LSTM of the same shape in its place."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLSTM":
            directions, hidden_by = shapes[node.input[2]][0], shapes[node.input[2]][1]
            node.op_type, node.domain = "LSTM", ""
            x = node.input[0]
            del node.input[:]
            weights = f"{node.name}/shape_of_weights"
            node.input.extend([x, weights, weights])
            kept = [attribute for attribute in node.attribute if attribute.name in ("hidden_size", "direction")]
            del node.attribute[:]
            node.attribute.extend(kept)
            shape = onnx.helper.make_tensor_value_info(weights, onnx.TensorProto.FLOAT, [directions, 1, hidden_by])
            graph.input.append(shape)


def _share(counts: dict[bool, int]) -> float:
    total = counts[True] + counts[False]
    return counts[True] / total if total else 0.0
