"""A unique name for every node that multiplies by weights, in bodies too: the keys of quantisation plans.

    MatMul "", MatMul "", Gemm "/head/Gemm", Gemm "/head/Gemm"   ->   MatMul_0, MatMul_1, /head/Gemm, /head/Gemm_1

A name that is already unique stays, so the plans of earlier runs still fit. New names follow the order of the graph,
a node before what is in its bodies.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from optimize.onnx_interface import all_nodes

WEIGHTED = ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Attention")


def name_weighted_nodes(model: ModelProto) -> tuple[ModelProto, int]:
    """Returns a copy and how many nodes were named anew."""
    named = ModelProto.FromString(model.SerializeToString())
    nodes = list(all_nodes(named))
    taken = {node.name for node in nodes}
    seen: set[str] = {node.name for node in nodes if node.op_type not in WEIGHTED}
    count = 0
    for node in nodes:
        if node.op_type not in WEIGHTED:
            continue
        if not node.name or node.name in seen:
            node.name = _free(node, taken)
            count += 1
        taken.add(node.name)
        seen.add(node.name)
    return named, count


def _free(node: NodeProto, taken: set[str]) -> str:
    number = 1 if node.name else 0
    while f"{node.name or node.op_type}_{number}" in taken:
        number += 1
    return f"{node.name or node.op_type}_{number}"
