"""Names of weighted nodes: unique, stable, in bodies too."""

from onnx import TensorProto, helper

from optimize.fuse import fuse
from optimize.fuse.names import name_weighted_nodes
from optimize.onnx_interface import all_nodes
from tests import tiny_models
from tests.optimize.fuse.graphs import assert_same_answers, graph, random


def test_missing_and_doubled_names() -> None:
    body = "a = MatMul(x, w) b = MatMul(a, w) c = Gemm(b, w) d = Gemm(c, w) y = Relu(d)"
    model = graph("(float[batch, 8] x) => (float[batch, 8] y)", body, w=random(8, 8))
    for node, name in zip(model.graph.node, ["", "", "/head", "/head", "MatMul_0"], strict=True):
        node.name = name
    named, count = name_weighted_nodes(model)
    assert [node.name for node in named.graph.node] == ["MatMul_1", "MatMul_2", "/head", "/head_1", "MatMul_0"]
    assert (count, name_weighted_nodes(named)[1]) == (3, 0)
    assert [node.name for node in model.graph.node][2:4] == ["/head", "/head"]


def test_bodies() -> None:
    """A MatMul in a Loop's body gets a name of its own, also against the graph around it."""
    model = tiny_models.slow().graph
    model.graph.node.append(helper.make_node("MatMul", ["identity", "identity"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [64, 64]))
    named, count = name_weighted_nodes(model)
    assert count == 2
    assert sorted(node.name for node in all_nodes(named) if node.op_type == "MatMul") == ["MatMul_0", "MatMul_1"]


def test_after_everything_else() -> None:
    model = tiny_models.slow().graph
    fused, _ = fuse(model)
    names = [node.name for node in all_nodes(fused) if node.op_type == "MatMul"]
    assert len(names) == 1
    assert all(names)
    assert_same_answers(model, fused, 0)
